"""Asks pods and Envoy over HTTP, briefly: ready or not, and how much they have done."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.pods_file import PodEntry

T = TypeVar("T")

# A loading or busy pod may be slow to answer; a dead one refuses at once.
_TIMEOUT_SECONDS = 1.0

OK = 200


class Readiness(Struct, frozen=True):
    """What a pod says about itself; `state` is loading, warming, ready, stalled, draining, stopped, or (said by us) unreachable."""

    pod: str = ""
    state: str = "unreachable"
    progress: str = ""


class Work(Struct, frozen=True):
    """What a pod has done since it started: counts, and requests in progress now."""

    requests: float = 0
    in_progress: float = 0
    tokens: float = 0


def readiness(pods: Sequence[PodEntry]) -> list[Readiness]:
    """Each pod's own word, in the order of `pods`, asked at the same time."""
    return _all(_readiness, pods)


def work(pods: Sequence[PodEntry]) -> list[Work | None]:
    """Each pod's counters, in the order of `pods`; None for one that does not answer."""
    return _all(_work, pods)


def metrics(pods: Sequence[PodEntry]) -> list[str | None]:
    """Each pod's /metrics as text, in the order of `pods`; None for one that does not answer."""
    return _all(_metrics, pods)


def has_healthy_pod(admin_port: int) -> bool:
    """Whether Envoy, asked on its admin port, knows a pod that may answer."""
    status, body = get("127.0.0.1", admin_port, "/stats?filter=^cluster.engine.membership_healthy$")
    return status == OK and body.strip().rpartition(b" ")[2] not in {b"", b"0"}


def is_ready(url: str) -> bool:
    """Whether a request through Envoy reaches a ready pod."""
    host = urlsplit(url)
    return get(host.hostname or "", host.port or 80, "/readyz")[0] == OK


def total(metrics: str, name: str) -> float:
    """The sum over all label sets of one metric in Prometheus' text format."""
    lines = (line for line in metrics.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.rpartition("}")[2].split()[0] if "}" in line else line.split()[1]) for line in lines)


def _readiness(pod: PodEntry) -> Readiness:
    _, body = get(pod.host, pod.port, "/readyz")
    try:
        return msgspec.json.decode(body, type=Readiness)
    except msgspec.DecodeError:
        return Readiness(pod.name)


def _work(pod: PodEntry) -> Work | None:
    text = _metrics(pod)
    if text is None:
        return None
    return Work(total(text, "llm_requests_total"), total(text, "llm_requests_in_progress"), total(text, "llm_generation_tokens_total"))


def _metrics(pod: PodEntry) -> str | None:
    status, body = get(pod.host, pod.port, "/metrics")
    return body.decode() if status == OK else None


def get(host: str, port: int, path: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> tuple[int, bytes]:
    """Status and body; status 0 if nobody answers in time."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _all(ask: Callable[[PodEntry], T], pods: Sequence[PodEntry]) -> list[T]:
    if not pods:
        return []
    with ThreadPoolExecutor(min(len(pods), 16)) as pool:
        return list(pool.map(ask, pods))
