"""Every check: the list that people read, in the order in which it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from services.ops.doctor import callers, doors, drift, healing, limits, surroundings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.ops.doctor.rows import Finding
    from services.ops.doctor.visit import Visit


@dataclass(frozen=True)
class Check:
    """One row. `cure` is told if it fails.

    Checks with the same `turn` run one after the other. Those of the turn `all pods` take the whole lane and come first; the other turns
    then run side by side.
    """

    name: str
    run: Callable[[Visit], Awaitable[Finding]]
    cure: str
    turn: Literal["all pods", "one pod", "hung pod", "beside"] = "beside"
    needs_lane: bool = False


_RESTART = "`convoy restart envoy` starts it with what lies there now."

CHECKS = (
    Check("keys", callers.keys, "Compare envoy/keys.yaml and envoy/lua/keys.lua with the release.", needs_lane=True),
    Check(
        "identity",
        callers.identity,
        "envoy/envoy.yaml must remove x-client-* (early_header_mutation_extensions); then restart Envoy.",
        needs_lane=True,
    ),
    Check("port", callers.port, "Set HOST=127.0.0.1, or write a clients file (clients.example.yaml), and restart."),
    Check(
        "client limit", limits.client_limit, "envoy/limit_client.yaml must be enabled and enforced at 100 %, with a bucket for each class."
    ),
    Check(
        "body limit",
        limits.body,
        "envoy/envoy.yaml must have the filter body_size_limit before its Lua; then restart Envoy.",
        needs_lane=True,
    ),
    Check(
        "circuit breaker",
        limits.circuit,
        "envoy/clusters.yaml must have thresholds with max_requests, and envoy.yaml answer flag UO with 429.",
        "all pods",
        needs_lane=True,
    ),
    Check(
        "deadline",
        healing.deadline,
        "envoy/lua/request.lua must set x-envoy-upstream-rq-timeout-ms; then restart Envoy.",
        "all pods",
        needs_lane=True,
    ),
    Check(
        "first token",
        healing.first_token,
        "The route generation_stream in envoy/routes.yaml needs per_try_timeout and retries on `reset`.",
        "hung pod",
        needs_lane=True,
    ),
    Check("retry", healing.retry, "retry_policy in envoy/routes.yaml must retry 500 and 503 on another pod.", "one pod", needs_lane=True),
    Check(
        "ejection",
        healing.ejection,
        "outlier_detection in envoy/clusters.yaml must enforce consecutive_5xx and consecutive_gateway_failure at 100 %.",
        "one pod",
        needs_lane=True,
    ),
    Check("admin", doors.admin, "envoy/envoy.yaml: admin must listen on 127.0.0.1 and have its allow_paths; then restart Envoy."),
    Check("inner paths", doors.inner_paths, "envoy/routes.yaml must name each path that is open and end with a 404 for all others."),
    Check("trace", surroundings.trace, "`convoy logs otel-collector` and `convoy logs jaeger` may tell why; then `convoy status`."),
    Check("metrics", surroundings.metrics, "`convoy status` shows what does not run; the targets lie in STATE_DIR/prometheus/targets."),
    Check("clocks", surroundings.clocks, "Let every machine set its clock by NTP: deadlines and the ends of keys count on it."),
    Check("disk", surroundings.disk, "Free at least 1 GB there, or move STATE_DIR: logs, traces and metrics need room."),
    Check(
        "files open", surroundings.file_descriptors, "Raise the limit (`ulimit -n`, LimitNOFILE), or lower MAX_CONNECTIONS; then restart."
    ),
    Check("versions", surroundings.versions, "scripts/setup.sh installs what is pinned; then `convoy down`, `convoy up`."),
    Check("files", drift.files, "Mend the file that is named; the edge takes it over within a second. `convoy logs edge` tells more."),
    Check("settings", drift.settings, "Run the command that is named, or take the line out of .env."),
    Check("resources", drift.resources, "`convoy logs envoy` tells what Envoy refused; after `convoy restart envoy` it reads all anew."),
    Check("bootstrap", drift.bootstrap, _RESTART),
    Check("pods", drift.pods, "`convoy status` and `convoy logs edge` tell which of them is behind."),
    Check(
        "breakers", drift.breakers, "See the rows files and resources; if these are well, envoy/clusters.yaml has no default thresholds."
    ),
)
