"""What a dashboard's queries answer: variables put in as Grafana does, one moment or a range asked from Prometheus."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping

_POINTS = 240
_SCRAPE_SECONDS = 5
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LABEL_VALUES = re.compile(r"label_values\((.+),\s*(\w+)\)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
TIMEOUT_SECONDS = 30.0


class NoAnswerError(Exception):
    """Prometheus is not there, or did not understand."""


@dataclass(frozen=True)
class Series:
    """One line: its labels and its points; a point that is not a number is a gap."""

    name: str
    labels: Mapping[str, str]
    times: list[float]
    values: list[float]

    @property
    def last(self) -> float:
        """The last value that is a number; NaN if there is none."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), math.nan)


@dataclass(frozen=True)
class Exemplar:
    """One request that fell into a bucket."""

    time: float
    value: float
    trace_id: str


@dataclass
class Prometheus:
    """A Prometheus, asked about one range of time."""

    client: httpx.Client
    """Knows where it answers."""
    start: float
    end: float
    choices: dict[str, list[str]] = field(default_factory=dict)
    """The values of each variable of the dashboard, all of them chosen."""

    @property
    def step(self) -> int:
        """Seconds from point to point."""
        return max(_SCRAPE_SECONDS, round((self.end - self.start) / _POINTS))

    def choose(self, variables: list[dict[str, Any]]) -> None:
        """Chooses all values of a dashboard's variables, in their order: a later one may name an earlier one."""
        self.choices = {}
        for variable in variables:
            found = _LABEL_VALUES.fullmatch(variable["query"])
            assert found, f"only label_values is understood: {variable['query']}"
            match, label = self.filled(found[1]), found[2]
            self.choices[variable["name"]] = self._get(f"label/{label}/values", {"match[]": match, "start": self.start, "end": self.end})

    def filled(self, text: str, step: int | None = None) -> str:
        """`text` with its variables filled in."""
        seconds = max(step or self.step, self.step)
        known = {"__range": f"{round(self.end - self.start)}s", "__interval": f"{seconds}s"}
        known["__rate_interval"] = f"{max(seconds + (step or _SCRAPE_SECONDS), 4 * (step or _SCRAPE_SECONDS))}s"
        known |= {name: "|".join(map(_escaped, values)) for name, values in self.choices.items()}
        return _VARIABLE.sub(lambda found: known[found[1] or found[2]], text)

    def ask(self, target: Mapping[str, Any]) -> list[Series]:
        """What one query of a panel answers."""
        expr = self._expr(target)
        if target.get("instant"):
            answer = self._get("query", {"query": expr, "time": self.end})
            found = [(one["metric"], [one["value"]]) for one in answer["result"]]
        else:
            answer = self._get("query_range", {"query": expr, "start": self.start, "end": self.end, "step": self.step})
            found = [(one["metric"], one["values"]) for one in answer["result"]]
        named = [(_named(target.get("legendFormat", ""), labels, expr), labels, points) for labels, points in found]
        return [Series(name, labels, [at for at, _ in points], [float(value) for _, value in points]) for name, labels, points in named]

    def exemplars(self, target: Mapping[str, Any]) -> list[Exemplar]:
        """The single requests behind a query."""
        answer = self._get("query_exemplars", {"query": self._expr(target), "start": self.start, "end": self.end})
        points = [point for series in answer for point in series["exemplars"]]
        return [Exemplar(point["timestamp"], float(point["value"]), point["labels"].get("trace_id", "")) for point in points]

    def _expr(self, target: Mapping[str, Any]) -> str:
        smallest = re.fullmatch(r"(\d+)s", target.get("interval", ""))
        return self.filled(target["expr"], int(smallest[1]) if smallest else None)

    def _get(self, path: str, params: Mapping[str, Any]) -> Any:
        try:
            told = self.client.get(f"/api/v1/{path}", params=params).json()
        except (httpx.HTTPError, ValueError) as error:
            raise NoAnswerError(f"{self.client.base_url} does not answer as Prometheus does: {error}") from error
        if told["status"] != "success":
            raise NoAnswerError(f"{told['error']}: {params}")
        return told["data"]


def _escaped(value: str) -> str:
    """A regular expression for just this value, as it stands in a string of a query."""
    return re.escape(value).replace("\\", "\\\\")


def _named(legend: str, labels: Mapping[str, str], expr: str) -> str:
    if legend:
        return _LEGEND.sub(lambda found: labels.get(found[1], ""), legend)
    return ", ".join(f"{name}={value}" for name, value in labels.items()) or expr
