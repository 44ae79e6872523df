from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from typing import TYPE_CHECKING

import pytest

from services.store.leases import Leases
from services.store.sqlite import Store, StoreError
from tests.running import DEADLINE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


async def eventually(call: Callable[[], Awaitable[object]], expected: object) -> None:
    """Asks until it answers so."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_SECONDS
    while await call() != expected:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def taken(leases: Leases) -> bool:
    """Whether alice got her only one."""
    try:
        return await leases.take("alice", 1) is not None
    except StoreError:
        return False


@pytest.fixture
async def leases(tmp_path: Path) -> AsyncIterator[Leases]:
    """Leases in a file of their own."""
    store = Store(tmp_path / "store" / "store.sqlite")
    yield Leases(store)
    await store.stop()


async def test_a_client_holds_so_many_and_no_more(leases: Leases) -> None:
    """One that is given back can be taken again; another client has its own."""
    taken = [await leases.take("alice", 2) for _ in range(3)]
    assert taken[0]
    assert taken[1]
    assert taken[2] is None
    assert await leases.take("bob", 2)
    leases.give_back(taken[0])
    assert await leases.take("alice", 2)
    assert await leases.take("alice", 2) is None


async def test_what_nobody_renews_expires_and_what_lives_does_not(tmp_path: Path) -> None:
    """The leases of a process that was killed are free after their time; a living one keeps its own for longer than that."""
    path, seconds = tmp_path / "store.sqlite", 0.6
    context = multiprocessing.get_context("spawn")
    killed = context.Process(target=_take_and_hang, args=(path, seconds), daemon=True)
    killed.start()
    store = Store(path)
    living = Leases(store, seconds=seconds)
    try:
        await eventually(lambda: asyncio.to_thread(_count, path), 1)
    finally:
        killed.kill()
    await eventually(lambda: taken(living), expected=True)
    await asyncio.sleep(seconds * 2)
    assert await living.take("alice", 1) is None
    await store.stop()
    assert _count(path) == 0


def _take_and_hang(path: Path, seconds: float) -> None:
    async def hang() -> None:
        assert await Leases(Store(path), seconds=seconds).take("alice", 1)
        await asyncio.Event().wait()

    asyncio.run(hang())


def _count(path: Path) -> int:
    if not path.exists():
        return -1
    with sqlite3.connect(path) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM leases").fetchone()[0])
        except sqlite3.OperationalError:
            return -1


async def test_many_at_once_are_counted_exactly(tmp_path: Path) -> None:
    """Four processes' worth of stores, 200 at the same moment, a limit of 7: 7 get one."""
    stores = [Store(tmp_path / "store.sqlite") for _ in range(4)]
    leases = [Leases(store) for store in stores]
    taken = await asyncio.gather(*[leases[number % 4].take("alice", 7) for number in range(200)])
    assert sum(lease is not None for lease in taken) == 7
    for store in stores:
        await store.stop()


async def test_a_file_that_cannot_be_had_is_told_and_tried_again(tmp_path: Path) -> None:
    """It fails while a folder stands in its place, and works once that is gone."""
    path = tmp_path / "store.sqlite"
    path.mkdir()
    store = Store(path)
    leases = Leases(store)
    for _ in range(3):
        with pytest.raises(StoreError, match=r"store\.sqlite"):
            await leases.take("alice", 1)
    path.rmdir()
    await eventually(lambda: taken(leases), expected=True)
    await store.stop()


async def test_a_file_that_is_held_by_somebody_else_does_not_hang_requests(leases: Leases) -> None:
    """A lock that is never given back is an error within the promised second."""
    assert await leases.take("alice", 9)
    with sqlite3.connect(leases._store.path, isolation_level=None) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        begun = asyncio.get_running_loop().time()
        with pytest.raises(StoreError):
            await leases.take("alice", 9)
        assert asyncio.get_running_loop().time() - begun < 3
        blocker.execute("ROLLBACK")
    blocker.close()


async def test_a_take_that_is_cancelled_holds_nothing(leases: Leases) -> None:
    """Whatever the moment."""
    for number in range(50):
        task = asyncio.create_task(leases.take("alice", 1))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (lease := task.result()):
            leases.give_back(lease)
    await eventually(lambda: taken(leases), expected=True)


async def test_a_file_that_another_pod_is_making_is_waited_for(tmp_path: Path) -> None:
    """None is told that it is locked, which would admit a request uncounted."""
    maker = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    maker.execute("BEGIN IMMEDIATE")
    maker.execute("CREATE TABLE something (id)")
    store = Store(tmp_path / "store.sqlite")
    asyncio.get_running_loop().call_later(0.1, maker.execute, "COMMIT")
    assert await Leases(store).take("alice", 5) is not None
    await store.stop()
    maker.close()
