from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from services.store.promises import SharedPromises, Told
from services.store.sqlite import Store, StoreError
from tests.unit.store.test_leases import eventually

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator
    from pathlib import Path


class Pods:
    """Two pods of two slots each, with one file."""

    def __init__(self, folder: Path) -> None:
        """Their file is in `folder`."""
        self.stores = [Store(folder / "store.sqlite") for _ in range(2)]
        self.one, self.other = [SharedPromises(store, slots=2, answer_seconds=10) for store in self.stores]

    async def both_serve(self) -> None:
        """Each knows of the other's slots."""
        for promises in (self.one, self.other):
            await refused(promises, 999)
        await self.pass_by(120)

    async def pass_by(self, seconds: float) -> None:
        """So much time passes for all that was promised."""

        def work(connection: sqlite3.Connection, _: float) -> None:
            for column in ("made_at", "due_at", "expires_at"):
                connection.execute(f"UPDATE promises SET {column} = {column} - ?", (seconds,))  # noqa: S608
            connection.execute("UPDATE line SET until = until - ?", (seconds,))

        await self.stores[0].ask(work, 1.0)


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[Pods]:
    """Both pods, which serve."""
    both = Pods(tmp_path)
    await both.both_serve()
    yield both
    for store in both.stores:
        await store.stop()


async def refused(promises: SharedPromises, fingerprint: int, wait: float = 0.0, seconds: float = 2.0, *, was_told: bool = False) -> Told:
    """What a request is told that a pod has refused."""
    return await promises.tell(fingerprint, wait, seconds, was_told=was_told)


async def test_one_line_for_all_pods(pods: Pods) -> None:
    """Each is told to come when the work of those before it is done by the slots of all: 2 s by four of them."""
    told = [await refused(pods.one if number % 2 else pods.other, number + 1, wait=1.0) for number in range(8)]
    for number, one in enumerate(told):
        assert one.promise == 0
        assert one.seconds == pytest.approx(1 + number * 0.5, rel=0.11, abs=0.1)


async def test_who_returns_as_told_is_known_by_every_pod(pods: Pods) -> None:
    """Once, in its time; who comes too early is told a time behind the others."""
    first = await refused(pods.one, 7, wait=10.0)
    assert 10 <= first.seconds <= 11
    early = await refused(pods.other, 7, wait=10.0)
    assert early.promise == 0
    assert early.seconds > first.seconds - 1
    await pods.pass_by(first.seconds)
    back = await refused(pods.other, 7)
    assert back.promise
    pods.other.keep(back.promise)
    await pods.pass_by(60)
    assert (await refused(pods.one, 7)).promise == 0, "its time is over"


async def test_two_alike_are_told_two_times(pods: Pods) -> None:
    """The same prompt of the same client twice at once: each has its own place."""
    one, two = [await refused(pods.one, 7, wait=1.0, seconds=20.0) for _ in range(2)]
    assert two.seconds > one.seconds + 3


async def test_the_pod_that_is_asked_next_tells_the_same(pods: Pods) -> None:
    """One request that two pods refuse has one place."""
    one = await refused(pods.one, 7, wait=5.0)
    two = await refused(pods.other, 7, wait=9.0, was_told=True)
    assert two.seconds == pytest.approx(one.seconds, abs=0.5)
    assert (await refused(pods.other, 8, wait=5.0)).seconds < 5.5 * 1.1 + 0.1, "the line has one more, not two"


async def test_who_returned_in_vain_may_return_again(pods: Pods) -> None:
    """At its new time, not before."""
    first = await refused(pods.one, 7, wait=2.0)
    await pods.pass_by(first.seconds)
    back = await refused(pods.one, 7)
    pods.one.renew(back.promise, 5.0)
    assert (await refused(pods.one, 7)).promise == 0
    await pods.pass_by(5.2)
    assert (await refused(pods.other, 7)).promise == back.promise


async def test_where_nobody_returns_the_line_is_not_counted(pods: Pods) -> None:
    """It learns that promises of these clients mean nothing."""
    assert await length_of_the_line(pods) > 40
    for _ in range(2):
        await length_of_the_line(pods)

    async def is_short() -> bool:
        return await length_of_the_line(pods) < 15

    await eventually(is_short, expected=True)


async def length_of_the_line(pods: Pods) -> float:
    """What the last of a hundred is told, each of 2 s by four slots; and a long time passes."""
    for number in range(100):
        told = await refused(pods.one, number + 1)
    await pods.pass_by(1000)
    return told.seconds


async def test_those_who_came_without_a_question_are_counted(pods: Pods) -> None:
    """A pod had a slot for them at once: they are not waited for any more."""
    for number in range(100):
        await refused(pods.one, number + 1, wait=0.1, seconds=0.0)
    await pods.pass_by(0.2)
    for number in range(100):
        pods.one.came(number + 1)

    async def are_few() -> bool:
        return pods.other.num_open <= 2

    await eventually(are_few, expected=True)


async def test_a_store_that_fails_says_so(tmp_path: Path) -> None:
    """Within its time."""
    (tmp_path / "store.sqlite").mkdir()
    store = Store(tmp_path / "store.sqlite")
    begin = time.monotonic()
    with pytest.raises(StoreError):
        await refused(SharedPromises(store, slots=2), 7)
    assert time.monotonic() - begin < 1
    await store.stop()
