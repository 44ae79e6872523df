"""The settings of the edge: where Envoy listens, who may call, what is too much, and when a pod is left out."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from services.settings.common import LIVE, RESTART_EDGE, RESTART_ENVOY, CapacitySettings, Port, Seconds


class EdgeSettings(CapacitySettings, frozen=True, kw_only=True):
    """The edge, which writes Envoy's files."""

    host: Annotated[str, Meta(min_length=1, description="Address on which Envoy listens for clients.")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port on which Envoy listens for clients.")] = 8000
    admin_port: Annotated[Port, Meta(description="Port of Envoy's admin interface, on loopback; 0 takes a free one.")] = 0
    pod_source: Annotated[
        str,
        Meta(
            pattern=r"^$|^file:.+$|^dns:[^:\s]+:\d{1,5}$",
            description="Where the edge learns the pods: `file:PATH`, or `dns:NAME:PORT` (a pod at each address of the name); "
            "empty means the runner's pods file in STATE_DIR.",
        ),
    ] = ""
    stats_address: Annotated[
        str,
        Meta(
            pattern=r"^$|^[^:\s]+:\d{1,5}$",
            description="NAME:PORT at which a Prometheus on another host reads Envoy's statistics: Envoy then listens there on HOST, for "
            "nothing else; empty: Prometheus reads the admin port.",
        ),
    ] = ""
    edge_port: Annotated[
        Port,
        Meta(
            description="Port of the edge's own metrics, on loopback (with STATS_ADDRESS: on HOST); 0 takes a free one.", extra=RESTART_EDGE
        ),
    ] = 0
    clients_file: Annotated[
        str,
        Meta(
            min_length=1,
            description="Who may call, see clients.example.yaml; the file itself is live. Without it: loopback only, and no key.",
        ),
    ] = "clients.yaml"
    allow_no_keys: Annotated[
        bool,
        Meta(
            description="Let HOST be more than loopback without a clients file: only where something else keeps strangers out, as in "
            "compose, which publishes on loopback."
        ),
    ] = False
    address_requests_per_second: Annotated[
        int,
        Meta(
            ge=0, le=1_000_000, description="With a clients file: requests of one address, with a key or without; 0: no limit.", extra=LIVE
        ),
    ] = 500
    address_burst: Annotated[int, Meta(ge=1, le=1_000_000, description="How many of them may come at once.", extra=LIVE)] = 1000
    max_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Connections of clients at a time; one more is refused. Each is a file.", extra=RESTART_ENVOY),
    ] = 8192
    max_requests: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Requests that the edge holds at a time; one more is 429 edge_overloaded. "
            "A net far below what pods hold together would refuse what they could queue.",
            extra=LIVE,
        ),
    ] = 16_384
    max_pending_requests: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Of them, requests that wait for a connection to their pod; one more is 429.", extra=LIVE),
    ] = 16_384
    max_pod_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Connections, and so requests, at a time to one pod; more wait at the edge for that pod. Above what a pod holds "
            "(running and queued), for its own queue knows how long it takes.",
            extra=LIVE,
        ),
    ] = 4096
    eject_after_errors: Annotated[
        int,
        Meta(ge=1, le=1000, description="Errors (5xx) of a pod in a row, after which it gets nothing for EJECTION_SECONDS.", extra=LIVE),
    ] = 5
    ejection_seconds: Annotated[
        Seconds, Meta(description="How long it gets nothing; twice, three times as long if broken again, at most 300 s.", extra=LIVE)
    ] = 5
    envoy_parent_shutdown_seconds: Annotated[
        int,
        Meta(ge=1, le=86_400, description="How long an Envoy that was replaced (`convoy restart envoy`) goes on with its streams."),
    ] = 660

    def problem(self) -> str | None:
        """A hot restart must not cut an answer that is within its time; for the rest see there."""
        if self.envoy_parent_shutdown_seconds <= self.request_timeout_seconds:
            return (
                f"ENVOY_PARENT_SHUTDOWN_SECONDS={self.envoy_parent_shutdown_seconds} must be greater than "
                f"REQUEST_TIMEOUT_SECONDS={self.request_timeout_seconds:g}"
            )
        return super().problem()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")
