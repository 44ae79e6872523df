"""Requests through Envoy as the real Jaeger and Prometheus tell of them."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import aiohttp
import pytest

from services.ops import supervisor_client
from services.ops.state import StateDir
from tests.stack.convoy import until
from tests.stack.observed import CHAT, Client, body

if TYPE_CHECKING:
    from tests.stack.observed import JaegerSpan, Observed

COMPLETIONS = "/v1/completions"
PHASES = ["queue", "prefill", "decode"]
ATTEMPT = "router engine egress"


def connected(spans: list[JaegerSpan]) -> JaegerSpan:
    """The root of spans that are one tree, each inside its parent (Envoy and pods read the same clock)."""
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_id not in by_id]
    assert [root.service for root in roots] == ["envoy"]
    for span in spans:
        parent = by_id.get(span.parent_id)
        if parent:
            assert parent.start - 0.002 <= span.start
            assert span.start + span.seconds <= parent.start + parent.seconds + 0.01
    return roots[0]


def by_name(spans: list[JaegerSpan], name: str) -> list[JaegerSpan]:
    """Those of a name, in the order in which they began."""
    return [span for span in spans if span.name == name]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_trace_whose_times_add_up(stack: Observed, stream: bool) -> None:
    """Envoy's span, its attempt, the pod's span and its phases: one tree, as long as the client waited, the phases as long as the pod's."""
    async with aiohttp.ClientSession() as session:
        status, trace_id, seconds = await Client(stack, session).ask(stream=stream)
    assert status == 200
    spans = stack.trace(trace_id, 6)
    root = connected(spans)
    (pod,) = by_name(spans, "chat demo")
    assert [span.name for span in spans if span.parent_id == pod.span_id] == PHASES
    assert root.seconds == pytest.approx(seconds, rel=0.1, abs=0.005)
    assert pod.seconds == pytest.approx(root.seconds, rel=0.1, abs=0.005)
    assert sum(span.seconds for span in spans if span.name in PHASES) == pytest.approx(pod.seconds, rel=0.1, abs=0.005)
    assert pod.tags["gen_ai.usage.output_tokens"] == 20
    assert pod.tags["convoy.request_id"] == root.tags["convoy.request_id"]
    assert root.tags["convoy.pod"] == pod.tags["convoy.pod"]
    assert "gen_ai.first_token" in pod.events


async def test_a_stream_that_its_client_left_is_a_trace_that_says_so(stack: Observed) -> None:
    """The pod's span has the event of the cancellation, and ends with it."""
    async with aiohttp.ClientSession() as session:
        trace_id = await Client(stack, session).leave()
    spans = stack.trace(trace_id, 6)
    connected(spans)
    (pod,) = by_name(spans, "chat demo")
    assert "convoy.cancelled" in pod.events
    assert pod.tags["http.response.status_code"] == 499


async def test_errors_and_refusals_are_traces(stack: Observed) -> None:
    """A bad value is one attempt and a pod's span with the error; a request that both pods refuse is two attempts with a refusal each."""
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)
        status, trace_id, _ = await client.ask(temperature=3)
        assert status == 400
        running = [asyncio.create_task(client.ask(max_tokens=100)) for _ in range(2)]
        await asyncio.to_thread(until_busy, stack, 2)
        refused, refused_id, _ = await client.ask()
        assert {status for status, _, _ in await asyncio.gather(*running)} == {200}
    spans = stack.trace(trace_id, 3)
    connected(spans)
    assert spans[-1].tags["error.type"] == "invalid_value"
    assert "temperature" in spans[-1].tags["otel.status_description"]
    assert refused == 429
    spans = stack.trace(refused_id, 7)
    connected(spans)
    assert [span.tags["http.status_code"] for span in by_name(spans, ATTEMPT)] == ["429", "429"]
    assert {span.tags["error.type"] for span in by_name(spans, "chat demo")} == {"queue_full"}


def until_busy(stack: Observed, slots: int) -> list[str]:
    """Waits until so many slots generate; the pods that they belong to."""
    until(lambda: len(stack.busy_pods()) == slots, lambda: f"{slots} pods at work, have {stack.busy_pods()}")
    return stack.busy_pods()


async def test_prometheus_counts_what_the_client_counted(stack: Observed) -> None:
    """Requests and tokens in Prometheus grow by exactly what was sent; exemplars lead to traces that exist."""
    tokens = "sum(llm_generation_tokens_total)"
    before = stack.total("llm_generation_tokens_total")
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)
        answers = [await client.ask(path=COMPLETIONS, prompt="Hello!", messages=None, max_tokens=3) for _ in range(8)]
    assert {status for status, _, _ in answers} == {200}
    stack.until_value(f'sum(llm_requests_total{{endpoint="{COMPLETIONS}", status="2xx"}})', 8)
    stack.until_value(tokens, before + 24)
    mine = {trace_id for _, trace_id, _ in answers}
    for series in ("gen_ai_server_request_duration_seconds_bucket", "traces_span_metrics_duration_seconds_bucket"):
        until(lambda series=series: mine & set(stack.exemplars(series)), lambda series=series: f"no exemplar of mine at {series}")  # type: ignore[misc]
        for trace_id in mine & set(stack.exemplars(series)):
            connected(stack.trace(trace_id, 6))


async def invent(stack: Observed, session: aiohttp.ClientSession, numbers: range) -> None:
    """Requests of which each has a model, a path, a key and an id that nobody else has."""
    limit = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        headers = {"authorization": f"Bearer key-{number}", "x-request-id": f"id-{number}", "user-agent": f"agent-{number}"}
        asked = body(model=f"model-{number}", user=f"user-{number}")
        async with limit:
            for path in (CHAT, f"/made/up/{number}", f"/v1/models/{number}"):
                async with session.post(stack.url + path, json=asked, headers=headers) as response:
                    assert response.status in {404, 405}

    await asyncio.gather(*(one(number) for number in numbers))


async def test_a_thousand_inventions_make_no_series(stack: Observed) -> None:
    """Models, paths, keys, ids and agents that clients make up are in no label: not of the pods, not of Envoy, not of the span metrics."""
    refused = f'sum(llm_requests_total{{endpoint="{CHAT}", status="4xx"}})'
    series = 'count({job=~"engine|envoy"})', 'count({__name__=~"traces_span_metrics.*|gen_ai.*"})'
    before = stack.total('llm_requests_total{endpoint="/v1/chat/completions",model="demo",status="4xx"}')
    async with aiohttp.ClientSession() as session:
        await invent(stack, session, range(50))
        stack.until_value(refused, before + 50)
        counts = [stack.settled(expression) for expression in series]
        await invent(stack, session, range(50, 1050))
        stack.until_value(refused, before + 1050)
    assert [stack.settled(expression) for expression in series] == counts


async def test_a_retried_request_shows_both_attempts(stack: Observed) -> None:
    """When a pod dies under a request, its trace has a broken attempt and a good one, and the pod that answered."""
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(Client(stack, session).ask())
        (dying,) = await asyncio.to_thread(until_busy, stack, 1)
        os.kill(stack.pid(dying), signal.SIGKILL)
        status, trace_id, _ = await asking
    assert status == 200
    spans = stack.trace(trace_id, 7)
    connected(spans)
    first, second = by_name(spans, ATTEMPT)
    assert "UC" in first.tags["response_flags"]
    assert second.tags["http.status_code"] == "200"
    (pod,) = by_name(spans, "chat demo")
    assert pod.parent_id == second.span_id
    assert pod.tags["convoy.pod"] == ({"engine-1", "engine-2"} - {dying}).pop()
    until(stack.convoy.ready, lambda: str(stack.convoy.status()))


async def test_a_collector_that_dies_costs_no_request(stack: Observed) -> None:
    """It is killed while requests run: all are answered, and traces arrive again when it is back."""
    async with aiohttp.ClientSession() as session:
        client = Client(stack, session)
        killed = stack.pid("otel-collector")
        os.kill(killed, signal.SIGKILL)
        assert [(await client.ask(max_tokens=2))[0] for _ in range(5)] == [200] * 5
        until(lambda: stack.pid("otel-collector") not in {0, killed} and stack.takes_spans(), lambda: str(stack.convoy.status()))
        assert stack.convoy.ready()
        _, trace_id, _ = await client.ask(max_tokens=2)
    connected(stack.trace(trace_id, 6))


async def test_traces_made_while_jaeger_was_away_arrive_later(stack: Observed) -> None:
    """Jaeger is stopped, a request's trace waits in the collector, and is there when Jaeger is back."""
    before = stack.log("otel-collector").count("Exporting failed")
    supervisor_client.stop(StateDir(stack.convoy.state_dir).socket, "jaeger")
    async with aiohttp.ClientSession() as session:
        _, trace_id, _ = await Client(stack, session).ask(max_tokens=2)
    until(lambda: stack.log("otel-collector").count("Exporting failed") > before, lambda: "the collector did not notice")
    supervisor_client.start(StateDir(stack.convoy.state_dir).socket, "jaeger")
    connected(stack.trace(trace_id, 6))
