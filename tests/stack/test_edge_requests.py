"""What the edge does to a request that it lets through: ids, headers, paths, time limits by kind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from yarl import URL

from tests.stack.harness import running_edge
from tests.stack.raw_http import exchange
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

PATHS = ("/v1/models", "/health", "/healthz", "/livez", "/docs", "/docs/a/b.css", "/openapi.json", "/metrics", "/v1/queue", "/chat")
FORGED = ("x-client-id", "x-client-role", "x-client-max-priority", "x-convoy-stream", "x-convoy-new-id", "x-convoy-pod", "x-envoy-retry-on")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod() -> AsyncIterator[StubPod]:
    """The one pod behind the edge."""
    started = await StubPod("engine-1").start()
    yield started
    await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(pod: StubPod) -> AsyncIterator[RunningEdge]:
    """An edge as it is by default."""
    async with running_edge([pod]) as running:
        yield running


async def _request_id(edge: RunningEdge, pod: StubPod, given: str | None) -> str:
    """The id that pod and client both saw."""
    headers = {} if given is None else {"x-request-id": given}
    async with edge.session.get(f"{edge.url}/v1/models", headers=headers) as response:
        answered = response.headers.getall("x-request-id")
    assert answered == pod.seen[-1][2].getall("x-request-id")
    assert len(answered) == 1
    return answered[0]


@pytest.mark.parametrize("given", ["mine", "a" * 128, "~!@#$%^&*()", "018f0000-0000-7000-8000-000000000000"])
async def test_request_id_of_the_caller_is_kept(edge: RunningEdge, pod: StubPod, given: str) -> None:
    """The caller's id reaches the pod and comes back unchanged, UUID or not."""
    assert await _request_id(edge, pod, given) == given


@pytest.mark.parametrize("given", [None, "", "a" * 129, "with space", "tab\there", "ümlaut"])
async def test_request_id_is_made_where_the_callers_cannot_be(edge: RunningEdge, pod: StubPod, given: str | None) -> None:
    """A missing, long or unprintable id is replaced by a UUID of Envoy's."""
    made = await _request_id(edge, pod, given)
    assert made != given
    assert len(made) == 36


async def test_forged_headers_do_not_reach_a_pod(edge: RunningEdge, pod: StubPod) -> None:
    """Nobody outside can speak as Envoy: identity and inner headers are removed, and Envoy's own are not obeyed."""
    forged = {**dict.fromkeys(FORGED, "1"), "x-envoy-upstream-rq-timeout-ms": "1", "x-forwarded-for": "10.0.0.1"}
    async with edge.session.post(f"{edge.url}/chat", json={"message": "hi"}, headers=forged) as response:
        assert response.status == 200
    seen = pod.seen[-1][2]
    assert seen["x-envoy-attempt-count"] == "1"
    told = {name: value for name, value in seen.items() if name.lower() in FORGED}
    assert told == {"x-client-id": "local", "x-client-role": "ops"}  # what Envoy itself says where there are no clients


async def test_answer_names_pod_and_attempts(edge: RunningEdge) -> None:
    """Each answer says which pod made it and how many were asked, and nothing of Envoy's insides."""
    async with edge.session.post(f"{edge.url}/v1/completions", json={}) as response:
        headers = response.headers
    assert (headers["x-convoy-pod"], headers["x-convoy-attempts"]) == ("engine-1", "1")
    assert not [name for name in headers if name.lower().startswith("x-envoy")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_known_path_reaches_a_pod(edge: RunningEdge, pod: StubPod, path: str, method: str) -> None:
    """The allow-list passes every path of the contract, with any method: the pod answers 405 itself."""
    async with edge.session.request(method, f"{edge.url}{path}") as response:
        assert response.status == 200
    assert pod.seen[-1][:2] == (method, path)


@pytest.mark.parametrize("path", ["/v1/models/org%2Fname", "/v1/models/org%2fname", "/v1/models/org/name", "/v1/models/a%252Fb"])
async def test_model_id_with_a_slash_reaches_a_pod_as_sent(edge: RunningEdge, pod: StubPod, path: str) -> None:
    """A model id may hold a slash, escaped or not; the edge does not rewrite it."""
    async with edge.session.get(URL(f"{edge.url}{path}", encoded=True)) as response:
        assert response.status == 200
    assert pod.seen[-1][1] == path


async def test_http_1_0_is_answered(edge: RunningEdge) -> None:
    """An old client without a Host header gets its answer, whole by the connection's end."""
    answer = await exchange(edge.port, b"GET /v1/models HTTP/1.0\r\n\r\n")
    assert (answer.status, json.loads(answer.body)["path"]) == (200, "/v1/models")


@pytest.mark.parametrize("path", ["stats", "stats?filter=http.clients", "clusters", "server_info"])
async def test_window_on_envoy_is_open_for_reading(edge: RunningEdge, path: str) -> None:
    """What Envoy says of itself can be read through the edge."""
    async with edge.session.get(f"{edge.url}/envoy/{path}") as response:
        assert (response.status, response.headers["x-convoy-pod"]) == (200, "edge")
        assert await response.text()


@pytest.mark.parametrize("path", ["/config_dump", "/quitquitquit", "/logging", "/"])
async def test_admin_of_envoy_refuses_what_is_not_needed(edge: RunningEdge, path: str) -> None:
    """Even on loopback Envoy's admin neither ends the process nor shows its configuration."""
    async with edge.session.post(f"http://127.0.0.1:{edge.admin_port}{path}") as response:
        assert response.status == 403
