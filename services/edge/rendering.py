"""Settings and pods become Envoy's files: pure functions from the data of `envoy/` to what is written. No input or output here."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.edge.files import EnvoyFiles, Json
    from services.edge.pods import Endpoint
    from services.settings import EdgeSettings

_OTLP_HTTP_PORT = 4318
STALL_GRACE_SECONDS = 5.0
"""By how much the pods' limit for silent streams comes first: they look so exactly (a twentieth of 60 s), and a busy one looks late."""

RESOURCES = ("limit_address", "limit_client", "keys", "clusters", "routes", "endpoints")
"""What Envoy re-reads while it runs, in the order in which it is written; each lies in `<state>/xds/<name>.json`.

A new class of limits is there before a client has it, a cluster before a route leads to it, and a second pod only when Envoy may retry.
"""


def resource_path(state_dir: Path, name: str) -> Path:
    """Where the live file of a resource lies, absolute."""
    return state_dir.resolve() / "xds" / f"{name}.json"


def seconds(value: float) -> str:
    """A duration as protobuf's JSON wants it: `0.25s`, `600s`."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def bootstrap(files: EnvoyFiles, settings: EdgeSettings, envoy_dir: Path, state_dir: Path) -> Json:
    """The bootstrap with its addresses, paths and limits set; what Envoy reads once, at its start."""
    config = deepcopy(files.bootstrap)
    config["admin"]["address"]["socket_address"]["port_value"] = settings.admin_port
    config["dynamic_resources"]["cds_config"]["path_config_source"] = _watched(state_dir, "clusters")
    listener = config["static_resources"]["listeners"][0]
    listener["address"]["socket_address"] = {"address": settings.host, "port_value": settings.port}
    _set_statistics(config, settings)
    _set_max_connections(config, settings)
    manager = connection_manager(config)
    manager["rds"]["config_source"]["path_config_source"] = _watched(state_dir, "routes")
    sampler = manager["tracing"]["provider"]["typed_config"]["sampler"]["typed_config"]["wrapped_sampler"]
    sampler["typed_config"]["sampling_percentage"]["numerator"] = round(settings.trace_sample_percent * 10_000)
    if not settings.otel_exporter_otlp_endpoint:
        _trace_nothing(manager["tracing"])
    for http_filter in manager["http_filters"]:
        if "config_discovery" in http_filter:
            http_filter["config_discovery"]["config_source"]["path_config_source"] = _watched(state_dir, http_filter["name"])
        options = http_filter.get("typed_config", {})
        if "max_request_bytes" in options:
            options["max_request_bytes"] = settings.max_body_bytes
        if "default_source_code" in options:
            source = options["default_source_code"]
            source["filename"] = str(envoy_dir.resolve() / Path(source["filename"]).relative_to("envoy"))
    return config


def routes(files: EnvoyFiles, settings: EdgeSettings, num_retries: int) -> Json:
    """The routes with time limits, body limit and the number of retries set."""
    response = deepcopy(files.routes)
    host = response["resources"][0]["virtual_hosts"][0]
    host["request_body_buffer_limit"] = settings.max_body_bytes
    host["retry_policy"]["num_retries"] = num_retries
    by_name = {route["name"]: route for route in host["routes"]}
    stream = by_name["generation_stream"]["route"]
    # The pod ends what stalls, and who does not read, with a reason; the edge only what a pod leaves hanging.
    stream["idle_timeout"] = seconds(max(settings.stall_timeout_seconds, settings.slow_client_timeout_seconds) + STALL_GRACE_SECONDS)
    stream["retry_policy"]["per_try_timeout"] = seconds(settings.first_token_timeout_seconds)
    stream["retry_policy"]["num_retries"] = num_retries
    by_name["generation_json"]["route"]["timeout"] = seconds(settings.request_timeout_seconds)
    for name in ("generation_stream", "generation_json"):
        options = by_name[name]["metadata"]["filter_metadata"]["envoy.filters.http.lua"]
        options["max_deadline_ms"] = round(settings.request_timeout_seconds * 1000)
    return response


def clusters(files: EnvoyFiles, settings: EdgeSettings, state_dir: Path) -> Json:
    """The clusters with the admin port, the pods' file and the collector's address set."""
    response = deepcopy(files.clusters)
    by_name = {cluster["name"]: cluster for cluster in response["resources"]}
    engine = by_name["engine"]
    engine["eds_cluster_config"]["eds_config"]["path_config_source"] = _watched(state_dir, "endpoints")
    _set_breakers(engine, settings)
    admin = by_name["admin"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
    admin["endpoint"]["address"]["socket_address"]["port_value"] = settings.admin_port
    if settings.otel_exporter_otlp_endpoint:
        address = urlsplit(settings.otel_exporter_otlp_endpoint)
        collector = by_name["collector"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
        collector["endpoint"]["address"]["socket_address"] = {"address": address.hostname, "port_value": address.port or _OTLP_HTTP_PORT}
    return response


def _set_breakers(engine: Json, settings: EdgeSettings) -> None:
    """How much the pool takes, and when a pod of it is left out."""
    breakers = engine["circuit_breakers"]
    most = settings.max_requests
    breakers["thresholds"][0] |= {"max_requests": most, "max_retries": most}
    # Above the requests: with as many, one request too many would wait for a connection and not be refused.
    breakers["thresholds"][0]["max_connections"] = most + settings.max_pending_requests
    breakers["thresholds"][0]["max_pending_requests"] = settings.max_pending_requests
    breakers["per_host_thresholds"][0]["max_connections"] = settings.max_pod_connections
    ejection = engine["outlier_detection"]
    ejection |= dict.fromkeys(("consecutive_gateway_failure", "consecutive_5xx"), settings.eject_after_errors)
    ejection["base_ejection_time"] = seconds(settings.ejection_seconds)
    ejection["max_ejection_time"] = seconds(max(300, settings.ejection_seconds))


def _set_max_connections(config: Json, settings: EdgeSettings) -> None:
    for monitor in config["overload_manager"]["resource_monitors"]:
        if "max_active_downstream_connections" in monitor["typed_config"]:
            monitor["typed_config"]["max_active_downstream_connections"] = settings.max_connections


def _set_statistics(config: Json, settings: EdgeSettings) -> None:
    """The second listener, or none where Prometheus reaches the admin port on loopback."""
    clients, statistics = config["static_resources"]["listeners"]
    if not settings.stats_address:
        config["static_resources"]["listeners"] = [clients]
        return
    port = int(settings.stats_address.rpartition(":")[2])
    statistics["address"]["socket_address"] = {"address": settings.host, "port_value": port}


def _trace_nothing(tracing: Json) -> None:
    """Nobody takes spans: none is recorded, whatever a caller decided; each request still has its trace id."""
    sampler = tracing["provider"]["typed_config"]["sampler"]
    tracing["provider"]["typed_config"]["sampler"] = sampler["typed_config"]["wrapped_sampler"]
    tracing["provider"]["typed_config"]["sampler"]["typed_config"]["sampling_percentage"]["numerator"] = 0


def endpoints(files: EnvoyFiles, pods: Iterable[Endpoint]) -> Json:
    """The pods as Envoy's endpoints."""
    response = deepcopy(files.endpoints)
    response["resources"][0]["endpoints"] = [{"lb_endpoints": [_lb_endpoint(pod) for pod in pods]}]
    return response


def targets(addresses: Mapping[str, str]) -> list[Json]:
    """Prometheus' target groups: one for each name, which becomes the label `instance`, so that a restart on another port is the same pod.

    A name that is there twice (an old process drains beside the new one) would be two targets of one series; the later one counts.
    """
    return [{"targets": [address], "labels": {"instance": name}} for name, address in sorted(addresses.items())]


def static(config: Json, responses: Mapping[str, Json], script: str) -> Json:
    """All files as one bootstrap without discovery: what `envoy --mode validate` can judge as a whole.

    `responses`: each of RESOURCES. `script`: what the filter `keys` runs, which need not be written yet.
    """
    whole = deepcopy(config)
    del whole["dynamic_resources"]
    manager = connection_manager(whole)
    del manager["rds"]
    manager["route_config"] = _without_type(responses["routes"]["resources"][0])
    for http_filter in manager["http_filters"]:
        if http_filter.pop("config_discovery", None):
            http_filter["typed_config"] = deepcopy(responses[http_filter["name"]]["resources"][0]["typed_config"])
        source = http_filter["typed_config"].get("default_source_code", {})
        if http_filter["name"] == "keys":
            del source["filename"]
            source["inline_string"] = script
    clusters = responses["clusters"]["resources"]
    whole["static_resources"]["clusters"] = [_static_cluster(cluster, responses["endpoints"]) for cluster in clusters]
    return whole


def connection_manager(config: Json) -> Json:
    """The HTTP connection manager of the clients' listener."""
    manager: Json = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _static_cluster(cluster: Json, endpoints: Json) -> Json:
    cluster = _without_type(cluster)
    if cluster["type"] == "EDS":
        del cluster["eds_cluster_config"]
        cluster |= {"type": "STATIC", "load_assignment": _without_type(endpoints["resources"][0])}
    return cluster


def _lb_endpoint(pod: Endpoint) -> Json:
    return {
        "health_status": pod.health,
        "endpoint": {"hostname": pod.name, "address": {"socket_address": {"address": pod.host, "port_value": pod.port}}},
        "metadata": {"filter_metadata": {"envoy.lb": {"hash_key": pod.hash_key}}},
    }


def _watched(state_dir: Path, name: str) -> Json:
    path = resource_path(state_dir, name)
    return {"path": str(path), "watched_directory": {"path": str(path.parent)}}


def _without_type(resource: Json) -> Json:
    return {key: deepcopy(value) for key, value in resource.items() if key != "@type"}
