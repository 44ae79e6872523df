"""What a drill is made on: a real runner with real pods, a real Envoy and edge before them, and the switch for the engine's faults."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.drills.load import Asking
from tests.faults import set_faults
from tests.running import running_pods
from tests.stack.harness import running_edge, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.running import RunningPods
    from tests.stack.harness import RunningEdge

# Time limits in their order, as short as a busy machine allows.
LIMITS: dict[str, Any] = {
    "queue_timeout_seconds": 0.5,
    "keepalive_seconds": 1,
    "first_token_timeout_seconds": 2,
    "hang_timeout_seconds": 5,
    "stall_timeout_seconds": 10,
    "request_timeout_seconds": 30,
}
SLOW_START: dict[str, Any] = {"fake_first_token_ms": 300}
"""So that some requests have no first token when the fault comes, and some have."""
PATIENT: dict[str, Any] = LIMITS | {"hang_timeout_seconds": 20, "stall_timeout_seconds": 25, "request_timeout_seconds": 60}
"""Pods that may stand still for ten seconds."""
SMALL: dict[str, Any] = LIMITS | {"max_model_len": 1_000_000, "max_concurrent_requests": 128}
"""Pods whose prompts may be larger than their memory."""


@dataclass
class Fleet:
    """Pods and edge as a drill sees them."""

    pods: RunningPods
    edge: RunningEdge
    faults_file: Path
    size: int

    def asking(self, **more: Any) -> Asking:
        """A client."""
        return Asking(self.edge.session, self.edge.url, **more)

    def fail(self, **faults: Mapping[str, Any]) -> None:
        """Replaces the faults: `engine_1={"failure": "error"}`, `all={...}`; nothing heals every pod."""
        names = {name: "*" if name == "all" else name.replace("_", "-") for name in faults}
        set_faults(self.faults_file, {names[name]: fault for name, fault in faults.items()})

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a pod's process."""
        os.kill(self.pods.entry(name)["pid"], number)

    async def count(self, name: str) -> int:
        """One of Envoy's counters or gauges of the pool."""
        full = f"cluster.engine.{name}"
        return int((await self.edge.stats(f"^{full}$".replace(".", r"\."))).get(full, 0))

    async def until_in_flight(self, count: int) -> None:
        """Waits until so many requests are at the pods."""

        async def there() -> bool:
            return await self.edge.active_requests() >= count

        await until(there, f"{count} requests in flight")

    async def pause_of(self, name: str) -> float:
        """Waits until Envoy leaves a pod out and takes it back; how long it was out."""

        async def out() -> bool:
            return name not in await self.edge.healthy_pods()

        async def back() -> bool:
            return not await out()

        await until(out, f"{name} ejected")
        begun = time.monotonic()
        await until(back, f"{name} back")
        return time.monotonic() - begun

    async def until_whole(self) -> None:
        """Waits until every pod that the runner shall have is in use again."""
        await self.edge.until_healthy(*[f"engine-{number + 1}" for number in range(self.size)])


@contextlib.asynccontextmanager
async def fleet(count: int, *, edit: Mapping[str, Mapping[str, str]] | None = None, **settings: Any) -> AsyncIterator[Fleet]:
    """`count` pods behind an edge, all in use; the edge follows the runner's pods file. `edit` changes a copy of Envoy's files."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-", dir="/tmp"))
    faults_file = folder / "faults.json"
    try:
        with running_pods(count, fake_faults_file=faults_file, **settings) as pods:
            source = f"file:{pods.state_dir / 'pods.json'}"
            async with running_edge([], edit=edit, pod_source=source, **settings) as edge:
                started = Fleet(pods, edge, faults_file, count)
                await started.until_whole()
                yield started
    finally:
        shutil.rmtree(folder)
