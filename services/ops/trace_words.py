"""Where a request's time went, in sentences. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.ops.trace_facts import FLAGS

if TYPE_CHECKING:
    from services.ops.trace_facts import Attempt, Request


def milliseconds(ms: float) -> str:
    """`0.3 ms`, `48 ms`, `12.4 s`: three digits at most tell enough."""
    if ms >= 10_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.1f} ms" if 0.05 <= ms < 9.95 else f"{ms:.0f} ms"


def where(request: Request) -> list[str]:
    """The sentences: what took how long, what became of each attempt, how it ended."""
    return [_shares(request), *_attempts(request), *_end(request)]


def _shares(request: Request) -> str:
    if not request.attempts and request.pod_ms is None:
        why = f" ({request.status}{f': {FLAGS[request.flags]}' if request.flags in FLAGS else ''})"
        return f"Envoy answered by itself after {milliseconds(request.total_ms)}{why}; no pod was asked."
    shares = _before_last(request) + _in_pod(request)
    rest = max(0.0, request.total_ms - sum(ms for ms, _ in shares))
    if not _in_pod(request):
        last = request.attempts[-1]
        shares.append((min(rest, last.ms), f"with {last.pod}"))
        rest -= min(rest, last.ms)
    shares.append((rest, "elsewhere (network, edge, HTTP)"))
    return f"Of {milliseconds(request.total_ms)}: {', '.join(f'{milliseconds(ms)} {what}' for ms, what in shares)}."


def _before_last(request: Request) -> list[tuple[float, str]]:
    if len(request.attempts) < 2:
        return []
    lost = "attempt 1" if len(request.attempts) == 2 else f"attempts 1 to {len(request.attempts) - 1}"
    return [(request.attempts[-1].start_ms, f"lost on {lost} and the pause before the retry")]


def _in_pod(request: Request) -> list[tuple[float, str]]:
    """The phases; for a request that has none, its whole time in the pod."""
    each = request.ms_per_token
    tokens = f"{request.output_tokens} token{'s' if request.output_tokens != 1 else ''}"
    speed = f"{tokens}, {milliseconds(each)} each" if each is not None else tokens
    queue = f"in the queue (place {request.queue_place})" if request.queue_place else "in the queue"
    phases = [(request.queue_ms, queue), (request.prefill_ms, "prefill"), (request.decode_ms, f"decode ({speed})")]
    known = [(ms, what) for ms, what in phases if ms is not None]
    if not known and request.pod_ms is not None:
        return [(request.pod_ms, f"in {request.pod or 'the pod'}")]
    return known


def _attempts(request: Request) -> list[str]:
    """One sentence for each attempt that was followed by another."""
    pairs = zip(request.attempts, request.attempts[1:], strict=False)
    return [_retried(earlier, later, request.is_cancelled) for earlier, later in pairs]


def _retried(earlier: Attempt, later: Attempt, is_cancelled: bool) -> str:
    failed = f"Attempt {earlier.number} failed after {milliseconds(earlier.ms)} ({_with_pod(earlier)})"
    pause = milliseconds(max(0.0, later.start_ms - earlier.start_ms - earlier.ms))
    if not later.error:
        return f"{failed}; the retry on {later.pod}, {pause} later, {'began well' if is_cancelled else 'answered'}."
    return f"{failed}; the retry on {later.pod}, {pause} later, failed too ({_with_pod(later)})."


def _with_pod(attempt: Attempt) -> str:
    return attempt.error if attempt.pod in attempt.error else f"{attempt.error or 'no answer'} from {attempt.pod}"


def _end(request: Request) -> list[str]:
    if request.is_cancelled:
        had = f", when {request.output_tokens} tokens were generated" if request.output_tokens else ""
        return [f"The client left after {milliseconds(request.total_ms)}{had}.", *_missing(request)]
    if request.error_type:
        who = request.attempts[-1].pod if request.attempts else request.pod
        verb = "refused it" if 400 <= request.status < 500 else "failed"
        why = ": ".join(part for part in (request.error_type, request.error_message.rstrip(".")) if part)
        return [f"{who} {verb}: {why}."]
    last = request.attempts[-1] if request.attempts else None
    if last and last.error and len(request.attempts) == 1:
        return [f"It failed: {_with_pod(last)}.", *_missing(request)]
    return _missing(request)


def _missing(request: Request) -> list[str]:
    last = request.attempts[-1] if request.attempts else None
    if last is None or last.has_pod_span or last.flags == "UF":
        return []
    return [f"No span of {last.pod} arrived: it died before it could send any, or they are still on their way."]
