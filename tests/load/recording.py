"""What Locust's users tell, gathered for the report: statistics of their own in Locust's tables, files and the exit code at the end."""

from __future__ import annotations

import datetime as dt
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from services.ops.load import report
from tests.load.asking import OUTCOME

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from locust.env import Environment

    from services.ops.load.arrivals import Stage
    from services.ops.load.outcome import Outcome
    from services.ops.load.report import Report


class Recorder:
    """Follows one Locust from start to stop, any number of times. Each run has a folder of its own below `--record`."""

    def __init__(self, environment: Environment, stages_of: Callable[[Namespace], Sequence[Stage]]) -> None:
        """Listens to the environment's events. Options are read when a run begins: Locust's page may have changed them."""
        self._environment = environment
        self._stages_of = stages_of
        self._stages: Sequence[Stage] = ()
        self._outcomes: list[Outcome] = []
        self._began = 0.0
        self._began_at = dt.datetime.now().astimezone()
        events = environment.events
        events.test_start.add_listener(self._start)
        events.request.add_listener(self._take)
        events.test_stop.add_listener(self._finish)

    @property
    def _options(self) -> Namespace:
        options: Namespace | None = self._environment.parsed_options
        assert options is not None
        return options

    def _start(self, **_told: Any) -> None:
        self._outcomes = []
        self._stages = self._stages_of(self._options)
        self._began, self._began_at = time.perf_counter(), dt.datetime.now().astimezone()

    def _take(self, context: dict[str, Any], **_told: Any) -> None:
        outcome: Outcome | None = context.get(OUTCOME)
        if outcome is None:
            return
        self._outcomes.append(outcome)
        # Beside Locust's own statistics, not through its request event: there they would count as requests, and halve every mean.
        if outcome.ttft is not None and outcome.first_token is not None:
            self._log("TTFT", outcome.kind, outcome.ttft * 1000)
            for gap in outcome.gaps:
                self._log("inter-token", outcome.kind, gap * 1000)
            if outcome.is_whole and outcome.ended > outcome.first_token:
                self._log("tokens/s", outcome.kind, outcome.tokens / (outcome.ended - outcome.first_token))

    def _log(self, statistic: str, kind: str, value: float) -> None:
        self._environment.stats.get(kind, statistic).log(value, 0)  # type: ignore[arg-type] # it takes fractions

    def _finish(self, **_told: Any) -> None:
        made = self._report()
        # Locust would take any error for a failed run; here the limits decide.
        self._environment.process_exit_code = 1 if made.missed else 0
        folder = Path(self._options.record) / self._began_at.strftime("%Y-%m-%dT%H-%M-%S")
        report.write(made, folder)
        for line in made.missed:
            print(f"load: missed: {line}", file=sys.stderr)  # noqa: T201 - Locust's log has its own reader
        print(f"load: {folder / 'index.html'}", file=sys.stderr)  # noqa: T201 - likewise

    def _report(self) -> Report:
        lasted = time.perf_counter() - self._began
        stages, ends, until = [], [], 0.0
        for stage in self._stages:
            # A run that was ended early has no later stages, and one that is cut short.
            if until < lasted:
                seconds = min(stage.seconds, lasted - until)
                stages.append(msgspec.structs.replace(stage, seconds=seconds))
                until += seconds
                ends.append(until)
        outcomes = [self._placed(outcome, ends) for outcome in self._outcomes]
        # From Locust's page they come as texts, and empty ones where nothing is wanted.
        given = {name: getattr(self._options, name) for name in report.Limits.__struct_fields__}
        limits = report.Limits(**{name: float(value) for name, value in given.items() if value not in {None, ""}})
        return report.make(
            outcomes,
            stages,
            limits,
            command=report.command_line(["locust", *sys.argv[1:]]),
            url=str(self._environment.host or self._options.host),
            began_at=self._began_at.isoformat(timespec="seconds"),
        )

    def _placed(self, outcome: Outcome, ends: Sequence[float]) -> Outcome:
        """The outcome with times since the load's begin, and its stage: the users' clock knows neither."""
        began = self._began
        sent = outcome.sent - began
        stage = next((number for number, end in enumerate(ends) if sent < end), len(ends) - 1)
        return msgspec.structs.replace(
            outcome,
            stage=stage,
            intended=sent,
            sent=sent,
            ended=outcome.ended - began,
            first_byte=None if outcome.first_byte is None else outcome.first_byte - began,
            first_token=None if outcome.first_token is None else outcome.first_token - began,
        )
