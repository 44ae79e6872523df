"""The runner: parent of a machine's pods. It imports what they need, forks them, and starts again those that die or fall silent.

It touches no tensor, starts no thread and has no event loop. If it dies, its pods serve on; a new runner takes them out of service when
its own are ready.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from services import pods_file
from services.engine import orphans
from services.engine.backends import can_fork, check_model, preimport
from services.engine.generation import BackendError
from services.engine.places import Place
from services.pods_file import PodEntry, PodsFile
from services.telemetry.logging import configure, get_logger

if TYPE_CHECKING:
    from services.engine.children import How
    from services.settings import RunnerSettings

log = get_logger()

EXIT_FAILED = 1
MAX_PODS = 256
_TICK_SECONDS = 0.25
# After its own limit a pod is cut by the runner, so that a stop always ends.
_STOP_MARGIN_SECONDS = 5.0


class Runner:
    """Keeps PODS pods alive until SIGTERM (pods drain) or a second signal (they end at once).

    SIGUSR1 reads the wanted number of pods from STATE_DIR/pods_wanted.
    """

    def __init__(self, settings: RunnerSettings) -> None:
        """Finds the pods of an earlier runner that still live."""
        self._settings = settings
        self._wanted_path = Path(settings.state_dir) / "pods_wanted"
        self._file = Path(settings.state_dir) / pods_file.NAME
        self._orphans = [entry for entry in self._known() if orphans.is_alive(entry)]
        self._told_orphans = False
        self._places: list[Place] = []
        self._how: How = "exec"
        self._num_stop_signals = 0
        self._rescale = False

    def _known(self) -> tuple[PodEntry, ...]:
        try:
            return pods_file.read(self._file).pods
        except FileNotFoundError:
            return ()

    def run(self) -> int:
        """Until it is told to stop, or until the first pods cannot load their model; the exit code."""
        configure(self._settings.log_level, self._settings.log_format, "runner")
        self._listen_to_signals()
        self._how = self._choose_how()
        log.info("runner.started", pods=self._settings.pods, start=self._how, orphans=len(self._orphans), pid=os.getpid())
        self._publish()  # nobody shall take an earlier run's pods for ours
        try:
            check_model(self._settings)
        except BackendError as error:
            return self._give_up(str(error))
        if self._how == "fork":
            self._warm_up()
        try:
            self._scale(self._settings.pods)
            while not self._num_stop_signals:
                failure = self._tend()
                if failure:
                    return self._give_up(failure)
        except OSError as error:
            return self._give_up(f"a pod could not be started: {error}")
        self._stop(self._settings.drain_timeout_seconds + _STOP_MARGIN_SECONDS)
        return 0

    def _choose_how(self) -> How:
        forkable = can_fork(self._settings)
        if self._settings.pod_start == "fork" and not forkable:
            log.warning("runner.cannot_fork", reason="CUDA does not survive a fork, so the pods are executed")
        return "fork" if forkable and self._settings.pod_start != "exec" else "exec"

    def _warm_up(self) -> None:
        from services.engine import pod  # noqa: F401, PLC0415 - what every fork then has

        start = time.monotonic()
        preimport(self._settings)
        # What is here now lives as long as the pods: leave it out of their collections, which would copy its pages.
        gc.collect()
        gc.freeze()
        log.info("runner.imported", seconds=round(time.monotonic() - start, 1))

    def _listen_to_signals(self) -> None:
        self._wakes, writes = os.pipe()
        for end in (self._wakes, writes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        self._num_stop_signals += number in {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        self._rescale |= number == signal.SIGUSR1

    def _tend(self) -> str:
        """One round: start what is due, wait for news, look after every pod; a reason to give up, or nothing."""
        if self._rescale:
            self._rescale = False
            self._scale(self._wanted())
        started = [place.start_if_due() for place in self._places]
        if any(started):
            self._publish()
        self._wait()
        changed = [place.care() for place in self._places]
        failure = next((place.load_failure for place in self._places if place.load_failure), "")
        if failure and not self._orphans and not any(place.was_ready for place in self._places):
            return failure
        self._places = [place for place in self._places if not place.is_over]
        if self._replace_orphans() or any(changed):
            self._publish()
        return ""

    def _wait(self) -> None:
        """Until a pod says something, a signal comes, or a tick is over."""
        pipes = [place.child.pipe for place in self._places if place.child]
        ready, _, _ = select.select([self._wakes, *pipes], [], [], _TICK_SECONDS)
        if self._wakes in ready:
            with suppress(BlockingIOError):
                os.read(self._wakes, 512)

    def _wanted(self) -> int:
        text = self._wanted_path.read_text().strip() if self._wanted_path.exists() else ""
        if not text.isdigit() or not 1 <= int(text) <= MAX_PODS:
            log.error("runner.bad_scale", path=str(self._wanted_path), text=text[:100], allowed=f"a whole number from 1 to {MAX_PODS}")
            return len(self._places)
        return int(text)

    def _scale(self, number: int) -> None:
        """Adds places with the lowest free numbers, or retires the last ones."""
        taken = {place.number for place in self._places}
        free = (count for count in range(1, 3 * MAX_PODS) if count not in taken)
        staying = [place for place in self._places if not place.is_retiring]
        new = [Place(self._settings, next(free), self._how) for _ in range(number - len(staying))]
        self._places += new
        for place in staying[number:]:
            place.retire()

    def _replace_orphans(self) -> bool:
        """Lets an earlier runner's pods drain once all of ours are ready; whether one of them is gone."""
        if self._orphans and not self._told_orphans and all(place.is_ready for place in self._places if not place.is_retiring):
            self._told_orphans = True
            for entry in self._orphans:
                log.info("runner.orphan_drains", pod=entry.name, pid=entry.pid)
                orphans.send(entry, signal.SIGTERM)
        living = [entry for entry in self._orphans if orphans.is_alive(entry)]
        gone, self._orphans = len(living) < len(self._orphans), living
        return gone

    def _publish(self, error: str = "") -> None:
        entries = [entry for place in self._places if (entry := place.entry())]
        pods_file.write(self._file, PodsFile((*entries, *self._orphans), error))

    def _give_up(self, failure: str) -> int:
        """Ends the pods at once and tells why; the exit code."""
        for place in self._places:
            place.signal(signal.SIGKILL)
        self._stop(_STOP_MARGIN_SECONDS)
        self._publish(failure)
        log.error("runner.gave_up", reason=failure)
        print(f"engine: {failure}", file=sys.stderr, flush=True)
        return EXIT_FAILED

    def _stop(self, limit_seconds: float) -> None:
        """Retires every pod and waits for the last; a second signal, or the limit, kills them. Orphans drain by themselves."""
        log.info("runner.stopping", pods=len(self._places))
        for place in self._places:
            place.retire()
        for entry in self._orphans:
            orphans.send(entry, signal.SIGTERM)
        deadline = time.monotonic() + limit_seconds
        while any(not place.is_over for place in self._places) or any(orphans.is_alive(entry) for entry in self._orphans):
            self._wait()
            for place in self._places:
                place.care()
            if self._num_stop_signals > 1 or time.monotonic() > deadline:
                for place in self._places:
                    place.signal(signal.SIGKILL)
                for entry in self._orphans:
                    orphans.send(entry, signal.SIGKILL)
        self._places, self._orphans = [], []
        self._publish()
        log.info("runner.stopped")
