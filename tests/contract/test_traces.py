"""A pod's spans as a collector gets them: names, parents, times, attributes, and what is left out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import pytest

from tests.otlp import Receiver, receiver
from tests.running import DEADLINE_SECONDS, RunningPods, running_pods

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "my-secret-prompt-7431"}], "max_tokens": 12, "seed": 5}
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SERVER, ERROR = 2, 2
"""OTLP's numbers of the kind and of the status code."""


@contextlib.asynccontextmanager
async def traced(**settings: object) -> AsyncIterator[tuple[RunningPods, Receiver, aiohttp.ClientSession]]:
    """A pod that sends its spans to a receiver, and a client of it."""
    async with receiver() as taken:
        with running_pods(1, otel_exporter_otlp_endpoint=taken.url, fake_tokens_per_second=200, **settings) as pods:
            async with aiohttp.ClientSession(pods.url) as session:
                yield pods, taken, session


def wanted_attributes(answer: dict[str, Any]) -> dict[str, Any]:
    """What the server span of the first test's request says of it and of `answer`."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "convoy",
        "gen_ai.request.model": "demo",
        "gen_ai.response.model": "demo",
        "gen_ai.response.id": answer["id"],
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 5,
        "gen_ai.request.stream": False,
        "gen_ai.request.stop_sequences": ["@"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.response.finish_reasons": ["length"],
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "convoy.request_id": "mine",
        "convoy.pod": "engine-1",
    }


async def test_a_request_is_one_connected_trace_with_true_times() -> None:
    """Server span below the caller's, its phases below it one after the other; together they are as long as the client waited."""
    async with traced() as (_, taken, session):
        start = time.time()
        async with session.post(
            CHAT, json=HELLO | {"temperature": 0.7, "stop": ["@"]}, headers=SAMPLED | {"x-request-id": "mine"}
        ) as response:
            answer = await response.json()
        waited = time.time() - start
        spans = await taken.trace(TRACE, 4)
    server = spans.pop("chat demo")
    assert (server.kind, server.parent_id, server.status[0]) == (SERVER, CALLER, 0)
    assert {span.parent_id for span in spans.values()} == {server.span_id}
    queue, prefill, decode = spans["queue"], spans["prefill"], spans["decode"]
    assert server.start <= queue.start <= queue.end <= prefill.start + 1e-3
    assert prefill.end == pytest.approx(decode.start, abs=1e-6)
    assert decode.end <= server.end + 1e-3
    assert server.end - server.start == pytest.approx(waited, rel=0.1, abs=0.015)
    assert decode.end - decode.start == pytest.approx(11 / 200, rel=0.5)
    assert server.events["gen_ai.first_token"] == pytest.approx(decode.start, abs=1e-6)
    assert response.headers["x-trace-id"] == TRACE
    assert response.headers["traceresponse"] == f"00-{TRACE}-{server.span_id}-01"
    wanted = wanted_attributes(answer)
    assert {name: value for name, value in server.attributes.items() if name in wanted} == wanted
    assert server.attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx(decode.start - server.start, abs=1e-3)
    assert {name: server.resource[name] for name in ("service.name", "service.instance.id")} == {
        "service.name": "engine",
        "service.instance.id": "engine-1",
    }
    assert "my-secret-prompt-7431" not in str(server)


async def test_prompt_and_answer_are_traced_only_when_that_is_wanted() -> None:
    """With OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true both texts are attributes in the conventions' form."""
    async with traced(otel_instrumentation_genai_capture_message_content="true") as (_, taken, session):
        async with session.post(CHAT, json=HELLO, headers=SAMPLED) as response:
            text = (await response.json())["choices"][0]["message"]["content"]
        attributes = (await taken.trace(TRACE, 4))["chat demo"].attributes
    parts = [{"type": "text", "content": "my-secret-prompt-7431"}]
    assert json.loads(attributes["gen_ai.input.messages"]) == [{"role": "user", "parts": parts}]
    written = [{"role": "assistant", "parts": [{"type": "text", "content": text}], "finish_reason": "length"}]
    assert json.loads(attributes["gen_ai.output.messages"]) == written


async def test_a_client_that_leaves_is_an_event_at_that_time() -> None:
    """The spans of a stream that its client closed end there, and say so; no error is claimed."""
    async with traced() as (_, taken, session):
        async with session.post(CHAT, json=HELLO | {"stream": True, "max_tokens": 4000, "ignore_eos": True}, headers=SAMPLED) as response:
            await response.content.readline()
            left = time.time()
        spans = await taken.trace(TRACE, 4)
    server = spans["chat demo"]
    assert server.events["convoy.cancelled"] == pytest.approx(left, abs=1.5)
    assert server.status[0] == 0
    assert spans["decode"].end <= server.end + 1e-3
    assert server.attributes["http.response.status_code"] == 499


@pytest.mark.parametrize(
    ("settings", "body", "count", "status", "code"),
    [
        ({"fake_failure": "error"}, HELLO, 3, 500, "engine_error"),
        ({"fake_failure": "error_after_first_token"}, HELLO | {"stream": True}, 4, 200, "engine_error"),
        ({}, HELLO | {"temperature": 3}, 1, 400, "invalid_value"),
    ],
)
async def test_errors_carry_type_and_message(settings: dict[str, object], body: dict[str, Any], count: int, status: int, code: str) -> None:
    """What the client was told stands in the span: the code as error.type, the message as the status' description."""
    async with traced(**settings) as (_, taken, session):
        async with session.post(CHAT, json=body, headers=SAMPLED) as response:
            raw = (await response.text()).strip()
        server = next(span for span in (await taken.trace(TRACE, count)).values() if span.kind == SERVER)
    error = json.loads(raw.rpartition("data: ")[2])["error"]
    assert server.attributes["error.type"] == error["code"] == code
    assert server.status == (ERROR, error["message"])
    assert server.attributes["http.response.status_code"] == response.status == status
    assert response.headers["x-trace-id"] == TRACE


async def test_a_request_that_waited_in_vain_shows_its_wait() -> None:
    """A request refused a slot has a queue span as long as its wait, and no other below it."""
    limits = {"max_concurrent_requests": 1, "queue_timeout_seconds": 0.5}
    async with traced(**limits) as (_, taken, session):
        async with session.post(CHAT, json=HELLO | {"stream": True, "max_tokens": 4000, "ignore_eos": True}) as running:
            await running.content.readline()
            async with session.post(CHAT, json=HELLO, headers=SAMPLED) as refused:
                assert refused.status == 429
        spans = await taken.trace(TRACE, 2)
    assert spans["queue"].end - spans["queue"].start == pytest.approx(0.5, abs=0.3)
    assert spans["chat demo"].attributes["error.type"] == "deadline_unreachable"


async def test_who_is_traced_is_the_callers_decision_then_a_share() -> None:
    """The caller's sampled flag is obeyed both ways; without one TRACE_SAMPLE_PERCENT decides. Every answer has its trace id."""
    async with traced(trace_sample_percent=0) as (pods, taken, session):
        for number, (headers, is_kept) in enumerate([({}, False), ({"traceparent": f"00-{TRACE}-{CALLER}-00"}, False), (SAMPLED, True)]):
            async with session.post(CHAT, json=HELLO | {"seed": number}, headers=headers) as response:
                assert len(response.headers["x-trace-id"]) == 32
                assert not headers or response.headers["x-trace-id"] == TRACE
            assert bool(is_kept) == response.headers["traceresponse"].endswith("-01")
        spans = await taken.trace(TRACE, 4)
        assert spans["chat demo"].attributes["gen_ai.request.seed"] == 2
        assert len(taken.spans) == 4
        records = [json.loads(line) for line in pods.log().splitlines() if '"request.done"' in line]
        assert [record["trace_id"] for record in records][1:] == [TRACE, TRACE]
        assert len(records[0]["trace_id"]) == 32


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
async def test_a_collector_that_is_gone_costs_no_request(fault: Literal["refuses", "hangs"]) -> None:
    """While nothing takes spans, requests are answered as ever and the lost spans are counted; later ones arrive."""
    async with traced(fake_first_token_ms=0, enable_backpressure=False) as (_, taken, session):
        taken.fault = fault

        async def ask(headers: dict[str, str]) -> int:
            async with session.post(CHAT, json=HELLO | {"max_tokens": 1}, headers=headers) as response:
                await response.read()
                return response.status

        async def dropped(reason: str) -> float:
            async with session.get("/metrics") as response:
                found = re.search(rf'llm_spans_dropped_total.*reason="{reason}".* (\S+)', await response.text())
            return float(found[1]) if found else 0.0

        assert set(await asyncio.gather(*(ask({}) for _ in range(1500)))) == {200}
        deadline = time.monotonic() + DEADLINE_SECONDS
        while min(await asyncio.gather(dropped("queue_full"), dropped("not_taken"))) < 1:
            assert time.monotonic() < deadline, "no dropped span is counted"
            await asyncio.sleep(0.05)
        taken.fault = ""
        assert await ask(SAMPLED) == 200
        assert set(await taken.trace(TRACE, 4)) == {"chat demo", "queue", "prefill", "decode"}
        lost = await dropped("queue_full") + await dropped("not_taken")
        assert len(taken.spans) + lost == 4 * 1501


async def test_without_a_collector_each_answer_still_has_its_trace_id(fake: RunningPods) -> None:
    """The caller's trace id, or one of its own, and never the mark that somebody recorded it."""
    async with aiohttp.ClientSession(fake.url) as session:
        for headers in (SAMPLED, {}, {"traceparent": "nonsense"}):
            async with session.post(CHAT, json=HELLO, headers=headers) as response:
                trace_id = response.headers["x-trace-id"]
                assert response.headers["traceresponse"].startswith(f"00-{trace_id}-")
                assert response.headers["traceresponse"].endswith("-00")
            assert (trace_id == TRACE) == (headers is SAMPLED)
            assert len(trace_id) == 32
