from __future__ import annotations

import asyncio

import pytest

from services.engine.admission import Admission
from services.openai.errors import Draining, QueueFull


def admission(*, slots: int = 1, capacity: int | None = 2, timeout_seconds: float = 60) -> Admission:
    """One slot and two places unless told otherwise."""
    return Admission(slots=slots, capacity=capacity, timeout_seconds=timeout_seconds)


async def waiting(admission: Admission, count: int) -> None:
    """Returns when `count` requests wait."""
    while admission.waiting != count:  # noqa: ASYNC110 - the test's own deadline ends it
        await asyncio.sleep(0)


async def test_waiters_get_slots_in_the_order_they_came() -> None:
    """A slot that frees goes to the oldest waiter at once; the place told is the place it had."""
    gate, order = admission(), list[str]()
    await gate.acquire()

    async def client(name: str) -> int:
        admitted = await gate.acquire()
        order.append(name)
        gate.release(0.1)
        return admitted.place

    first = asyncio.create_task(client("first"))
    await waiting(gate, 1)
    second = asyncio.create_task(client("second"))
    await waiting(gate, 2)
    gate.release(0.1)
    assert (await first, await second) == (1, 2)
    assert order == ["first", "second"]
    assert (gate.running, gate.waiting) == (0, 0)


async def test_one_more_than_the_queue_holds_is_refused_at_once() -> None:
    """With slot and queue full the answer is `queue_full` with a time to return, not a wait."""
    gate = admission(capacity=0)
    await gate.acquire()
    with pytest.raises(QueueFull) as caught:
        await gate.acquire()
    assert (caught.value.retry_after_seconds or 0) >= 1
    assert gate.running == 1


async def test_a_wait_ends_in_time() -> None:
    """A request that gets no slot within the time limit is refused and leaves no trace."""
    gate = admission(timeout_seconds=0.01)
    await gate.acquire()
    with pytest.raises(QueueFull, match=r"QUEUE_TIMEOUT_SECONDS=0\.01"):
        await gate.acquire()
    assert gate.waiting == 0


async def test_a_client_that_leaves_gives_up_its_place() -> None:
    """A cancelled waiter is out of the queue, and the slot goes to the one behind it."""
    gate = admission()
    await gate.acquire()
    leaver = asyncio.create_task(gate.acquire())
    await waiting(gate, 1)
    stayer = asyncio.create_task(gate.acquire())
    await waiting(gate, 2)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert gate.waiting == 1
    gate.release(0.1)
    await stayer
    assert (gate.running, gate.waiting) == (1, 0)


async def test_a_slot_given_to_a_client_that_leaves_at_that_moment_is_not_lost() -> None:
    """Handing over and leaving in the same step of the loop frees the slot again."""
    gate = admission()
    await gate.acquire()
    leaver = asyncio.create_task(gate.acquire())
    await waiting(gate, 1)
    gate.release(0.1)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert gate.running == 0


async def test_draining_hands_back_what_waits_and_refuses_what_comes() -> None:
    """Both are `draining`, to be tried on another pod; what runs is left alone."""
    gate = admission()
    await gate.acquire()
    waiter = asyncio.create_task(gate.acquire())
    await waiting(gate, 1)
    gate.drain()
    with pytest.raises(Draining):
        await waiter
    with pytest.raises(Draining):
        await gate.acquire()
    assert gate.running == 1


async def test_without_a_bound_everybody_waits() -> None:
    """ENABLE_BACKPRESSURE=false: no refusal however long the line."""
    gate = admission(capacity=None)
    await gate.acquire()
    tasks = [asyncio.create_task(gate.acquire()) for _ in range(200)]
    await waiting(gate, 200)
    for _ in range(201):
        gate.release(0.0)
    await asyncio.gather(*tasks)
