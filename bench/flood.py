"""One client that asks at a steady rate whatever it is answered: `python -m bench.flood URL NAME PER_SECOND`. A process of its own."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
import uvloop

from tests.stack.knowing import bearer


async def flood(url: str, name: str, per_second: float) -> None:
    """Until it is ended. Open loop: a slow answer delays no later request."""
    running: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=bearer(name)) as session:

        async def ask() -> None:
            async with session.post(url, json={}) as response:
                await response.read()

        await ask()
        print("flooding", flush=True)
        begun, sent = time.monotonic(), 0
        while True:
            while sent < (time.monotonic() - begun) * per_second:
                sent += 1
                task = asyncio.create_task(ask())
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(1 / per_second)


if __name__ == "__main__":
    uvloop.run(flood(sys.argv[1], sys.argv[2], float(sys.argv[3])))
