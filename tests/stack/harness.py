"""A real Envoy and a real edge process in front of whatever pods a test names, in a state folder and on ports of their own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from services.envoy_binary import envoy_binary
from tests.stack.stub_pod import StubPod

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 30.0
"""How long a test waits for what should take a second: the machine may be busy."""


@dataclass
class RunningEdge:
    """Envoy and edge as a test sees them."""

    port: int
    admin_port: int
    state_dir: Path
    env: Mapping[str, str]
    envoy_dir: Path
    session: aiohttp.ClientSession
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def status(self) -> dict[str, Any]:
        """What the edge says in `edge.json`; empty before it said anything."""
        path = self.state_dir / "edge.json"
        told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return told

    @property
    def is_agreed(self) -> bool:
        """Whether Envoy runs what the edge has written, in the edge's word."""
        told = self.status
        return bool(told) and (told["envoy"] or {}).get("runs") == told["written"]

    def write_pods(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the pods file as the runner does."""
        fresh = self.state_dir / ".pods.json.new"
        fresh.write_text(json.dumps({"pods": list(entries)}))
        fresh.replace(self.state_dir / "pods.json")

    @property
    def clients_file(self) -> Path:
        """Where this edge looks for clients."""
        return Path(self.env["CLIENTS_FILE"])

    def write_clients(self, text: str) -> None:
        """Replaces the clients file by rename."""
        fresh = self.clients_file.with_name(".clients.new")
        fresh.write_text(text)
        fresh.replace(self.clients_file)

    async def until_applied(self, path: Path) -> None:
        """Waits until the edge has taken a file over as it lies, and Envoy runs what follows from it."""
        wanted = hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: ASYNC240 - a test's own small file

        async def applied() -> bool:
            return self.is_agreed and self.status.get("inputs", {}).get(str(path), {}).get("sha256") == wanted

        await until(applied, lambda: f"{path} in force; edge says {self.status}; logs: {self.logs()}")

    async def stats(self, pattern: str) -> dict[str, Any]:
        """Envoy's stats whose names match a regular expression."""
        params = {"filter": pattern, "format": "json"}
        async with self.session.get(f"http://127.0.0.1:{self.admin_port}/stats", params=params) as response:
            return {stat["name"]: stat["value"] for stat in json.loads(await response.text())["stats"] if "name" in stat}

    async def active_requests(self) -> int:
        """How many requests Envoy has passed on and not answered yet."""
        return int((await self.stats(r"^cluster\.engine\.upstream_rq_active$"))["cluster.engine.upstream_rq_active"])

    async def healthy_pods(self) -> set[str]:
        """The names of the pods that Envoy would use now."""
        async with self.session.get(f"http://127.0.0.1:{self.admin_port}/clusters?format=json") as response:
            clusters = json.loads(await response.text())["cluster_statuses"]
        hosts = [host for cluster in clusters if cluster["name"] == "engine" for host in cluster.get("host_statuses", [])]
        return {host["hostname"] for host in hosts if host["health_status"] == {"eds_health_status": "HEALTHY"}}

    async def until_healthy(self, *names: str) -> None:
        """Waits until Envoy uses exactly these pods."""

        async def exactly() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                return await self.healthy_pods() == set(names)
            return False

        await until(exactly, lambda: f"Envoy uses {names}; edge says {self.status}; logs: {self.logs()}")

    async def start_envoy(self) -> None:
        """Starts Envoy on what the edge has written."""
        command = [envoy_binary(), "-c", self.state_dir / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"]
        # Tests read the access log, which is written every 10 s by default.
        await self._start("envoy", [*command, "--log-level", "warn", "--file-flush-interval-msec", "50"])

    async def start_edge(self) -> None:
        """Starts the edge's daemon."""
        await self._start("edge", [sys.executable, "-m", "services.edge", "run", "--files", self.envoy_dir])

    async def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends a process (`envoy`, `edge`) by a signal; its exit code."""
        process = self.processes.pop(name)
        if process.returncode is None:
            process.send_signal(number)
        return await asyncio.wait_for(process.wait(), DEADLINE_SECONDS)

    def logs(self) -> str:
        """The last of both logs, for a failing test's message."""
        return "\n".join(path.read_text()[-4000:] for path in sorted(self.state_dir.glob("*.log")))

    async def _start(self, name: str, command: Sequence[object]) -> None:
        with (self.state_dir / f"{name}.log").open("ab") as log:
            words = [str(word) for word in command]
            self.processes[name] = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=self.env, stdout=log, stderr=log)


@contextlib.asynccontextmanager
async def running_edge(
    pods: Sequence[StubPod | Mapping[str, Any]] = (),
    *,
    edit: Mapping[str, Mapping[str, str]] | None = None,
    clients: str = "",
    envoy_dir: Path | None = None,
    **settings: object,
) -> AsyncIterator[RunningEdge]:
    """Envoy and edge in front of `pods` (stand-ins, or entries of a pods file), begun when every ready stand-in is in use.

    `clients` is the text of the clients file; there is none without. `settings` are environment variables by their lower-case names; `edit`
    changes a copy of Envoy's files: file -> old text -> new text; `envoy_dir` is a copy that the caller changes.
    """
    state_dir = Path(tempfile.mkdtemp(prefix="convoy-", dir="/tmp"))
    port, admin_port = free_ports(2)
    values = {"port": port, "admin_port": admin_port, "state_dir": state_dir, "clients_file": state_dir / "clients.yaml", **settings}
    env = {**os.environ, **{name.upper(): str(value) for name, value in values.items()}}
    envoy_dir = _edited_copy(state_dir, edit) if edit else envoy_dir or ROOT / "envoy"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        edge = RunningEdge(port, admin_port, state_dir, env, envoy_dir, session)
        try:
            if clients:
                edge.write_clients(clients)
            edge.write_pods([pod.entry() if isinstance(pod, StubPod) else pod for pod in pods])
            await run_edge_command(edge, "render")
            await edge.start_envoy()
            await edge.start_edge()
            await edge.until_healthy(*[pod.name for pod in pods if isinstance(pod, StubPod) and pod.state == "ready"])
            yield edge
        finally:
            for name in list(edge.processes):
                await edge.stop(name, signal.SIGKILL)
            shutil.rmtree(state_dir)


async def run_edge_command(edge: RunningEdge, command: str) -> None:
    """Runs `python -m services.edge COMMAND` to its end and demands that it went well."""
    words = [sys.executable, "-m", "services.edge", command, "--files", str(edge.envoy_dir)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=edge.env, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def until(condition: Callable[[], Awaitable[bool]], what: Callable[[], str] | str) -> None:
    """Waits until `condition` holds, or fails with `what` was waited for."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < end, f"not in {DEADLINE_SECONDS:g} s: {what if isinstance(what, str) else what()}"
        await asyncio.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _edited_copy(state_dir: Path, edit: Mapping[str, Mapping[str, str]]) -> Path:
    folder = state_dir / "envoy"
    shutil.copytree(ROOT / "envoy", folder)
    for name, changes in edit.items():
        path = folder / name
        text = path.read_text()
        for old, new in changes.items():
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        path.write_text(text)
    return folder
