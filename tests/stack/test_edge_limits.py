"""How often clients may ask: what they are told, what they get at the limit, and that nobody pays for another's flood."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

import openai
import pytest
import pytest_asyncio

from tests.stack.harness import running_edge, until
from tests.stack.knowing import bearer, clients_file, key_of
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

LIMITS = """standard: {requests_per_minute: 60000, burst: 1000}
few: {requests_per_minute: 6, burst: 3}
hourly: {requests_per_minute: 1, burst: 20}
five: {requests_per_minute: 300, burst: 5}"""
CLIENTS = {
    **dict.fromkeys(("few-1", "few-2", "few-3", "few-4", "few-5"), "class: few"),
    "slow": "class: hourly",
    "worker": "class: five",
    "flood": "class: five",
    "other": "class: standard",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncIterator[RunningEdge]:
    """Two pods and clients of four classes."""
    pods = [await StubPod(f"engine-{number}").start() for number in (1, 2)]
    async with running_edge(pods, clients=clients_file(CLIENTS, LIMITS), address_requests_per_second=0, max_body_bytes=2000) as running:
        yield running
    for pod in pods:
        await pod.stop()


async def _ask(edge: RunningEdge, headers: Mapping[str, str], path: str = "/chat", data: bytes = b"{}") -> tuple[int, dict[str, str]]:
    """Status and headers of one request; those about limits in lower case."""
    async with edge.session.post(edge.url + path, data=data, headers=headers) as response:
        await response.read()
        return response.status, {name.lower(): value for name, value in response.headers.items()}


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(?:(\d+)m)?(\d+(?:\.\d+)?)s", text)
    assert found, text
    return 60 * int(found[1] or 0) + float(found[2])


async def test_every_answer_tells_rate_rest_and_time_until_full(edge: RunningEdge) -> None:
    """OpenAI's three headers: what the class allows a minute, what is left at once, and when all of it is back."""
    for left in (2, 1, 0):
        status, told = await _ask(edge, bearer("few-1"))
        assert status == 200
        assert told["x-ratelimit-limit-requests"] == "6"
        assert told["x-ratelimit-remaining-requests"] == str(left)
        assert _seconds(told["x-ratelimit-reset-requests"]) == pytest.approx((3 - left) * 10, abs=1)
        assert not {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} & set(told)


async def test_more_than_a_minute_is_told_in_minutes(edge: RunningEdge) -> None:
    """As OpenAI does: 2m0s, not 120s."""
    await _ask(edge, bearer("slow"))
    _, told = await _ask(edge, bearer("slow"))
    assert told["x-ratelimit-reset-requests"] == "2m0s"


async def test_one_too_many_is_told_which_limit_and_when(edge: RunningEdge) -> None:
    """429 names the limit and the seconds until one request would be let through, in the header and in words."""
    answers = [await _ask(edge, bearer("few-2")) for _ in range(3)]
    assert [status for status, _ in answers] == [200] * 3
    async with edge.session.post(f"{edge.url}/chat", data=b"{}", headers=bearer("few-2")) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
        wait = int(response.headers["retry-after"])
        assert 1 <= wait <= 10  # 6 a minute: one each 10 s
        assert error["message"] == f"Limit reached: requests per minute of this client. Retry in {wait} s."
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert (response.headers["x-convoy-pod"], response.headers["x-convoy-attempts"]) == ("edge", "0")


@pytest.mark.parametrize(
    ("path", "data", "status"), [("/nowhere", b"{}", 404), ("/chat", b"x" * 3000, 413), ("/metrics", b"", 403)], ids=["404", "413", "403"]
)
async def test_errors_to_a_known_client_tell_too(edge: RunningEdge, path: str, data: bytes, status: int) -> None:
    """Whatever the answer is, a known client sees its limit on it."""
    found, told = await _ask(edge, bearer("other"), path, data)
    assert found == status
    assert told["x-ratelimit-limit-requests"] == "60000"


async def test_a_client_has_its_own_bucket(edge: RunningEdge) -> None:
    """Two clients of one class do not share it."""
    assert [(await _ask(edge, bearer("few-3")))[0] for _ in range(4)] == [200, 200, 200, 429]
    assert (await _ask(edge, bearer("few-4")))[0] == 200


async def test_clients_come_and_go_without_refilling_a_bucket(edge: RunningEdge) -> None:
    """Adding, rotating and removing clients leaves everybody's bucket as it is."""
    assert [(await _ask(edge, bearer("few-5")))[0] for _ in range(4)] == [200, 200, 200, 429]
    with_new = clients_file({**CLIENTS, "new": "class: few"}, LIMITS)
    without = clients_file({name: more for name, more in CLIENTS.items() if name != "few-1"}, LIMITS)
    for text, name, status in ((with_new, "new", 200), (without, "few-1", 401), (clients_file(CLIENTS, LIMITS), "few-1", 429)):
        edge.write_clients(text)

        async def in_force(name: str = name, status: int = status) -> bool:
            return (await _ask(edge, bearer(name)))[0] == status

        await until(in_force, f"{name} gets {status}")
        assert (await _ask(edge, bearer("few-5")))[0] == 429


async def test_the_openai_package_waits_as_told(edge: RunningEdge) -> None:
    """Four workers that send as fast as they are served see no error, and the limit is held within 2 %: 5 a second after a burst of 5."""
    seconds, rate, burst = 10.0, 5.0, 5
    begun = time.monotonic()
    served: list[float] = []

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=key_of("worker"), max_retries=5) as client:
            while time.monotonic() < begun + seconds:
                await client.chat.completions.with_raw_response.create(model="demo", messages=[{"role": "user", "content": "hi"}])
                served.append(time.monotonic() - begun)

    await asyncio.gather(*(work() for _ in range(4)))
    for number, at in enumerate(sorted(served), 1):
        assert number <= burst + at * rate * 1.02 + 1, f"the {number}th was served after {at:.2f} s"
    assert len(served) >= rate * seconds * 0.8  # it does not stand still either; how near it comes is for the bench


async def test_a_flood_costs_another_client_nothing(edge: RunningEdge) -> None:
    """One client at fifty times its limit gets no more than the limit; another one's requests are all served meanwhile."""
    stop = asyncio.Event()
    begun = time.monotonic()

    async def flood() -> list[int]:
        found = []
        while not stop.is_set():
            found.append((await _ask(edge, bearer("flood")))[0])
        return found

    floods = [asyncio.create_task(flood()) for _ in range(4)]
    calm = [(await _ask(edge, bearer("other")))[0] for _ in range(100)]
    stop.set()
    statuses = [status for found in await asyncio.gather(*floods) for status in found]
    assert set(calm) == {200}
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) <= 5 + 5 * (time.monotonic() - begun) * 1.02 + 1
    assert statuses.count(429) > 0


async def test_an_address_is_limited_before_its_key_is_looked_at() -> None:
    """Guessing keys ends after ADDRESS_BURST requests, with a 429 that names this limit; a good key does not help."""
    pod = await StubPod("engine-1").start()
    known = clients_file({"alice": ""})
    try:
        async with running_edge([pod], clients=known, address_requests_per_second=1, address_burst=5) as edge:
            statuses = [(await _ask(edge, {"authorization": "Bearer guess"}))[0] for _ in range(5)]
            assert statuses == [401] * 5
            status, told = await _ask(edge, bearer("alice"))
            assert (status, told["x-convoy-limit"]) == (429, "requests per second of this address")
            assert int(told["retry-after"]) >= 1
    finally:
        await pod.stop()


async def test_without_a_clients_file_nothing_is_limited() -> None:
    """On a laptop nobody counts, and nobody is told of limits."""
    pod = await StubPod("engine-1").start()
    try:
        async with running_edge([pod], address_requests_per_second=1, address_burst=1) as edge:
            answers = [await _ask(edge, {}) for _ in range(20)]
            assert {status for status, _ in answers} == {200}
            assert not [name for _, told in answers for name in told if "ratelimit" in name]
    finally:
        await pod.stop()
