from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.engine.entry import Entry
from services.openai.errors import DeadlineUnreachable, QueueFull
from services.store.promises import SharedPromises
from services.store.sqlite import Store
from services.telemetry.metrics import Metrics
from tests.unit.engine.admission.gates import Clock, admission, ask, learn, queued, waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.engine.admission import Admission, Ticket


class OnePod:
    """A pod's way in, with one slot of 1 s and no place in the queue."""

    def __init__(self, file: Path) -> None:
        """Promises are in `file`."""
        self.store = Store(file)
        self.promises = SharedPromises(self.store, slots=1, answer_seconds=10)
        self.gate: Admission = admission(slots=1, capacity=0, clock=Clock())
        learn(self.gate)
        self.entry = Entry(self.gate, self.promises, Metrics("demo"))

    async def full(self) -> Ticket:
        """Its slot is taken."""
        return await self.gate.acquire(ask(tokens=101))

    async def told(self, fingerprint: int, attempt: int = 1) -> float:
        """The time that a refused request is told."""
        with pytest.raises(QueueFull, match="Retry in") as caught:
            await self.entry.admit(ask(tokens=101, fingerprint=fingerprint, attempt=attempt))
        assert caught.value.retry_after_seconds is not None
        return caught.value.retry_after_seconds


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[list[OnePod]]:
    """Two of them, full, with one file."""
    pods = [OnePod(tmp_path / "store.sqlite") for _ in range(2)]
    yield pods
    for pod in pods:
        await pod.store.stop()


async def test_refused_by_both_it_is_told_once(pods: list[OnePod]) -> None:
    """And the next one a time behind it: one more second of work for the slots that are known."""
    one, other = pods
    await one.full()
    await other.full()
    first = await one.told(7)
    assert first == pytest.approx(1.0, rel=0.11)
    assert await other.told(7, attempt=2) == pytest.approx(first, abs=0.3)
    assert await one.told(8) > 1.3


async def test_without_its_store_a_pod_tells_its_own_wait(tmp_path: Path) -> None:
    """It refuses as before, and counts that it did not know better."""
    (tmp_path / "store.sqlite").mkdir()
    pod = OnePod(tmp_path / "store.sqlite")
    await pod.full()
    assert await pod.told(7) == pytest.approx(1.0, rel=0.11)
    assert await pod.told(8) == pytest.approx(1.0, rel=0.11)
    await pod.store.stop()


async def test_who_is_back_waits_where_a_newcomer_may_not(tmp_path: Path) -> None:
    """Another pod had told it to come now; the queue is for those."""
    store = Store(tmp_path / "store.sqlite")
    promises = SharedPromises(store, slots=1, answer_seconds=10)
    gate = admission(slots=1, capacity=4, timeout_seconds=5)
    learn(gate)
    entry = Entry(gate, promises, Metrics("demo"))
    await promises.tell(7, 0.0, 60.0, was_told=False)
    await gate.acquire(ask(tokens=101))
    before = await queued(gate, ask(tokens=101))
    with pytest.raises(DeadlineUnreachable) as caught:
        await entry.admit(ask(fingerprint=8))
    assert 50 < (caught.value.retry_after_seconds or 0) < 70
    back = asyncio.create_task(entry.admit(ask(fingerprint=7)))
    await waiting(gate, 2)
    for task in (before, back):
        task.cancel()
    await store.stop()
