"""The edge at work: follows the source of pods, asks pods and Envoy, writes what changed, says what it did."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from services.edge.asking import ask_envoy, ask_pod
from services.edge.exposition import serving
from services.edge.files import write_json
from services.edge.inputs import blame
from services.edge.pods import Pod, RetryRule, endpoints_of, known_state
from services.edge.validation import InvalidConfigError
from services.edge.waiting import cancel, raise_failure, wait_for_one
from services.settings.reader import changeable
from services.telemetry.edge_metrics import EdgeMetrics
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.edge.asking import Running
    from services.edge.inputs import Inputs, Part
    from services.edge.pods import Endpoint
    from services.edge.publishing import Publisher
    from services.edge.sources import Source
    from services.pods_file import PodEntry

# How often, in seconds: is there news of pods; is a pod that is about to change there yet; is a settled one still what it was.
_SOURCE_INTERVAL = 0.1
_CHANGING_INTERVAL = 0.25
_STEADY_INTERVAL = 1.0
# How soon after a write Envoy should run it, and how often it is asked when nothing was written (it may have been started again).
_APPLY_INTERVAL = 0.2
_DRIFT_INTERVAL = 5.0
# After so many answers that differ Envoy is to read its files again: it refuses a route to a cluster whose pods were not checked yet.
_STIR_AT = {2, 5, 15, 50}


class Edge:
    """Keeps Envoy's files true. One instance a process; `run` until `stop` is set."""

    def __init__(self, publisher: Publisher, source: Source, inputs: Inputs) -> None:
        """Takes over what the edge before it wrote, so that its start changes nothing."""
        self._publisher = publisher
        self._source = source
        self._inputs = inputs
        self._log = get_logger()
        self._metrics = EdgeMetrics()
        self._metrics_address = ""
        self._pods: dict[PodEntry, Pod] = {}
        self._watchers: dict[PodEntry, asyncio.Task[None]] = {}
        self._has_pods = False
        self._num_crash_loops = 0
        self._last: tuple[list[Endpoint], int] | None = None
        self._retries = RetryRule(publisher.present_retries())
        self._changed = asyncio.Event()
        self._written = asyncio.Event()
        self._running: Running | None = None
        self._judged: list[str] = []
        self._errors: dict[str, str] = {}
        """What is wrong, by where it comes from: the pods' source, Envoy, a file."""

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; raises what a task of it raised, which is a bug."""
        written = self._publisher.write_all(self._publisher.present_endpoints(), self._retries.num_retries)
        self._log.info("edge.started", source=self._source.title, written=written)
        self._take_input_errors()
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            serving(self._metrics, self._publisher.settings) as self._metrics_address,
        ):
            follow = [self._follow_envoy(session), self._source.follow(session), self._follow_inputs()]
            tasks = [asyncio.create_task(one) for one in follow]
            try:
                while not stop.is_set():
                    self._follow_source(session)
                    self._write()
                    if self._changed.is_set():
                        self._changed.clear()
                        self._tell()
                    raise_failure([*tasks, *self._watchers.values()])
                    await wait_for_one([self._changed, stop], _SOURCE_INTERVAL)
            finally:
                await cancel([*tasks, *self._watchers.values()])
        self._log.info("edge.stopped")

    async def _follow_inputs(self) -> None:
        """Takes over what people change in settings, clients and Envoy's files; what Envoy would refuse is refused here, whole."""
        while True:
            await asyncio.sleep(_SOURCE_INTERVAL)
            fresh = await asyncio.to_thread(self._inputs.look)
            if fresh:
                await self._take_over(fresh)
            self._take_input_errors()

    async def _take_over(self, fresh: list[Part[Any]]) -> None:
        """Accepts new values if Envoy would, and writes what follows from them."""
        wanted, names = self._inputs.wanted(), [part.path.name for part in fresh]
        if any(part is not self._inputs.clients_part for part in fresh):  # whose every value was checked as it was read
            try:
                await asyncio.to_thread(self._publisher.check, wanted)
            except InvalidConfigError as error:
                blame(fresh, str(error))
                return
        for part in fresh:
            part.accept()
        self._publisher.adopt(self._inputs.wanted())
        self._last = None
        self._log.info("edge.taken_over", files=names)
        self._write()
        self._changed.set()

    def _follow_source(self, session: aiohttp.ClientSession) -> None:
        """Starts and ends a watcher per pod as the source has news. One that is missing or broken changes nothing."""
        try:
            entries = self._source.news()
        except ValueError as error:
            self._log.error("edge.pods_file_invalid", error=str(error))
            self._set_error("pods", str(error))
            return
        if self._source.num_crash_loops != self._num_crash_loops:
            self._num_crash_loops = self._source.num_crash_loops
            self._changed.set()
        if entries is None:
            return
        self._set_error("pods", "")
        self._has_pods = True
        self._publisher.write_targets(entries, self._metrics_address)
        known = self._publisher.present_endpoints()
        for entry in set(self._pods) - set(entries):
            del self._pods[entry]
            self._watchers.pop(entry).cancel()
        for entry in entries:
            if entry not in self._pods:
                self._pods[entry] = Pod(entry, known_state(entry, known))
                self._watchers[entry] = asyncio.create_task(self._watch(session, self._pods[entry]))
        self._log.info("edge.pods_listed", pods=[f"{entry.name}@{entry.host}:{entry.port}" for entry in entries])
        self._changed.set()

    async def _watch(self, session: aiohttp.ClientSession, pod: Pod) -> None:
        """Asks one pod again and again; a pod that hangs delays nobody but itself."""
        while True:
            before = pod.state
            answer = await ask_pod(session, pod.entry)
            if pod.hear(answer):
                self._log.info("edge.pod_state", pod=pod.entry.name, port=pod.entry.port, before=before, state=pod.state)
                self._changed.set()
            await asyncio.sleep(_STEADY_INTERVAL if (pod.state, answer) == ("ready", "ready") else _CHANGING_INTERVAL)

    def _write(self) -> None:
        """Writes what follows from what people decided and from the pods as they are; before the source has named any, from those known."""
        endpoints = endpoints_of(self._pods.values()) if self._has_pods else self._publisher.present_endpoints()
        num_retries = self._retries.decide(len(endpoints), time.monotonic())
        if (endpoints, num_retries) == self._last:
            return
        self._last = (endpoints, num_retries)
        written = self._publisher.write_all(endpoints, num_retries)
        if written:
            self._log.info("edge.written", pods=len(endpoints), num_retries=num_retries, **written)
            self._written.set()
            self._changed.set()

    async def _follow_envoy(self, session: aiohttp.ClientSession) -> None:
        """Asks Envoy what it runs after each write, and now and then; has it read the files again if it runs another version."""
        num_asked = 0
        while True:
            num_asked = 0 if self._written.is_set() else num_asked + 1
            self._written.clear()
            running = await ask_envoy(session, self._publisher.settings.admin_port)
            wanted = self._publisher.versions()
            self._compare(running, wanted)
            agreed = running is not None and running.versions == wanted
            if running is not None and not agreed and num_asked in _STIR_AT:
                self._publisher.stir()
            await wait_for_one([self._written], _DRIFT_INTERVAL if agreed else _APPLY_INTERVAL)

    def _compare(self, running: Running | None, wanted: dict[str, str]) -> None:
        """Logs what Envoy newly runs or refuses."""
        before, self._running = self._running, running
        if running == before:
            return
        if running is None:
            self._log.warning("edge.envoy_silent", admin_port=self._publisher.settings.admin_port)
        else:
            for name, count in running.refused.items():
                if before and count > before.refused[name]:
                    self._log.error("edge.envoy_refused", resource=name, version=wanted[name])
                    self._metrics.refused.labels(name).inc(count - before.refused[name])
                    self._errors["envoy"] = f"Envoy refused version {wanted[name]} of {name}; see envoy.log"
            if running.versions == wanted:
                self._log.info("edge.applied", **running.versions)
                self._errors.pop("envoy", None)
        self._tell()

    def _take_input_errors(self) -> None:
        """Tells of each file that became wrong, once."""
        found, judged = self._inputs.errors(), [part.judged for part in self._inputs.parts]
        if judged != self._judged:
            self._judged = judged
            self._changed.set()
        for path in {str(part.path) for part in self._inputs.parts}:
            self._metrics.tell_refused_file(path, is_refused=path in found)
            if found.get(path, "") != self._errors.get(path, ""):
                if path in found:
                    self._log.error("edge.file_refused", path=path, error=found[path])
                self._set_error(path, found.get(path, ""))

    def _set_error(self, source: str, text: str) -> None:
        if text != self._errors.get(source, ""):
            self._errors[source] = text
            self._changed.set()

    def _tell(self) -> None:
        """Writes `edge.json`, which `convoy status` reads, and sets the metrics."""
        running, clients = self._running, self._publisher.wanted.clients
        told: dict[str, Any] = {
            "updated_at": time.time(),
            "pods": [
                {"name": pod.entry.name, "host": pod.entry.host, "port": pod.entry.port, "pid": pod.entry.pid, "state": pod.state}
                for pod in self._pods.values()
            ],
            "num_crash_loops": self._num_crash_loops,
            "num_retries": self._retries.num_retries,
            "num_clients": len(clients.clients) if clients else None,
            "written": self._publisher.versions(),
            "envoy": {"runs": running.versions, "refused": running.refused} if running else None,
            "inputs": {
                str(part.path): {"sha256": part.sha256, "judged": part.judged, "error": part.error}
                for part in self._inputs.parts
                if part.sha256 or part.error
            },
            "settings": changeable(self._publisher.settings),
            "errors": [text for text in self._errors.values() if text],
            "error": "; ".join(text for text in self._errors.values() if text),
        }
        self._metrics.tell(told)
        write_json(self._publisher.state_dir / "edge.json", told)
