"""`convoy up` with the real collector, Jaeger and Prometheus, and how a test asks them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from services.ops import probe
from services.ops.tools import TOOLS, find
from tests.running import DEADLINE_SECONDS
from tests.stack.convoy import Convoy, until

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp


def need_tools() -> None:
    """Skips where the programs were not built; where CI says that they must be there, that is a failure."""
    missing = [tool.name for tool in TOOLS if find(tool, os.environ) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"not built: {', '.join(missing)}; .ci/run makes them")
    if missing:
        pytest.skip(f"not built: {', '.join(missing)}; make tools")


CHAT = "/v1/chat/completions"


def body(**more: object) -> dict[str, Any]:
    """A request of half a second."""
    return {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 20, "ignore_eos": True} | more


class Client:
    """Sends requests and counts what it got."""

    def __init__(self, stack: Observed, session: aiohttp.ClientSession) -> None:
        """Nothing was sent yet."""
        self.stack, self._session = stack, session

    async def ask(self, path: str = CHAT, **more: object) -> tuple[int, str, float]:
        """Status, trace id and seconds of one request, read to its end."""
        start = time.perf_counter()
        asked = {name: value for name, value in body(**more).items() if value is not None}
        async with self._session.post(self.stack.url + path, json=asked) as response:
            await response.read()
            return response.status, response.headers["x-trace-id"], time.perf_counter() - start

    async def leave(self) -> str:
        """The trace id of a stream that was left after its first chunk."""
        async with self._session.post(self.stack.url + CHAT, json=body(stream=True, max_tokens=2000)) as response:
            await response.content.readline()
            return response.headers["x-trace-id"]


@dataclass(frozen=True)
class JaegerSpan:
    """One span as Jaeger tells it; times in seconds."""

    name: str
    service: str
    span_id: str
    parent_id: str
    start: float
    seconds: float
    tags: dict[str, Any]
    events: tuple[str, ...]


class Observed:
    """A running stack and what watches it."""

    def __init__(self, state_dir: Path, **settings: str) -> None:
        """Starts it; all ports are free ones."""
        ports = dict.fromkeys(("JAEGER_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "OTLP_HTTP_PORT"), "0")
        self.convoy = Convoy(state_dir, OBSERVABILITY="auto", **ports, **settings)
        started = self.convoy.run("up", "--detach")
        assert started.returncode == 0, started.stderr
        rows = {row["name"]: row for row in self.convoy.status()["programs"]}
        self.url = rows["envoy"]["address"]
        self.jaeger, self.prometheus = rows["jaeger"]["address"], rows["prometheus"]["address"]

    def pid(self, name: str) -> int:
        """The process of a program or a pod."""
        pid: int = self.convoy.row(name)["pid"]
        return pid

    def log(self, name: str) -> str:
        """A program's log."""
        return (self.convoy.state_dir / "logs" / f"{name}.log").read_text()

    def takes_spans(self) -> bool:
        """Whether the collector listens."""
        host, _, port = self.convoy.row("otel-collector")["address"].removeprefix("http://").partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
        return False

    def total(self, name: str) -> float:
        """A metric's sum over the pods, asked of themselves."""
        return sum(self._totals(name).values())

    def busy_pods(self) -> list[str]:
        """The pods that generate something now."""
        return [pod for pod, value in self._totals("llm_slots_in_use").items() if value]

    def _totals(self, name: str) -> dict[str, float]:
        totals = {}
        for row in self.convoy.status()["pods"]:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{row['address']}/metrics", timeout=5) as answer:
                totals[row["name"]] = probe.total(answer.read().decode(), name)
        return totals

    def trace(self, trace_id: str, count: int) -> list[JaegerSpan]:
        """The spans of a trace in the order in which they began, when there are `count` of them."""
        found: list[JaegerSpan] = []

        def whole() -> bool:
            nonlocal found
            found = self._trace(trace_id)
            return len(found) >= count

        until(whole, lambda: f"{count} spans of {trace_id}, have {[span.name for span in found]}")
        assert len(found) == count, [(span.service, span.name) for span in found]
        return found

    def _trace(self, trace_id: str) -> list[JaegerSpan]:
        try:
            data = get_json(f"{self.jaeger}/api/traces/{trace_id}")["data"]
        except OSError:  # not there yet, or Jaeger itself is not
            return []
        services = {name: process["serviceName"] for name, process in data[0]["processes"].items()}
        spans = [_span(span, services) for span in data[0]["spans"]]
        return sorted(spans, key=lambda span: span.start)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's result vector."""
        answer = get_json(f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float:
        """The one value of an expression; 0 if there is none."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else 0.0

    def until_value(self, expression: str, wanted: float) -> None:
        """Waits until an expression has exactly this value."""
        until(lambda: self.value(expression) == wanted, lambda: f"{expression} is {self.value(expression)}, not {wanted}")

    def settled(self, expression: str) -> float:
        """The value of an expression once it is the same in three looks, a scrape apart."""
        looks: list[float] = []

        def is_settled() -> bool:
            scraped = self.value('min(timestamp(up{job=~"engine|envoy"}))')
            if not looks or scraped != looks[-1]:
                looks.append(scraped)
                values.append(self.value(expression))
            return len(values) >= 3 and len(set(values[-3:])) == 1

        values: list[float] = []
        until(is_settled, lambda: f"{expression} is now {values[-1:]}, now {values[-2:]}")
        return values[-1]

    def exemplars(self, selector: str) -> list[str]:
        """Trace ids of the exemplars of a series in the last minutes."""
        now = time.time()
        query = urllib.parse.urlencode({"query": selector, "start": now - 600, "end": now + 60})
        data = get_json(f"{self.prometheus}/api/v1/query_exemplars?{query}")["data"]
        return [exemplar["labels"]["trace_id"] for series in data for exemplar in series["exemplars"]]


def get_json(url: str) -> dict[str, Any]:
    """The JSON at a loopback address; raises `HTTPError`."""
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as response:  # noqa: S310 - our own processes
        answer: dict[str, Any] = json.loads(response.read())
        return answer


def _span(span: dict[str, Any], services: dict[str, str]) -> JaegerSpan:
    parents = [reference["spanID"] for reference in span["references"]]
    return JaegerSpan(
        name=span["operationName"],
        service=services[span["processID"]],
        span_id=span["spanID"],
        parent_id=parents[0] if parents else "",
        start=span["startTime"] / 1e6,
        seconds=span["duration"] / 1e6,
        tags={tag["key"]: tag["value"] for tag in span["tags"]},
        events=tuple(field["value"] for log in span["logs"] for field in log["fields"] if field["key"] == "event"),
    )
