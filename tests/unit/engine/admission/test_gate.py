from __future__ import annotations

import asyncio

import pytest

from services.engine.admission import Ask
from services.openai.errors import DeadlineUnreachable, Draining, QueueFull
from tests.unit.engine.admission.gates import admission, ask, queued, waiting


async def test_waiters_get_slots_in_the_order_they_came() -> None:
    """A slot that frees goes to the oldest waiter at once; the place told is the place it had."""
    gate, order = admission(), list[str]()
    first_ticket = await gate.acquire(ask())

    async def client(name: str) -> int:
        ticket = await gate.acquire(ask())
        order.append(name)
        gate.release(ticket, None)
        return ticket.place

    first = asyncio.create_task(client("first"))
    await waiting(gate, 1)
    second = asyncio.create_task(client("second"))
    await waiting(gate, 2)
    gate.release(first_ticket, None)
    assert (await first, await second) == (1, 2)
    assert order == ["first", "second"]
    assert (gate.running, gate.waiting) == (0, 0)


async def test_one_more_than_the_queue_holds_is_refused_at_once() -> None:
    """With slot and queue full the answer is `queue_full` with a time to return, not a wait."""
    gate = admission(capacity=0)
    await gate.acquire(ask())
    with pytest.raises(QueueFull) as caught:
        await gate.acquire(ask())
    assert caught.value.retry_after_seconds is None, "nobody can know yet"
    assert gate.running == 1


async def test_a_wait_ends_in_time() -> None:
    """A request that gets no slot within the time limit is refused and leaves no trace."""
    gate = admission(timeout_seconds=0.01)
    await gate.acquire(ask())
    with pytest.raises(DeadlineUnreachable, match=r"QUEUE_TIMEOUT_SECONDS=0\.01"):
        await gate.acquire(ask())
    assert gate.waiting == 0


async def test_memory_bounds_the_queue_too() -> None:
    """Two large requests fill it; a small one finds no room. A single one may always wait."""
    gate = admission(capacity=100, max_queue_bytes=1000)
    await gate.acquire(ask())
    tasks = [await queued(gate, ask(num_bytes=500)), await queued(gate, ask(num_bytes=500))]
    with pytest.raises(QueueFull, match="1000 bytes"):
        await gate.acquire(ask(num_bytes=1))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    (await queued(gate, ask(num_bytes=5000))).cancel()


async def test_the_engines_cache_bounds_what_runs() -> None:
    """A slot is free and its turn has come, but its tokens would not fit: it waits, and nobody goes before it."""
    gate = admission(slots=4, capacity=9, max_total_tokens=250)
    first = await gate.acquire(ask(tokens=199))
    large = await queued(gate, ask(tokens=99))
    small = await queued(gate, ask(tokens=9))
    assert gate.running == 1
    gate.release(first, None)
    await large
    await small


async def test_a_client_that_leaves_gives_up_its_place() -> None:
    """A cancelled waiter is out of the queue, and the slot goes to the one behind it."""
    gate = admission()
    running = await gate.acquire(ask())
    leaver = await queued(gate, ask())
    stayer = await queued(gate, ask())
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert gate.waiting == 1
    gate.release(running, None)
    await stayer
    assert (gate.running, gate.waiting) == (1, 0)


async def test_a_slot_given_to_a_client_that_leaves_at_that_moment_is_not_lost() -> None:
    """Handing over and leaving in the same step of the loop frees the slot again."""
    gate = admission()
    running = await gate.acquire(ask())
    leaver = await queued(gate, ask())
    gate.release(running, None)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert gate.running == 0


async def test_draining_hands_back_what_waits_and_refuses_what_comes() -> None:
    """Both are `draining`, to be tried on another pod; what runs is left alone."""
    gate = admission()
    await gate.acquire(ask())
    waiter = await queued(gate, ask())
    gate.drain()
    with pytest.raises(Draining):
        await waiter
    with pytest.raises(Draining):
        await gate.acquire(ask())
    assert gate.running == 1


async def test_without_a_bound_everybody_waits() -> None:
    """ENABLE_BACKPRESSURE=false: no refusal however long the line."""
    gate = admission(capacity=None, timeout_seconds=0.001)
    running = await gate.acquire(ask())
    tasks = [await queued(gate, ask()) for _ in range(200)]
    await asyncio.sleep(0.01)
    for task in tasks:
        gate.release(running, None)
        running = await task
    assert (gate.running, gate.waiting) == (1, 0)


async def test_an_engine_that_preempts_is_given_what_requests_are_likely_to_need() -> None:
    """Not what they may come to, which nobody's answers do; and no more than fits by what was seen of their lengths."""
    gate = admission(slots=10, capacity=100)
    gate.bound(1300, by_expected=True)
    chat = Ask(num_prompt_tokens=100, max_tokens=4000)
    tickets = [await gate.acquire(chat), await gate.acquire(chat)]  # 612 each, while nothing is known
    waits = await queued(gate, chat)
    for ticket in tickets:
        gate.took(ticket, 50, 1.0)
        gate.release(ticket, "stop")
    learned = [await waits, *[await gate.acquire(chat) for _ in range(6)]]
    assert gate.running == 7
    waits = await queued(gate, Ask(num_prompt_tokens=1200, max_tokens=4000))
    for ticket in learned:
        gate.release(ticket, "stop")
    gate.release(await waits, "stop")
    assert gate.running == 0
