"""Waiting for several things at once, and for tasks."""

from __future__ import annotations

import asyncio


def raise_failure(tasks: list[asyncio.Task[None]]) -> None:
    """Raises what a task of these raised."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


async def wait_for_one(events: list[asyncio.Event], timeout: float) -> None:
    """Waits until one of the events is set, at most `timeout` seconds."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Ends them all, and waits for it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
