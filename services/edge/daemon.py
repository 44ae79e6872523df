"""The edge at work: follows the source of pods, asks pods and Envoy, writes what changed, says what it did."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from services.edge.asking import ask_envoy, ask_pod
from services.edge.files import write_json
from services.edge.pods import Pod, RetryRule, endpoints_of, known_state
from services.telemetry.logging import get_logger

if TYPE_CHECKING:
    from services.edge.asking import Running
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


class Edge:
    """Keeps Envoy's files true. One instance a process; `run` until `stop` is set."""

    def __init__(self, publisher: Publisher, source: Source) -> None:
        """Takes over what the edge before it wrote, so that its start changes nothing."""
        self._publisher = publisher
        self._source = source
        self._log = get_logger()
        self._pods: dict[PodEntry, Pod] = {}
        self._watchers: dict[PodEntry, asyncio.Task[None]] = {}
        self._has_pods = False
        self._last: tuple[list[Endpoint], int] | None = None
        self._retries = RetryRule(publisher.present_retries())
        self._changed = asyncio.Event()
        self._written = asyncio.Event()
        self._running: Running | None = None
        self._error = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; raises what a task of it raised, which is a bug."""
        written = self._publisher.write_all(self._publisher.present_endpoints(), self._retries.num_retries)
        self._log.info("edge.started", source=self._source.title, written=written)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            tasks = [asyncio.create_task(self._follow_envoy(session)), asyncio.create_task(self._source.follow(session))]
            try:
                while not stop.is_set():
                    self._follow_source(session)
                    self._write()
                    if self._changed.is_set():
                        self._changed.clear()
                        self._tell()
                    _raise_failure([*tasks, *self._watchers.values()])
                    await _wait_for_one([self._changed, stop], _SOURCE_INTERVAL)
            finally:
                await _cancel([*tasks, *self._watchers.values()])
        self._log.info("edge.stopped")

    def _follow_source(self, session: aiohttp.ClientSession) -> None:
        """Starts and ends a watcher per pod as the source has news. One that is missing or broken changes nothing."""
        try:
            entries = self._source.news()
        except ValueError as error:
            self._log.error("edge.pods_file_invalid", error=str(error))
            self._set_error(str(error))
            return
        if entries is None:
            return
        self._set_error("")
        self._has_pods = True
        self._publisher.write_targets(entries)
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
        """Writes what follows from the pods as they are, if the source has named them."""
        if not self._has_pods:
            return
        endpoints = endpoints_of(self._pods.values())
        num_retries = self._retries.decide(len(endpoints), time.monotonic())
        if (endpoints, num_retries) == self._last:
            return
        self._last = (endpoints, num_retries)
        written = self._publisher.write_live(endpoints, num_retries)
        if written:
            self._log.info("edge.written", pods=len(endpoints), num_retries=num_retries, **written)
            self._written.set()
            self._changed.set()

    async def _follow_envoy(self, session: aiohttp.ClientSession) -> None:
        """Asks Envoy what it runs after each write, and now and then."""
        while True:
            self._written.clear()
            running = await ask_envoy(session, self._publisher.settings.admin_port)
            wanted = self._publisher.versions()
            self._compare(running, wanted)
            agreed = running is not None and running.versions == wanted
            await _wait_for_one([self._written], _DRIFT_INTERVAL if agreed else _APPLY_INTERVAL)

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
                    self._error = f"Envoy refused version {wanted[name]} of {name}"
            if running.versions == wanted:
                self._log.info("edge.applied", **running.versions)
        self._tell()

    def _set_error(self, text: str) -> None:
        if text != self._error:
            self._error = text
            self._tell()

    def _tell(self) -> None:
        """Writes `edge.json`, which `convoy status` reads."""
        running = self._running
        told: dict[str, Any] = {
            "updated_at": time.time(),
            "pods": [
                {"name": pod.entry.name, "host": pod.entry.host, "port": pod.entry.port, "pid": pod.entry.pid, "state": pod.state}
                for pod in self._pods.values()
            ],
            "num_retries": self._retries.num_retries,
            "written": self._publisher.versions(),
            "envoy": {"runs": running.versions, "refused": running.refused} if running else None,
            "error": self._error,
        }
        write_json(self._publisher.state_dir / "edge.json", told)


def _raise_failure(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()


async def _wait_for_one(events: list[asyncio.Event], timeout: float) -> None:
    """Waits until one of the events is set, at most `timeout` seconds."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
