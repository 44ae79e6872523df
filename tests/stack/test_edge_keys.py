"""Who may call: keys accepted and refused, roles, what a pod is told, and that a plain key is nowhere."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio

from tests.stack.harness import running_edge
from tests.stack.knowing import bearer, clients_file, hash_of, key_of
from tests.stack.raw_http import exchange
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio(loop_scope="module")]

CLIENTS = clients_file(
    {
        "alice": f"class: batch, models: [demo, org/b], tokens_per_minute: 1000, max_concurrent_requests: 3, max_priority: low, "
        f"expires: 2099-01-01, keys: [{hash_of('alice')}, {{sha256: {hash_of('alice-old')}, expires: 2020-01-01}}, {hash_of('alice-new')}]",
        "root": "role: ops",
        "gone": "expires: '2020-01-01T12:00:00+02:00'",
        "soon": "expires: '2098-01-01T12:00Z'",
    },
    limits="standard: {requests_per_minute: 60000, burst: 1000}\nbatch: {requests_per_minute: 6000, burst: 500}",
).replace(f"name: alice, keys: [{hash_of('alice')}], ", "name: alice, ")
LENGTHS = (1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 128, 300)
"""Of keys, around the ends of SHA-256's blocks."""
CLIENTS += f"- {{name: lengths, keys: [{', '.join(hashlib.sha256(b'k' * length).hexdigest() for length in LENGTHS)}]}}\n"

REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no key": ({}, "No API key"),
    "empty key": ({"x-api-key": ""}, "No API key"),
    "unknown": ({"authorization": "Bearer sk-convoy-nobody"}, "not known"),
    "another scheme": ({"authorization": "Basic YTpi"}, "must be: Bearer"),
    "no scheme": ({"authorization": key_of("alice")}, "must be: Bearer"),
    "two words": ({"authorization": f"Bearer {key_of('alice')} x"}, "must be: Bearer"),
    "its hash": ({"authorization": f"Bearer {hash_of('alice')}"}, "not known"),
    "client expired": (bearer("gone"), "expired"),
    "key expired": (bearer("alice-old"), "expired"),
    "bad bearer beside a good key": ({"authorization": "Bearer x", "x-api-key": key_of("alice")}, "not known"),
}
ACCEPTED = {
    "bearer": bearer("alice"),
    "any case": {"Authorization": f"bEARER   {key_of('alice')}"},
    "x-api-key": {"x-api-key": key_of("alice")},
    "another key of hers": bearer("alice-new"),
    "not yet expired": bearer("soon"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod() -> AsyncIterator[StubPod]:
    """The one pod."""
    started = await StubPod("engine-1").start()
    yield started
    await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(pod: StubPod) -> AsyncIterator[RunningEdge]:
    """An edge that knows clients, with an admin interface that shows all that it has."""
    edit = {"envoy.yaml": {"/(ready|server_info": "/(config_dump|ready|server_info"}}
    async with running_edge([pod], clients=CLIENTS, edit=edit) as running:
        yield running


@pytest.mark.parametrize("case", REFUSED)
async def test_who_is_not_known_is_refused(edge: RunningEdge, pod: StubPod, case: str) -> None:
    """401 in OpenAI's shape that says why, before any pod hears of it, and not before the caller's request id is known."""
    headers, reason = REFUSED[case]
    before = len(pod.seen)
    asked = {"x-request-id": "mine-1", **headers}
    async with edge.session.post(f"{edge.url}/v1/chat/completions", data=b"{}", headers=asked) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["type"], error["param"]) == (401, "invalid_api_key", "invalid_request_error", None)
        assert reason in error["message"]
        assert (response.headers["x-request-id"], response.headers["x-convoy-attempts"]) == ("mine-1", "0")
        assert response.headers["www-authenticate"] == "Bearer"
    assert len(pod.seen) == before


async def test_a_key_is_asked_before_the_body_is_read(edge: RunningEdge) -> None:
    """Who sends the headers of a large upload without a key is answered at once, not after the upload."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ncontent-length: 8000000\r\n\r\n"
    assert (await exchange(edge.port, head)).status == 401


async def test_two_keys_at_once_are_refused(edge: RunningEdge) -> None:
    """Two Authorization headers are no key, even if one of them is good."""
    line = f"authorization: Bearer {key_of('alice')}\r\n".encode()
    answer = await exchange(edge.port, b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n" + line + line + b"\r\n")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("case", ACCEPTED)
async def test_who_is_known_is_served(edge: RunningEdge, case: str) -> None:
    """Each way to send a key that is good is served."""
    async with edge.session.post(f"{edge.url}/chat", data=b"{}", headers=ACCEPTED[case]) as response:
        assert response.status == 200


@pytest.mark.parametrize("length", LENGTHS)
async def test_the_hash_is_sha256_for_every_length(edge: RunningEdge, length: int) -> None:
    """Envoy computes what `sha256sum` does; one character more is another key."""
    for key, status in (("k" * length, 200), ("k" * length + "x", 401)):
        async with edge.session.get(f"{edge.url}/v1/models", headers={"x-api-key": key}) as response:
            assert response.status == status


async def test_a_pod_is_told_who_calls_and_never_the_key(edge: RunningEdge, pod: StubPod) -> None:
    """What the clients file says reaches the pod; what the caller says of itself does not, and no more does the key."""
    forged = {
        "x-client-id": "root",
        "x-client-role": "ops",
        "x-client-max-priority": "high",
        "X-Client-Anything": "1",
        "x-convoy-stream": "1",
    }
    sent = {**forged, **bearer("alice"), "x-api-key": key_of("root")}
    async with edge.session.post(f"{edge.url}/chat", data=b"{}", headers=sent) as response:
        assert response.status == 200
    seen = {name.lower(): value for name, value in pod.seen[-1][2].items()}
    assert {name: value for name, value in seen.items() if name.startswith(("x-client-", "x-convoy-"))} == {
        "x-client-id": "alice",
        "x-client-role": "user",
        "x-client-class": "batch",
        "x-client-max-concurrent": "3",
        "x-client-tokens-per-minute": "1000",
        "x-client-max-priority": "low",
        "x-client-models": "demo,org/b",
    }
    assert not {"authorization", "x-api-key"} & set(seen)
    assert "sk-convoy" not in str(pod.seen)


@pytest.mark.parametrize(
    "path", ["/docs", "/docs/swagger-ui.css", "/openapi.json", "/health", "/healthz", "/livez", "/readyz", "/docs?x=1"]
)
async def test_open_paths_ask_for_no_key(edge: RunningEdge, path: str) -> None:
    """Documentation and health are for everybody; nobody is identified there."""
    async with edge.session.get(edge.url + path) as response:
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith("x-ratelimit")]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo", "/nowhere", "/docsx", "/health/../metrics", "/metrics", "/envoy/stats"])
async def test_other_paths_ask_for_a_key(edge: RunningEdge, path: str) -> None:
    """Every other path does, whether it exists or not; dots do not lead around it."""
    answer = await exchange(edge.port, f"GET {path} HTTP/1.1\r\nhost: edge\r\n\r\n".encode())
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/metrics", "/v1/queue", "/envoy/stats?filter=none", "/envoy/clusters", "/envoy/server_info"])
async def test_what_tells_of_others_is_for_ops(edge: RunningEdge, path: str) -> None:
    """403 for a user, 200 for the role `ops`."""
    async with edge.session.get(edge.url + path, headers=bearer("alice")) as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (403, "forbidden")
        assert "ops" in error["message"]
    async with edge.session.get(edge.url + path, headers=bearer("root")) as response:
        assert response.status == 200


async def test_a_plain_key_is_nowhere(edge: RunningEdge) -> None:
    """Not in any file, log, process or in Envoy's own dump; hashes only in a file that its owner alone can read."""
    async with edge.session.get(f"{edge.url}/v1/models", headers={**bearer("root"), "x-api-key": "sk-convoy-test-other"}) as response:
        assert response.status == 200
    for path in (path for path in edge.state_dir.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert b"sk-convoy-test" not in content, path
        if hash_of("root").encode() in content and path != edge.clients_file:
            assert (path.parent.name, stat.S_IMODE(path.stat().st_mode)) == ("keys", 0o600), path
    async with edge.session.get(f"http://127.0.0.1:{edge.admin_port}/config_dump?include_eds") as response:
        dump = await response.text()
    assert "limit_client" in dump
    assert "sk-convoy" not in dump
    assert hash_of("root") not in dump
    assert not [process for process in psutil.process_iter() if "sk-convoy-test" in " ".join(_words(process))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    "path",
    ["/quitquitquit", "/config_dumps", "/logging?level=trace", "/drain_listeners", "/healthcheck/fail", "/reset_counters", "/", "/help"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_admin_interface_lets_only_reads_through(edge: RunningEdge, method: str, path: str) -> None:
    """Whoever reaches it, on loopback, can change nothing."""
    async with edge.session.request(method, f"http://127.0.0.1:{edge.admin_port}{path}") as response:
        assert response.status == 403
