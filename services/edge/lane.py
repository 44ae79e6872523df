"""The doctor's lane: a copy of the pool's cluster and of the routes that lead to it, for requests with the doctor's token only."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from services.edge import rendering
from services.edge.pods import Endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from services.clients.guests import Guests
    from services.edge.files import EnvoyFiles, Json

NAME = "doctor"
CLUSTER = "engine-doctor"
HEADER = "x-doctor-lane"


def clusters(response: Json, guests: Guests, state_dir: Path) -> Json:
    """The clusters and, while the doctor has pods, a copy of `engine` with those."""
    if not guests.pods:
        return response
    engine = next(cluster for cluster in response["resources"] if cluster["name"] == "engine")
    path = rendering.resource_path(state_dir, NAME)
    copy = deepcopy(engine) | {"name": CLUSTER}
    copy["eds_cluster_config"]["eds_config"]["path_config_source"] = {"path": str(path), "watched_directory": {"path": str(path.parent)}}
    if guests.max_requests is not None:
        copy["circuit_breakers"]["thresholds"][0]["max_requests"] = guests.max_requests
    return {**response, "resources": [*response["resources"], copy]}


def routes(response: Json, guests: Guests) -> Json:
    """The routes and, while the doctor has pods, copies of those of generations in front of their originals."""
    if not guests.pods:
        return response
    response = deepcopy(response)
    host = response["resources"][0]["virtual_hosts"][0]
    host["routes"] = [copy for route in host["routes"] for copy in ([_copy(route, guests, host), route] if _is_pool(route) else [route])]
    return response


def endpoints(files: EnvoyFiles, guests: Guests) -> Json:
    """The doctor's pods."""
    pods = [Endpoint(pod.name, pod.host, pod.port, "HEALTHY", pod.name) for pod in guests.pods]
    response = rendering.endpoints(files, pods)
    response["resources"][0]["cluster_name"] = CLUSTER
    return response


def _is_pool(route: Json) -> bool:
    return str(route["name"]).startswith("generation_")


def _copy(route: Json, guests: Guests, host: Json) -> Json:
    """A route that wants the token; it always retries, whatever the number of pods in the pool."""
    copy = deepcopy(route) | {"name": f"doctor_{route['name']}", "request_headers_to_remove": [HEADER]}
    copy["match"].setdefault("headers", []).append({"name": HEADER, "string_match": {"exact": guests.token}})
    copy["route"]["cluster"] = CLUSTER
    retries = deepcopy(copy["route"].get("retry_policy", host["retry_policy"]))
    copy["route"]["retry_policy"] = retries | {"num_retries": 1}
    return copy
