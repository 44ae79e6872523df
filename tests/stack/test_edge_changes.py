"""What people change while everything runs: taken over whole within a second, or refused whole with file and line."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.edge.files import ENVOY_DIR
from tests.stack.harness import running_edge, until
from tests.stack.knowing import bearer, clients_file
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.stack.harness import RunningEdge

pytestmark = [pytest.mark.stack, pytest.mark.asyncio]

PROMISED_SECONDS = 1.0
MARGIN = 3  # the machine may be busy


@pytest_asyncio.fixture
async def pods() -> AsyncIterator[list[StubPod]]:
    """Two stand-ins."""
    started = [await StubPod(f"engine-{number}").start() for number in (1, 2)]
    yield started
    for pod in started:
        await pod.stop()


async def _status(edge: RunningEdge, name: str = "", path: str = "/chat") -> int:
    async with edge.session.post(edge.url + path, data=b"{}", headers=bearer(name) if name else {}) as response:
        await response.read()
        return response.status


async def _until_status(edge: RunningEdge, status: int, name: str = "", path: str = "/chat") -> float:
    """Asks until the answer is `status`; the seconds that it took."""
    begun = time.monotonic()

    async def is_so() -> bool:
        return await _status(edge, name, path) == status

    await until(is_so, lambda: f"{status} for {name or 'nobody'} at {path}; edge says {edge.status}")
    return time.monotonic() - begun


async def _until_error(edge: RunningEdge, words: str) -> None:
    async def is_told() -> bool:
        return words in edge.status["error"]

    await until(is_told, lambda: f"the error {words!r}; edge says {edge.status['error']!r}")


def _replace(path: Path, text: str) -> None:
    """As editors do: another file by the same name."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


async def test_clients_are_in_force_within_a_second(pods: list[StubPod]) -> None:
    """A clients file that appears closes the door; a key works, and stops working, within a second of the change, with 5000 clients too."""
    many = dict.fromkeys((f"client-{number}" for number in range(5000)), "role: user")
    async with running_edge(pods, address_requests_per_second=0) as edge:
        assert await _status(edge) == 200
        edge.write_clients(clients_file({"alice": ""}))
        assert await _until_status(edge, 401) < PROMISED_SECONDS * MARGIN
        assert await _status(edge, "alice") == 200
        edge.write_clients(clients_file({**many, "bob": ""}))
        assert await _until_status(edge, 200, "bob") < PROMISED_SECONDS * MARGIN
        assert await _status(edge, "alice") == 401
        edge.write_clients(clients_file({"alice": ""}))
        assert await _until_status(edge, 401, "bob") < PROMISED_SECONDS * MARGIN


async def test_a_clients_file_that_goes_opens_no_door(pods: list[StubPod]) -> None:
    """Without its file the edge keeps the clients it knew, says so, and keeps them through a restart of its own."""
    async with running_edge(pods, clients=clients_file({"alice": ""})) as edge:
        edge.clients_file.unlink()
        await _until_error(edge, "clients.yaml is gone")
        assert (await _status(edge), await _status(edge, "alice")) == (401, 200)
        await edge.stop("edge")
        (edge.state_dir / "edge.json").unlink()
        await edge.start_edge()
        await until(lambda: _holds((edge.state_dir / "edge.json").exists() and "is gone" in edge.status["error"]), "the new edge's word")
        assert (await _status(edge), await _status(edge, "alice")) == (401, 200)
        edge.write_clients(clients_file({"bob": ""}))
        await _until_status(edge, 200, "bob")
        await until(lambda: _holds(not edge.status["error"]), "the error's end")


async def test_a_bad_clients_file_changes_nothing(pods: list[StubPod]) -> None:
    """One mistake refuses the whole file: status, log and metrics name file, line and reason; the next good file is taken."""
    async with running_edge(pods, clients=clients_file({"alice": ""})) as edge:
        edge.write_clients(clients_file({"bob": "", "carol": "role: king"}))
        await _until_error(edge, "clients.yaml:5: clients[1].role: must be user or ops, got 'king'")
        assert [await _status(edge, name) for name in ("alice", "bob")] == [200, 401]
        assert "clients.yaml:5" in edge.logs()
        assert 'convoy_edge_file_refused{file="clients.yaml"} 1.0' in await _edge_metrics(edge)
        edge.write_clients(clients_file({"bob": ""}))
        await _until_status(edge, 200, "bob")
        await until(lambda: _holds(not edge.status["error"]), "the error's end")
        assert 'convoy_edge_file_refused{file="clients.yaml"} 0.0' in await _edge_metrics(edge)


async def test_limits_change_live(pods: list[StubPod]) -> None:
    """A class of limits that changes, and one that comes with its client, hold at once."""
    async with running_edge(pods, clients=clients_file({"alice": ""})) as edge:
        assert [await _status(edge, "alice") for _ in range(4)] == [200] * 4
        edge.write_clients(clients_file({"alice": "class: tiny"}, "tiny: {requests_per_minute: 1, burst: 2}"))
        await edge.until_applied(edge.clients_file)
        assert [await _status(edge, "alice") for _ in range(3)] == [200, 200, 429]


async def test_a_live_setting_is_in_force_within_a_second(pods: list[StubPod], tmp_path: Path) -> None:
    """.env is followed: a time limit and a breaker hold without a restart; one that does not fit is refused with its line."""
    env_file = tmp_path / ".env"
    env_file.write_text("# mine\n")
    pods[0].behaviour = pods[1].behaviour = "hang"
    async with running_edge(pods, convoy_env_file=env_file, convoy_settings_of_the_shell="PORT") as edge:
        await edge.until_applied(env_file)
        begun = time.monotonic()
        _replace(env_file, "MAX_REQUESTS=1\n")
        await edge.until_applied(env_file)
        assert time.monotonic() - begun < PROMISED_SECONDS * MARGIN
        hanging = asyncio.create_task(_status(edge))
        await until(lambda: _has_seen(pods), "the request at a pod")
        assert await _status(edge) == 429
        _replace(env_file, "# mine\nMAX_REQUESTS=0\n")
        await _until_error(edge, ".env:2: MAX_REQUESTS=0: must be a whole number from 1 to 1000000")
        assert await _status(edge) == 429
        _replace(env_file, "FIRST_TOKEN_TIMEOUT_SECONDS=40\n")
        await _until_error(edge, ".env:1: FIRST_TOKEN_TIMEOUT_SECONDS=40 must be less than HANG_TIMEOUT_SECONDS=30")
        hanging.cancel()


async def test_routes_change_live_and_a_bad_file_is_refused_whole(pods: list[StubPod], tmp_path: Path) -> None:
    """Envoy's files are followed, too. What Envoy would apply in part is refused whole before it is written, with file and line."""
    folder = tmp_path / "envoy"
    shutil.copytree(ENVOY_DIR, folder)
    async with running_edge(pods, envoy_dir=folder) as edge:
        routes, clusters = (folder / "routes.yaml").read_text(), (folder / "clusters.yaml").read_text()
        _replace(folder / "routes.yaml", routes.replace("/v1/completions|/chat'", "/v1/completions|/chat|/talk'"))
        assert await _until_status(edge, 200, path="/talk") < PROMISED_SECONDS * MARGIN
        bad = clusters.replace("  connect_timeout: 1s   ", "  conect_timeout: 1s   ", 1).replace(
            "- max_connections: 4096", "- max_connections: 1"
        )
        line = next(number for number, text in enumerate(bad.splitlines(), 1) if "conect_timeout" in text)
        await edge.until_applied(folder / "routes.yaml")
        before = edge.status["written"]
        _replace(folder / "clusters.yaml", bad)
        await _until_error(edge, f"clusters.yaml: line {line}: ")
        assert edge.status["written"] == before
        _replace(folder / "routes.yaml", routes + "  - [")
        await _until_error(edge, "routes.yaml:")
        _replace(folder / "routes.yaml", routes.replace("name: generation_json", "name: generation_other"))
        await _until_error(edge, "routes.yaml: something that the edge sets there is missing")
        assert await _status(edge, path="/talk") == 200
        _replace(folder / "clusters.yaml", clusters)
        _replace(folder / "routes.yaml", routes)
        await _until_status(edge, 404, path="/talk")
        await until(lambda: _holds(not edge.status["error"]), "the error's end")


async def test_streams_outlive_every_change(pods: list[StubPod], tmp_path: Path) -> None:
    """Fifty streams, and twenty changes of clients, limits, pods, settings and routes beneath them: each stream is whole."""
    env_file, third = tmp_path / ".env", await StubPod("engine-3").start()
    env_file.write_text("")
    for pod in pods:
        pod.pause.clear()
    async with running_edge(pods, clients=clients_file({"alice": ""}), convoy_env_file=env_file) as edge:
        streams = [asyncio.create_task(_stream(edge)) for _ in range(50)]
        await until(lambda: _holds(sum(len(pod.seen) for pod in pods) == 50), "50 streams at the pods")
        for number in range(5):
            burst = 100 + number
            edge.write_clients(
                clients_file({"alice": "", f"other-{number}": ""}, f"standard: {{requests_per_minute: 600, burst: {burst}}}")
            )
            _replace(env_file, f"FIRST_TOKEN_TIMEOUT_SECONDS={20 + number}\nMAX_REQUESTS={1000 + number}\n")
            edge.write_pods([pod.entry() for pod in (pods if number % 2 else [*pods, third])])
            await _until_status(edge, 200, f"other-{number}")
            await edge.until_applied(env_file)
            _replace(env_file, f"EJECTION_SECONDS={5 + number}\n")
            await edge.until_applied(env_file)
        for pod in pods:
            pod.pause.set()
        whole = await asyncio.gather(*streams)
        assert whole == [True] * 50
        assert int(edge.status["written"]["limit_client"]) >= 5
    await third.stop()


async def _stream(edge: RunningEdge) -> bool:
    """Whether a stream came whole."""
    async with edge.session.post(f"{edge.url}/chat", data=b'{"stream": true}', headers=bearer("alice")) as response:
        return (await response.read()).endswith(b"data: [DONE]\n\n")


async def _edge_metrics(edge: RunningEdge) -> str:
    """What the edge tells Prometheus, asked where Prometheus is told to ask."""
    targets = json.loads((edge.state_dir / "prometheus" / "targets" / "edge.json").read_text())
    async with edge.session.get(f"http://{targets[0]['targets'][0]}/metrics") as response:
        return await response.text()


async def _has_seen(pods: list[StubPod]) -> bool:
    return any(pod.seen for pod in pods)


async def _holds(value: bool) -> bool:
    return value
