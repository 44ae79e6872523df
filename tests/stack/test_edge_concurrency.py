"""A client's number of concurrent requests holds over all pods together, streams counted to their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.running import running_pods
from tests.stack.harness import running_edge, until
from tests.stack.knowing import bearer, clients_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from tests.running import RunningPods
    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

PODS, LIMIT = 4, 6
CLIENTS = clients_file({"alice": f"max_concurrent_requests: {LIMIT}", "bob": "role: user"})
CHAT = "/v1/chat/completions"
# It does not end by itself while a test looks at it.
LONG = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 4000, "ignore_eos": True}
SHORT = LONG | {"max_tokens": 1, "stream": False}


@contextlib.asynccontextmanager
async def limited() -> AsyncIterator[tuple[RunningPods, RunningEdge]]:
    """Four pods and an edge that knows two clients, one of them with a number."""
    with running_pods(PODS, fake_tokens_per_second=20) as pods:
        source = f"file:{pods.state_dir / 'pods.json'}"
        async with running_edge(pod_source=source, clients=CLIENTS) as edge:
            await edge.until_healthy(*[f"engine-{number + 1}" for number in range(PODS)])
            yield pods, edge


async def ask(edge: RunningEdge, client: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
    """A request of a client's; a stream has begun when it returns."""
    return await edge.session.post(edge.url + CHAT, json=body, headers=bearer(client))


async def status(edge: RunningEdge, client: str, body: dict[str, Any]) -> int:
    """A request's answer, which is read to its end."""
    async with await ask(edge, client, body) as response:
        await response.read()
        return response.status


async def test_a_client_has_so_many_in_progress_over_all_pods() -> None:
    """Of 20 at once 6 are answered; the others are told their limit, once, and nobody else is touched; who ends makes room."""
    async with limited() as (_, edge):
        answers = await asyncio.gather(*[ask(edge, "alice", LONG) for _ in range(20)])
        accepted = [answer for answer in answers if answer.status == 200]
        refused = [answer for answer in answers if answer.status != 200]
        assert len(accepted) == LIMIT
        # Which pods the accepted are on is chance: one that is first at the store takes what it was asked together.
        assert {answer.headers["x-convoy-pod"] for answer in answers} == {f"engine-{number + 1}" for number in range(PODS)}
        told = json.loads(await refused[0].read())["error"]
        assert (refused[0].status, told["code"]) == (429, "rate_limit_exceeded")
        assert f"{LIMIT} requests in progress" in told["message"]
        assert {answer.headers["x-convoy-attempts"] for answer in refused} == {"1"}, "no other pod is asked"
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert "x-envoy-ratelimited" not in refused[0].headers
        assert await status(edge, "bob", SHORT) == 200
        assert await status(edge, "alice", SHORT) == 429
        accepted[0].close()

        async def has_room() -> bool:
            return await status(edge, "alice", SHORT) == 200

        await until(has_room, "room after one that left")
        for answer in answers:
            answer.close()


async def test_what_a_killed_pod_held_is_free_again() -> None:
    """Its leases expire; those of the living ones are kept."""
    async with limited() as (pods, edge):
        streams = [await ask(edge, "alice", LONG) for _ in range(LIMIT)]
        victim = streams[0].headers["x-convoy-pod"]
        lost = sum(stream.headers["x-convoy-pod"] == victim for stream in streams)
        os.kill(pods.entry(victim)["pid"], signal.SIGKILL)

        async def got_another() -> bool:
            streams.append(await ask(edge, "alice", LONG))
            return streams[-1].status == 200

        for number in range(lost):
            await until(got_another, f"room for request {number + 1} of {lost} after a pod was killed")
        assert await status(edge, "alice", SHORT) == 429, "the living pods' ones count as before"
        for answer in streams:
            answer.close()


async def test_where_the_store_fails_requests_are_admitted_and_counted() -> None:
    """Its failure is not the clients'."""
    async with limited() as (pods, edge):
        store = pods.state_dir / "store.sqlite"
        assert await status(edge, "alice", SHORT) == 200
        for path in pods.state_dir.glob("store.sqlite*"):
            path.unlink()
        store.mkdir()  # pods that have not opened it cannot, and the others hold a file that nobody else has
        for name in [f"engine-{number + 1}" for number in range(PODS)]:
            os.kill(pods.entry(name)["pid"], signal.SIGKILL)
        await asyncio.to_thread(pods.until_ready, PODS)
        await edge.until_healthy(*[f"engine-{number + 1}" for number in range(PODS)])
        answers = await asyncio.gather(*[ask(edge, "alice", LONG) for _ in range(LIMIT * 3)])
        assert {answer.status for answer in answers} == {200}
        counted = 0
        for url in pods.urls:
            async with edge.session.get(f"{url}/metrics") as response:
                lines = (await response.text()).splitlines()
            counted += sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("llm_store_errors_total"))
        assert counted == LIMIT * 3
        for answer in answers:
            answer.close()
