"""The traces are in Jaeger's form, as recorded from the running stack, with what nobody reads left out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from services.ops.trace_facts import Request, describe, is_whole
from services.ops.trace_tree import decode, requests
from services.ops.trace_view import as_json, bar, draw
from services.ops.trace_words import milliseconds, where

TRACE = "0af7651916cd43dd8448eb211c80319c"
BEGAN_US = 1_795_521_406_974_000
ADDRESS = {"engine-1": "127.0.0.1:1001", "engine-2": "127.0.0.1:1002"}
POD_TAGS = {"span.kind": "server", "convoy.request_id": "mine", "http.route": "/v1/chat/completions", "http.request.method": "POST"}


def span(id_: str, parent: str, name: str, at_ms: tuple[float, float], process: str, **tags: object) -> dict[str, Any]:
    """One span; `at_ms` are its beginning and its end."""
    return {
        "traceID": TRACE,
        "spanID": id_,
        "operationName": name,
        "references": [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": parent}] if parent else [],
        "startTime": BEGAN_US + int(at_ms[0] * 1000),
        "duration": int((at_ms[1] - at_ms[0]) * 1000),
        "tags": [{"key": key, "type": "string", "value": value} for key, value in tags.items()],
        "logs": [],
        "processID": process,
        "warnings": None,
    }


def ingress(ends_ms: float, status: int, pod: str, flags: str = "-") -> dict[str, Any]:
    """Envoy's span of a request."""
    tags = {"span.kind": "server", "convoy.request_id": "mine", "convoy.pod": pod, "http.method": "POST", "response_flags": flags}
    url = "http://127.0.0.1:8000/v1/chat/completions?key=secret"
    return span("edge", "caller", "ingress", (0, ends_ms), "envoy", **tags, **{"http.status_code": str(status), "http.url": url})


def attempt(id_: str, at_ms: tuple[float, float], pod: str, status: int, flags: str = "-", **tags: object) -> dict[str, Any]:
    """Envoy's span of one try on one pod."""
    own = {"span.kind": "client", "convoy.request_id": "mine", "http.status_code": str(status), "response_flags": flags}
    return span(id_, "edge", "router engine egress", at_ms, "envoy", upstream_address=ADDRESS[pod], **own, **tags)


def served(parent: str, pod: str, began: float, phases: tuple[float, ...], tokens: int, **tags: object) -> list[dict[str, Any]]:
    """A pod's spans: server span, and queue, prefill, decode as far as `phases` has their ends."""
    attributes = POD_TAGS | {"http.response.status_code": 200, "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": tokens} | tags
    top = span(f"{parent}-pod", parent, "chat demo", (began, phases[-1]), pod, **attributes)
    if len(phases) > 2:
        first = {"timestamp": BEGAN_US + int(phases[1] * 1000), "fields": [{"key": "event", "value": "gen_ai.first_token"}]}
        top["logs"].append(first)
    own = [
        {"convoy.queue.place": 2 if phases[0] - began > 100 else 0},
        {"gen_ai.usage.input_tokens": 12},
        {"gen_ai.usage.output_tokens": tokens},
    ]
    spans, start = [top], began
    for name, end, values in zip(("queue", "prefill", "decode"), phases, own, strict=False):
        spans.append(span(f"{parent}-{name}", f"{parent}-pod", name, (start, end), pod, **values))
        start = end
    return spans


def trace(*spans: dict[str, Any]) -> bytes:
    """Jaeger's answer; in no order, as its own."""
    pods = {pod: {"serviceName": "engine", "tags": [{"key": "service.instance.id", "value": pod}]} for pod in ADDRESS}
    processes = {"envoy": {"serviceName": "envoy", "tags": []}, "caller": {"serviceName": "shop", "tags": []}, **pods}
    return json.dumps({"data": [{"traceID": TRACE, "spans": list(reversed(spans)), "processes": processes}], "errors": None}).encode()


def told(*spans: dict[str, Any], pods: dict[str, str] | None = None) -> Request:
    """The facts of the only request."""
    (top,) = requests(decode(trace(*spans))[TRACE])
    return describe(top, pods or {})


def lines(request: Request) -> list[str]:
    """What is printed, without the header's time."""
    return [line.rstrip() for line in draw(TRACE, request, 120).plain.split("\n")]


NORMAL = [ingress(413, 200, "engine-2"), attempt("a", (1, 412), "engine-2", 200)]
NORMAL += served("a", "engine-2", 2, (2, 23, 400), 56, **{"gen_ai.response.finish_reasons": '["length"]'})


def test_a_request_is_told_with_the_shares_of_its_time() -> None:
    """Header, tree in order of time, and one sentence whose parts add up to the whole."""
    request = told(*NORMAL)
    assert is_whole(request, is_from_edge=True)
    assert where(request) == [
        "Of 413 ms: 0 ms in the queue, 21 ms prefill, 377 ms decode (56 tokens, 6.9 ms each), 15 ms elsewhere (network, edge, HTTP)."
    ]
    printed = lines(request)
    assert printed[1] == "POST /v1/chat/completions → 200 by engine-2 in 413 ms · 1 attempt · 12 tokens in, 56 out · length"
    assert [line[: line.index("engine-2") if "engine-2" in line else 7].rstrip() for line in printed[4:10]] == [
        "request",
        "└─ attempt 1",
        "   └─ chat demo",
        "      ├─ queue",
        "      ├─ prefill",
        "      ├─ first token",
    ]
    assert "secret" not in "".join(printed)


def test_a_retry_names_both_pods() -> None:
    """The first attempt has no pod's span, for that pod is dead: the address is looked up. What it cost is said first."""
    spans = [ingress(700, 200, "engine-2"), attempt("a", (1, 201), "engine-1", 0, "UC", error="true")]
    spans += [attempt("b", (220, 699), "engine-2", 200), *served("b", "engine-2", 221, (221, 240, 690), 10)]
    request = told(*spans, pods={ADDRESS["engine-1"]: "engine-1"})
    assert where(request) == [
        (
            "Of 700 ms: 220 ms lost on attempt 1 and the pause before the retry, 0 ms in the queue, 19 ms prefill, "
            "450 ms decode (10 tokens, 50 ms each), 11 ms elsewhere (network, edge, HTTP)."
        ),
        "Attempt 1 failed after 200 ms (engine-1 closed the connection); the retry on engine-2, 19 ms later, answered.",
    ]
    assert "✗ engine-1 closed the connection" in lines(request)[5]
    assert ADDRESS["engine-1"] in where(told(*spans))[1], "an address that nobody knows stands for the pod"


def test_a_client_that_left_is_no_failure() -> None:
    """Envoy saw it (DC), the pod too; what it had generated is said."""
    left = {"timestamp": BEGAN_US + 1_202_000, "fields": [{"key": "event", "value": "convoy.cancelled"}]}
    pod = served("a", "engine-1", 1, (2, 53, 1202), 23, **{"http.response.status_code": 499})
    pod[0]["logs"].append(left)
    request = told(ingress(1202, 200, "engine-1", "DC"), attempt("a", (1, 1202), "engine-1", 200, canceled="true"), *pod)
    assert request.is_cancelled
    assert where(request)[1:] == ["The client left after 1202 ms, when 23 tokens were generated."]
    printed = lines(request)
    assert "200 by engine-1 in 1202 ms · client left" in printed[1]
    assert any("cancelled" in line and line.endswith("◆") for line in printed)


def test_what_a_pod_refused_is_told_in_its_words() -> None:
    """Type and message of the error; without phases the time in the pod counts as one."""
    error = {"error.type": "invalid_value", "otel.status_description": "max_tokens must be positive.", "http.response.status_code": 400}
    pod = span("p", "a", "POST /v1/chat/completions", (0.6, 1.1), "engine-2", **POD_TAGS | error)
    request = told(ingress(1.6, 400, "engine-2"), attempt("a", (0.3, 1.5), "engine-2", 400, error=True), pod)
    assert where(request) == [
        "Of 1.6 ms: 0.5 ms in engine-2, 1.1 ms elsewhere (network, edge, HTTP).",
        "engine-2 refused it: invalid_value: max_tokens must be positive.",
    ]
    assert any(line.endswith("✗ invalid_value: max_tokens must be positive.") for line in lines(request))


def test_two_full_queues_are_both_named() -> None:
    """Envoy marks the first attempt as cancelled and names no pod in it: it is a refusal all the same."""
    full = {"error.type": "queue_full", "otel.status_description": "1 requests run and 1 wait", "http.response.status_code": 429}
    spans = [ingress(21, 429, "engine-2", "URX"), attempt("a", (0.2, 2.8), "engine-1", 429, canceled="true", error=True)]
    spans += [*served("a", "engine-1", 1, (1.6,), 0, **full), attempt("b", (19, 20.8), "engine-2", 429, error=True)]
    spans += served("b", "engine-2", 19.6, (20,), 0, **full)
    request = told(*spans)
    assert not request.is_cancelled
    assert [known.error for known in request.attempts] == ["429 queue_full"] * 2
    assert where(request)[1:] == [
        (
            "Attempt 1 failed after 2.6 ms (429 queue_full from engine-1); "
            "the retry on engine-2, 16 ms later, failed too (429 queue_full from engine-2)."
        ),
        "engine-2 refused it: queue_full: 1 requests run and 1 wait.",
    ]


def test_waiting_in_the_queue_is_told_with_its_place() -> None:
    """Most of the time of this request."""
    spans = [ingress(1923, 200, "engine-1"), attempt("a", (0.2, 1922), "engine-1", 200)]
    request = told(*spans, *served("a", "engine-1", 4, (918, 968, 1921), 20))
    assert where(request)[0].startswith("Of 1923 ms: 914 ms in the queue (place 2), 50 ms prefill, 953 ms decode")


def test_envoy_alone() -> None:
    """A path that it knows nothing of, no pod that could be asked, and a pod whose spans died with it."""
    nowhere = told(ingress(0.2, 404, "edge"))
    assert is_whole(nowhere, is_from_edge=True)
    assert where(nowhere) == ["Envoy answered by itself after 0.2 ms (404); no pod was asked."]
    assert "(503: no healthy pod)" in where(told(ingress(0.2, 503, "edge", "UH")))[0]
    broken = told(ingress(53, 200, "engine-1", "UPE"), attempt("a", (0.2, 52), "engine-1", 200, "UPE", **{"convoy.pod": "engine-1"}))
    assert not is_whole(broken, is_from_edge=True)
    assert where(broken)[1:] == [
        "It failed: engine-1 broke off its answer.",
        "No span of engine-1 arrived: it died before it could send any, or they are still on their way.",
    ]


def test_a_request_sent_to_a_pod_directly() -> None:
    """Has no attempts; from the edge it would not be whole yet."""
    request = told(*served("", "engine-1", 0, (0, 50, 250), 5))
    assert is_whole(request, is_from_edge=False)
    assert not is_whole(request, is_from_edge=True)
    assert where(request) == [
        "Of 250 ms: 0 ms in the queue, 50 ms prefill, 200 ms decode (5 tokens, 50 ms each), 0 ms elsewhere (network, edge, HTTP)."
    ]


def test_each_request_of_a_callers_trace_is_told() -> None:
    """What lies above and beside the requests is the caller's own; a span that came twice counts once."""
    caller = span("caller", "", "buy", (0, 900), "caller")
    first, second = ingress(10, 404, "edge"), ingress(20, 404, "edge")
    second |= {"spanID": "edge-2", "startTime": BEGAN_US + 500_000}
    tops = requests(decode(trace(caller, span("x", "caller", "pay", (1, 2), "caller"), second, first, first))[TRACE])
    assert [top.duration_us for top in tops] == [10_000, 20_000]


def test_json_has_the_same_facts() -> None:
    """The sentences and the tree too."""
    shown = json.loads(as_json(TRACE, [told(*NORMAL)]))
    (request,) = shown["requests"]
    assert (shown["trace_id"], request["status"], request["decode_ms"], request["attempts"][0]["pod"]) == (TRACE, 200, 377, "engine-2")
    assert request["where"][0].startswith("Of 413 ms")
    assert request["tree"]["children"][0]["name"] == "attempt 1"


def test_no_trace_and_no_json_are_two_things() -> None:
    """Jaeger says 404 in JSON; what is not Jaeger says something else."""
    assert decode(b'{"data":null,"total":0,"errors":[{"code":404,"msg":"trace not found"}]}') == {}
    with pytest.raises(msgspec.DecodeError):
        decode(b"<html>")


@pytest.mark.parametrize(
    ("start", "end", "drawn"), [(0, 1, "████"), (0.5, 0.75, "  █"), (0.25, 0.25, " ▏"), (0.5, 0.65625, "  ▋"), (1, 1, "   ▏")]
)
def test_a_bar_is_never_nothing(start: float, end: float, drawn: str) -> None:
    """Exact to an eighth of a column, inside the line."""
    assert bar(start, end, 4) == drawn


@pytest.mark.parametrize(("ms", "text"), [(0, "0 ms"), (0.31, "0.3 ms"), (9.96, "10 ms"), (412.6, "413 ms"), (12_430, "12.4 s")])
def test_milliseconds_have_three_digits_at_most(ms: float, text: str) -> None:
    """More would not be read."""
    assert milliseconds(ms) == text
