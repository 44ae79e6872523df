"""What the doctor finds where something around Convoy is wrong: against stand-ins for Envoy's admin and for Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from services.ops.doctor import callers, drift, surroundings
from services.ops.doctor.asking import Admin, Asker
from services.ops.doctor.target import Target
from services.ops.doctor.visit import Visit
from services.settings import EdgeSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.ops.doctor.rows import Finding

pytestmark = pytest.mark.asyncio

THRESHOLDS = {"priority": "DEFAULT", "max_requests": 7, "max_pending_requests": 16384, "max_connections": 32768, "max_retries": 16384}
HOST = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 4001}}}


class World:
    """An admin that tells what a test wants, on every address of this machine, and a doctor's visit to it."""

    def __init__(self, state_dir: Path) -> None:
        """Told and listening once `start` was awaited."""
        self.date = formatdate(usegmt=True)
        self.version = "0000/1.39.0/Clean/RELEASE/BoringSSL"
        self.state_dir = state_dir
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        """As Envoy's admin."""
        engine = {"name": "engine", "circuit_breakers": {"thresholds": [THRESHOLDS]}, "host_statuses": [HOST]}
        told: dict[str, Any] = {
            "/server_info": {"version": self.version},
            "/stats": {"stats": []},
            "/clusters": {"cluster_statuses": [engine]},
        }
        return web.json_response(told.get(request.path, {}), headers={"Date": self.date})

    def visit(self, session: aiohttp.ClientSession, *, env: dict[str, str] | None = None, **parts: str) -> Visit:
        """A visit without a lane."""
        settings = EdgeSettings(state_dir=str(self.state_dir), admin_port=self.port, max_connections=1_000_000)
        target = Target(f"http://127.0.0.1:{self.port}", settings, env or {}, os.getpid(), parts)
        return Visit(target, Asker(session, target.url, None), Admin(session, self.port), is_quick=False)

    def write(self, name: str, told: dict[str, Any]) -> None:
        """A file of the state folder."""
        path = self.state_dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(told))


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A stand-in of Envoy's admin."""
    made = World(tmp_path)
    app = web.Application()
    app.router.add_get("/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()  # noqa: S104 - that it can be reached from outside is one of the cases
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """The doctor's connections."""
    async with aiohttp.ClientSession() as made:
        yield made


def _is_red(finding: Finding, seen: str) -> None:
    assert (finding.mark, seen in finding.seen) == ("failed", True), finding


async def test_a_clock_that_is_off_is_red(world: World, session: aiohttp.ClientSession) -> None:
    """Envoy's Date, a minute ago; a clock that is right is not."""
    assert (await surroundings.clocks(world.visit(session))).mark == "ok"
    world.date = "Tue, 01 Jan 2030 00:00:00 GMT"
    _is_red(await surroundings.clocks(world.visit(session)), "envoy is off by")


async def test_another_envoy_than_pinned_is_red(world: World, session: aiohttp.ClientSession) -> None:
    """The version that runs, not the one that is installed."""
    _is_red(await surroundings.versions(world.visit(session)), "envoy 1.39.0 runs, pinned 1.40.0")


async def test_too_few_files_are_red(world: World, session: aiohttp.ClientSession) -> None:
    """Two million files for a million connections are more than a process may open."""
    _is_red(await surroundings.file_descriptors(world.visit(session)), "MAX_CONNECTIONS=1000000 may take 2000000")


async def test_a_full_disk_is_red(tmp_path: Path) -> None:
    """Below 1 GiB."""
    assert surroundings.room(2 << 30, 1 << 40, tmp_path).mark == "ok"
    _is_red(surroundings.room(1 << 29, 1 << 40, tmp_path), "0.5 GB of 1100 GB free")


async def test_a_target_that_is_down_is_red() -> None:
    """Its name and why; no target at all is no success."""
    up = {"labels": {"instance": "engine-1"}, "health": "up", "lastError": ""}
    down = {"labels": {"instance": "envoy"}, "health": "down", "lastError": "connection refused"}
    assert surroundings.scraped([up]).mark == "ok"
    _is_red(surroundings.scraped([up, down]), "envoy: connection refused")
    _is_red(surroundings.scraped([]), "no targets")


async def test_watchers_that_do_not_answer_are_red(world: World, session: aiohttp.ClientSession) -> None:
    """Prometheus and Jaeger are said to run, and do not."""
    nobody = "http://127.0.0.1:1"
    _is_red(await surroundings.metrics(world.visit(session, prometheus=nobody)), f"Prometheus at {nobody} does not answer")
    _is_red(await surroundings.trace(world.visit(session, jaeger=nobody)), "Jaeger")


async def test_an_open_port_without_keys_is_red(world: World, session: aiohttp.ClientSession) -> None:
    """HOST is loopback, and yet the port answers at another address."""
    if not callers.other_addresses():
        pytest.skip("this machine has no address but loopback")
    _is_red(await callers.port(world.visit(session)), f"port {world.port} answers at")


async def test_other_breakers_than_set_are_red(world: World, session: aiohttp.ClientSession) -> None:
    """The number that runs and the number that is set."""
    _is_red(await drift.breakers(world.visit(session)), "max_requests is 7, set to 16384")


async def test_a_setting_that_waits_is_red(world: World, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """A line of .env that is not what the processes were started with, and the command that puts it in force."""
    (tmp_path / ".env").write_text("PODS=3\n")
    (world.state_dir / "begun.json").write_text('{"settings": {"PODS": 2}}')
    visit = world.visit(session, env={"CONVOY_ENV_FILE": str(tmp_path / ".env"), "PODS": "2"})
    _is_red(await drift.settings(visit), "PODS=3 waits for `convoy scale`")


async def test_files_that_drift_are_red(world: World, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """What people wrote is not what the edge has; Envoy runs another version than is written, and other pods than the edge asks."""
    (tmp_path / "routes.yaml").write_text("changed")
    inputs = {str(tmp_path / "routes.yaml"): {"sha256": "of another", "error": ""}}
    world.write("edge.json", {"inputs": inputs, "pods": [{"name": "engine-1", "host": "127.0.0.1", "port": 4002}]})
    world.write("xds/routes.json", {"version_info": "8"})
    visit = world.visit(session)
    files, resources, pods = await asyncio.gather(drift.files(visit), drift.resources(visit), drift.pods(visit))
    _is_red(files, "routes.yaml is another one than the edge has in force")
    _is_red(resources, "routes: Envoy runs none, 8 is written")
    _is_red(pods, "edge: 127.0.0.1:4002; Envoy: 127.0.0.1:4001")
