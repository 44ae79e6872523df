"""The runner: parent of a machine's pods. It imports what they need, forks them, and starts again those that die or fall silent.

It touches no tensor, starts no thread and has no event loop. If it dies, its pods serve on; a new runner replaces them one by one. On
request it replaces all pods likewise, and its own program before them (`succession.py`).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from services import pods_file
from services.engine.backends import check_model
from services.engine.children import how_of, threads_per_pod, warm_up
from services.engine.generation import BackendError
from services.engine.in_service import is_in_service
from services.engine.places import STOP_MARGIN_SECONDS, Place
from services.engine.requests import Requests
from services.engine.restarting import Restarts
from services.engine.rolling import Rolling
from services.engine.succession import SIGNALS, STOP_SIGNALS, Inheritance
from services.engine.takeover import Takeover
from services.pods_file import PodsFile
from services.settings.declared import MAX_PODS
from services.telemetry.logging import configure, get_logger

if TYPE_CHECKING:
    from services.engine.orphans import Orphan
    from services.engine.rolling import Which
    from services.pods_file import PodEntry
    from services.settings import RunnerSettings

log = get_logger()

EXIT_FAILED = 1
_TICK_SECONDS = 0.25


class Runner:
    """Keeps PODS pods alive until SIGTERM (pods drain) or a second signal (they end at once).

    SIGUSR1 has it read what `convoy scale` and `convoy restart pods` ask for.
    """

    def __init__(self, settings: RunnerSettings, inherited: Inheritance | None = None) -> None:
        """Finds the pods of an earlier runner that still live; those of an earlier program of this process are `inherited`."""
        self._settings = settings
        self._state_dir = Path(settings.state_dir)
        self._file = self._state_dir / pods_file.NAME
        self._requests = Requests(self._state_dir)
        self._inherited = inherited
        self._number = inherited.number if inherited else self._requests.number(settings.pods)
        known = self._known()
        self._takeover = Takeover(() if inherited else known.pods, settings, self._in_service)
        self._places: list[Place] = self._adopt(inherited) if inherited else []
        self._restarts = Restarts(known.roll, self._roll(inherited) if inherited else None)
        self._num_stop_signals = 0
        self._is_asked = inherited is not None  # it may have been cancelled meanwhile
        self._published: PodsFile | None = None

    def _known(self) -> PodsFile:
        try:
            return pods_file.read(self._file)
        except FileNotFoundError:
            return PodsFile(())

    def run(self) -> int:
        """Until it is told to stop, or until the first pods cannot load their model; the exit code."""
        configure(self._settings.log_level, self._settings.log_format, "runner")
        self._listen_to_signals()
        how = how_of(self._settings)
        log.info(
            "runner.started",
            pods=self._number,
            start=how,
            orphans=len(self._takeover.orphans),
            pid=os.getpid(),
            is_successor=self._inherited is not None,
        )
        if self._settings.pod_start == "fork" != how:
            log.warning("runner.cannot_fork", reason="CUDA does not survive a fork, so the pods are executed")
        self._publish()  # nobody shall take an earlier run's pods for ours
        if not self._inherited:
            try:
                check_model(self._settings)
            except BackendError as error:
                return self._give_up(str(error))
        if how == "fork":
            warm_up(self._settings)
        if not self._inherited:
            self._places += self._takeover.begin(range(1, self._number + 1), self._make, self._make_successor)
        while not self._num_stop_signals:
            failure = self._tend()
            if failure:
                return self._give_up(failure)
        self._stop(self._settings.drain_timeout_seconds + STOP_MARGIN_SECONDS)
        return 0

    def _listen_to_signals(self) -> None:
        self._wakes, writes = os.pipe()
        for end in (self._wakes, writes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # they wait where this program follows an earlier one

    def _on_signal(self, number: int, _: object) -> None:
        self._num_stop_signals += number in STOP_SIGNALS
        self._is_asked |= number == signal.SIGUSR1

    def _tend(self) -> str:
        """One round: start what is due, wait for news, look after every pod; a reason to give up, or nothing."""
        if self._is_asked:
            self._is_asked = False
            self._hear()
        for place in self._places:
            place.start_if_due()
        self._publish()
        self._wait()
        for place in self._places:
            place.care()
        failure = next((place.load_failure for place in self._places if place.load_failure), "")
        if failure and not self._takeover.orphans and not any(place.was_ready for place in self._places):
            return failure
        self._places = [place for place in self._places if not place.is_over]
        self._places += self._takeover.advance()
        self._advance_restart()
        return ""

    def _wait(self) -> None:
        """Until a pod says something, a signal comes, or a tick is over."""
        pipes = [place.child.pipe for place in self._places if place.child]
        ready, _, _ = select.select([self._wakes, *pipes], [], [], _TICK_SECONDS)
        if self._wakes in ready:
            with suppress(BlockingIOError):
                os.read(self._wakes, 512)

    def _hear(self) -> None:
        """Does what was asked for; a number waits until no restart is under way."""
        asked = self._requests.restart()
        if asked:
            self._restarts.ask(asked, self._settings, self._number, is_possible=not self._takeover.orphans)
        if not self._restarts.is_busy:
            self._scale(self._requests.number(self._number))

    def _advance_restart(self) -> None:
        """Goes on as the new program where the trial says that its pods would start; then replaces pod after pod."""
        asked = self._restarts.tried()
        if asked:
            places = tuple(place.hand_over() for place in self._places)
            self._restarts.succeed(Inheritance(asked=asked, before=self._settings, number=self._number, places=places))
        if self._restarts.rolling:
            self._places += self._restarts.rolling.advance()
        ended = self._restarts.look()
        if ended and self._inherited:
            if ended.has_succeeded:
                self._requests.keep(self._inherited.asked)
            else:
                self._settings = self._inherited.before
            self._is_asked = True  # a number may wait

    def _adopt(self, left: Inheritance) -> list[Place]:
        """The earlier program's pods."""
        self._requests.resume(left.asked)
        return [Place.adopt(left.before, how_of(left.before), record) for record in left.places]

    def _roll(self, left: Inheritance) -> Rolling:
        after = self._settings

        def make(which: Which, number: int) -> Place:
            return self._make(number, after if which == "after" else left.before, is_successor=True)

        return Rolling(left.asked, [place for place in self._places if not place.is_retiring], make, self._in_service)

    def _make(self, number: int, settings: RunnerSettings | None = None, *, is_successor: bool = False) -> Place:
        settings = settings or self._settings
        shared = structs.replace(settings, num_threads=threads_per_pod(settings, self._number))
        return Place(shared, number, how_of(settings), is_successor=is_successor)

    def _make_successor(self, number: int) -> Place:
        return self._make(number, is_successor=True)

    def _scale(self, number: int) -> None:
        """Adds places with the lowest free numbers, or retires the last ones."""
        self._number = number
        taken = {place.number for place in self._places}
        free = (count for count in range(1, 3 * MAX_PODS) if count not in taken)
        staying = sorted((place for place in self._places if not place.is_retiring), key=lambda place: place.number)
        self._places += [self._make(next(free)) for _ in range(number - len(staying))]
        for place in staying[number:]:
            place.retire()

    def _in_service(self, entry: PodEntry) -> bool:
        return is_in_service(self._state_dir, entry)

    def _publish(self, error: str = "") -> None:
        entries = [entry for place in self._places if (entry := place.entry())]
        orphans = [orphan.entry() for orphan in self._takeover.orphans]
        loops = tuple(loop for place in self._places if (loop := place.loop()))
        content = PodsFile((*entries, *orphans), error, loops, self._restarts.told)
        if content != self._published:
            self._published = content
            pods_file.write(self._file, content)

    def _give_up(self, failure: str) -> int:
        """Ends the pods at once and tells why; the exit code."""
        for place in self._places:
            place.signal(signal.SIGKILL)
        self._stop(STOP_MARGIN_SECONDS)
        self._publish(failure)
        log.error("runner.gave_up", reason=failure)
        print(f"engine: {failure}", file=sys.stderr, flush=True)
        return EXIT_FAILED

    def _stop(self, limit_seconds: float) -> None:
        """Retires every pod and waits for the last; a second signal, or the limit, kills them."""
        log.info("runner.stopping", pods=len(self._places))
        self._restarts.stop()
        everybody: list[Place | Orphan] = [*self._places, *self._takeover.orphans]
        for pod in everybody:
            pod.retire()
        deadline = time.monotonic() + limit_seconds
        while any(not pod.is_over for pod in everybody):
            self._wait()
            for place in self._places:
                place.care()
            if self._num_stop_signals > 1 or time.monotonic() > deadline:
                for pod in everybody:
                    pod.signal(signal.SIGKILL)
        self._places, self._takeover.orphans = [], []
        self._publish()
        log.info("runner.stopped")
