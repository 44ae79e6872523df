from __future__ import annotations

import asyncio

import pytest

from services.openai.errors import AllPromised, DeadlineUnreachable, QueueFull
from tests.unit.engine.admission.gates import Clock, admission, ask, learn, queued


async def test_the_time_to_return_is_when_a_slot_will_be_free() -> None:
    """2 s of the running one and 1 s of the waiting one are before it; jitter adds a tenth at most."""
    gate = admission(capacity=1, clock=Clock())
    learn(gate)
    await gate.acquire(ask(tokens=201))
    task = await queued(gate, ask(tokens=101))
    with pytest.raises(QueueFull) as caught:
        await gate.acquire(ask(tokens=50))
    assert caught.value.retry_after_seconds == pytest.approx(3.15, rel=0.055)
    task.cancel()


async def test_the_wait_is_predicted_and_kept() -> None:
    """A queued request knows its wait, which follows from what runs and what waits before it."""
    clock = Clock()
    gate = admission(slots=2, capacity=9, clock=clock)
    learn(gate)
    running = [await gate.acquire(ask(tokens=tokens)) for tokens in (101, 201)]
    tasks = [await queued(gate, ask(tokens=301)) for _ in range(3)]
    clock.now += 1
    gate.release(running[0], "length")
    first = await tasks[0]
    assert first.place == 1
    assert [first.predicted_wait, first.waited_seconds] == pytest.approx([1.0, 1.0], rel=0.01)
    clock.now += 1
    gate.release(running[1], "length")
    second = await tasks[1]
    assert second.place == 2
    assert [second.predicted_wait, second.waited_seconds] == pytest.approx([2.0, 2.0], rel=0.01)
    clock.now += 2
    gate.release(first, "length")
    assert (await tasks[2]).predicted_wait == pytest.approx(4.0, rel=0.01)


async def test_who_would_wait_too_long_is_told_at_once() -> None:
    """The queue's time limit, which would be passed, is named; nothing waits in vain."""
    gate = admission(timeout_seconds=10, capacity=9, clock=Clock())
    learn(gate)
    await gate.acquire(ask(tokens=1201))
    with pytest.raises(DeadlineUnreachable, match="QUEUE_TIMEOUT_SECONDS=10"):
        await gate.acquire(ask())
    assert gate.waiting == 0


@pytest.mark.parametrize(("within", "is_taken"), [(3.5, True), (2.5, False)])
async def test_a_deadline_that_cannot_be_met_is_told_at_once(within: float, is_taken: bool) -> None:
    """2 s for a slot and 1 s for the answer: within 3.5 s there is time, within 2.5 s there is none."""
    clock = Clock()
    gate = admission(capacity=9, clock=clock)
    learn(gate)
    await gate.acquire(ask(tokens=201))
    wanted = ask(tokens=101, deadline=clock.now + within)
    if is_taken:
        (await queued(gate, wanted)).cancel()
        return
    with pytest.raises(DeadlineUnreachable, match="deadline"):
        await gate.acquire(wanted)


async def test_no_slot_is_given_to_who_can_no_longer_be_in_time() -> None:
    """The run before it took longer than predicted: its answer would come too late, so the next one gets the slot."""
    clock = Clock()
    gate = admission(capacity=9, clock=clock)
    learn(gate)
    running = await gate.acquire(ask(tokens=101))
    late = await queued(gate, ask(tokens=101, deadline=clock.now + 2.5))
    patient = await queued(gate, ask(tokens=101))
    clock.now += 2
    gate.release(running, "length")
    with pytest.raises(DeadlineUnreachable):
        await late
    assert (await patient).started_at == clock.now


async def test_the_urgent_goes_first_and_takes_the_place_of_the_less_urgent() -> None:
    """In a full queue the newest of the lowest priority makes room, and is told when to return."""
    gate = admission(capacity=2)
    running = await gate.acquire(ask())
    normal = await queued(gate, ask(priority="normal"))
    low = await queued(gate, ask(priority="low"))
    high = asyncio.create_task(gate.acquire(ask(priority="high")))
    with pytest.raises(QueueFull):
        await low
    gate.release(running, None)
    ticket = await high
    gate.release(ticket, None)
    await normal
    with pytest.raises(QueueFull):
        await asyncio.gather(*[gate.acquire(ask(priority="low")) for _ in range(3)])


async def test_a_flood_pushes_out_itself_only() -> None:
    """Another client gets a place in a queue that one has filled, and its turn after one of the flood at most."""
    gate = admission(capacity=8)
    running = await gate.acquire(ask("flood"))
    flood = [await queued(gate, ask("flood")) for _ in range(8)]
    other = asyncio.create_task(gate.acquire(ask("other")))
    with pytest.raises(QueueFull):
        await flood[-1]
    gate.release(running, None)
    served = 0
    while not other.done():
        await asyncio.sleep(0)
        done = [task for task in flood[:-1] if task.done() and not task.cancelled()]
        if len(done) > served and not other.done():
            served = len(done)
            gate.release(done[-1].result(), None)
    assert served <= 1
    for task in flood:
        task.cancel()


async def test_who_returns_as_told_goes_before_newcomers() -> None:
    """While slots are promised to others nobody may wait who comes for the first time, and is told its own wait; who is back may."""
    clock = Clock()
    gate = admission(slots=1, capacity=4, timeout_seconds=1.5, clock=clock)
    learn(gate)
    running = await gate.acquire(ask(tokens=101))
    waiting = await queued(gate, ask(tokens=11))
    with pytest.raises(AllPromised, match=r"free in 5\.0 s") as caught:
        await gate.acquire(ask(tokens=11), clock.now + 5)
    assert caught.value.retry_after_seconds == pytest.approx(1.1, rel=0.01)
    back = await queued(gate, ask(tokens=11, is_back=True))
    gate.release(running, "length")
    gate.release(await waiting, "length")
    assert (await back).place == 2


async def test_nobody_waits_for_those_who_never_return() -> None:
    """With the queue run dry a newcomer is taken, or waits for the next slot, whatever was promised."""
    clock = Clock()
    gate = admission(slots=1, capacity=1, timeout_seconds=1.5, clock=clock)
    learn(gate)
    running = await gate.acquire(ask(tokens=101), clock.now + 60)
    waiting = asyncio.create_task(gate.acquire(ask(), clock.now + 60))
    await asyncio.sleep(0)
    gate.release(running, "length")
    assert (await waiting).place == 1
