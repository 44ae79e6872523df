"""What loads of the bench ask: answers of all lengths, JSON and streams; and how much of that a server can do."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import aiohttp

from services.ops.load.kinds import chat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.ops.load.kinds import Kind

# Answers differ as users' do: most are short, few are long. Tokens and how often.
ANSWERS = ((20, 4), (60, 3), (150, 2), (300, 1))
MEAN_TOKENS = sum(tokens * weight for tokens, weight in ANSWERS) / sum(weight for _, weight in ANSWERS)


def mix(deadline: float) -> list[Kind]:
    """JSON and streams, each with every length; prompts differ, so that no two requests are the same."""
    headers = {"x-request-deadline-ms": str(int(deadline * 1000))}
    # So many that no two requests of a load are the same: one that is would be taken for a return.
    prompts = [f"Please answer question number {number} about distributed systems." for number in range(20_000)]
    return [
        chat(
            f"{tokens} tokens{', stream' * is_stream}",
            is_stream=is_stream,
            prompts=prompts,
            max_tokens=tokens,
            weight=weight,
            headers=headers,
        )
        for tokens, weight in ANSWERS
        for is_stream in (False, True)
    ]


def lengths(kinds: Sequence[Kind]) -> dict[str, int]:
    """Tokens of each kind's answers, by its name."""
    return {kind.name: int(kind.name.split()[0]) for kind in kinds}


async def capacity(url: str, clients: int, seconds: float, kinds: Sequence[Kind] | None = None) -> float:
    """Requests a second of this mix that so many clients get answered, each of which asks again as soon as it has its answer."""
    kinds, tokens, chance = kinds or mix(600), 0, random.Random(1)
    length = lengths(kinds)
    weights = [kind.weight for kind in kinds]
    loop = asyncio.get_running_loop()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal tokens
        while loop.time() < end:
            kind = chance.choices(kinds, weights)[0]
            async with session.post(url + kind.path, data=chance.choice(kind.bodies), headers={"content-type": "application/json"}) as got:
                await got.read()
                # Tokens, for among the first that are answered short ones are too many.
                tokens += length[kind.name] * (got.status == 200 and loop.time() < end)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        end = loop.time() + seconds
        await asyncio.gather(*[client(session) for _ in range(clients)])
    return tokens / MEAN_TOKENS / seconds
