"""Envoy's files: valid as they lie and as rendered, and in step with the code beside them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from services.clients.declared import Client, ClientsFile, Limits
from services.edge import clients, rendering
from services.edge.__main__ import main
from services.edge.files import ENVOY_DIR, EnvoyFiles
from services.edge.pods import Endpoint
from services.edge.validation import InvalidConfigError, validate, validate_file
from services.openai import errors
from services.settings import EdgeSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = EnvoyFiles.load()

# What only the edge says: no exception of a pod's has these codes. Status, type.
EDGE_CODES = {
    "edge_overloaded": (429, "rate_limit_error"),
    "no_healthy_engine": (503, "server_error"),
    "upstream_timeout": (504, "server_error"),
    "unsupported_http_version": (426, "invalid_request_error"),
    "headers_too_large": (431, "invalid_request_error"),
    "not_implemented": (501, "invalid_request_error"),
}


def _tree(cls: type[errors.ApiError]) -> Iterator[type[errors.ApiError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _tree(sub)


def _mappers() -> list[dict[str, Any]]:
    mappers: list[dict[str, Any]] = rendering.connection_manager(FILES.bootstrap)["local_reply_config"]["mappers"]
    return mappers


def _status(mapper: dict[str, Any]) -> int | None:
    """The status that a mapper's answer has, where the mapper itself says it."""
    comparison = mapper["filter"].get("status_code_filter", {}).get("comparison", {})
    status: int | None = mapper.get("status_code") or (comparison["value"]["default_value"] if comparison.get("op") == "EQ" else None)
    return status


def test_files_validate_as_they_lie() -> None:
    """Envoy takes the files in `envoy/` without any rendering."""
    validate_file(ENVOY_DIR / "envoy.yaml", ENVOY_DIR.parent)


@pytest.mark.parametrize("num_pods", [0, 1, 2])
def test_rendering_validates_as_a_whole(num_pods: int, tmp_path: Path) -> None:
    """Envoy takes what is rendered, clusters and routes included, for none, one and two pods."""
    settings = EdgeSettings(admin_port=9901)
    pods = [Endpoint(f"engine-{port}", "127.0.0.1", port, "HEALTHY", f"engine-{port}") for port in range(1, num_pods + 1)]
    bootstrap = rendering.bootstrap(FILES, settings, ENVOY_DIR, tmp_path)
    responses = _responses(tmp_path) | {
        "routes": rendering.routes(FILES, settings, 0 if num_pods == 1 else 1),
        "endpoints": rendering.endpoints(FILES, pods),
    }
    validate(rendering.static(bootstrap, responses, FILES.keys_program))


def _responses(state_dir: Path) -> dict[str, Any]:
    settings = EdgeSettings(admin_port=9901)
    known = ClientsFile((Client(name="alice", keys=("0" * 64,)),), {"batch": Limits(60, 5)})
    return {
        "routes": rendering.routes(FILES, settings, 1),
        "clusters": rendering.clusters(FILES, settings, state_dir),
        "endpoints": rendering.endpoints(FILES, []),
        "keys": clients.keys(FILES, state_dir / "keys.lua"),
        "limit_client": clients.limit_client(FILES, known),
        "limit_address": clients.limit_address(FILES, known, settings),
    }


@pytest.mark.parametrize("part", rendering.RESOURCES)
def test_validation_sees_a_mistake_in_each_file(part: str, tmp_path: Path) -> None:
    """A field that does not exist is found in whichever file it stands, and Envoy's reason names it."""
    responses = _responses(tmp_path)
    resource = responses[part]["resources"][0]
    resource.get("typed_config", resource)["no_such_field"] = 1
    bootstrap = rendering.bootstrap(FILES, EdgeSettings(admin_port=9901), ENVOY_DIR, tmp_path)
    with pytest.raises(InvalidConfigError, match="no_such_field"):
        validate(rendering.static(bootstrap, responses, FILES.keys_program))


def test_validation_sees_a_mistake_in_the_keys_program(tmp_path: Path) -> None:
    """A program that does not parse is refused before Envoy runs it."""
    bootstrap = rendering.bootstrap(FILES, EdgeSettings(admin_port=9901), ENVOY_DIR, tmp_path)
    with pytest.raises(InvalidConfigError, match="script load error"):
        validate(rendering.static(bootstrap, _responses(tmp_path), FILES.keys_program + "\nend"))


def test_validate_command_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m services.edge validate` needs no ports and says that all is well."""
    assert main(["validate"]) == 0
    assert "valid" in capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(_mappers())))
def test_mapper_agrees_with_the_error_tree(number: int) -> None:
    """Each answer of Envoy's own has all four keys of OpenAI's error, and a status, type and code that the error tree knows."""
    mapper = _mappers()[number]
    known = {**EDGE_CODES, **{cls.code: (cls.status, cls.type) for cls in _tree(errors.ApiError)}}
    error = mapper["body_format_override"]["json_format"]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert mapper["body_format_override"]["content_type"] == "application/json"
    status, kind = known[error["code"]]
    assert error["type"] == kind
    assert _status(mapper) in {status, None}
    headers = {item["header"]["key"]: item["header"]["value"] for item in mapper["headers_to_add"]}
    assert headers["x-convoy-pod"] == "edge"
    assert "x-convoy-attempts" in headers
    # A limiter says itself when to come back.
    assert ("retry-after" in headers) == (status in {429, 503} and error["code"] != "rate_limit_exceeded")


def test_both_retry_policies_are_the_same() -> None:
    """Streams retry on what JSON answers retry on; only the first-token limit is theirs."""
    host = FILES.routes["resources"][0]["virtual_hosts"][0]
    stream = next(route for route in host["routes"] if route["name"] == "generation_stream")["route"]["retry_policy"]
    assert {key: value for key, value in stream.items() if key != "per_try_timeout"} == host["retry_policy"]


def test_files_hold_the_defaults_of_the_settings(tmp_path: Path) -> None:
    """The numbers that people read in the files are those that run when nothing is set."""
    settings = EdgeSettings(admin_port=9901)
    assert rendering.routes(FILES, settings, 1) == FILES.routes
    rendered, lying = rendering.clusters(FILES, settings, tmp_path), FILES.clusters
    rendered["resources"][0]["eds_cluster_config"] = lying["resources"][0]["eds_cluster_config"]
    assert rendered == lying
    listener = FILES.bootstrap["static_resources"]["listeners"][0]
    assert listener["address"]["socket_address"] == {"address": settings.host, "port_value": settings.port}


def test_lua_and_routes_agree_on_generation_paths() -> None:
    """The paths whose bodies are looked at are those whose routes ask for it."""
    lua = (ENVOY_DIR / "lua" / "request.lua").read_text()
    table = re.search(r"GENERATION = \{(.*)\}", lua)
    assert table
    host = FILES.routes["resources"][0]["virtual_hosts"][0]
    regexes = {route["match"]["safe_regex"]["regex"] for route in host["routes"] if route["name"].startswith("generation_")}
    assert regexes == {"|".join(re.findall(r'\["(.*?)"\]', table[1]))}


def test_pool_has_one_name_everywhere() -> None:
    """Cluster, endpoints and routes call the pool `engine`."""
    routes = FILES.routes["resources"][0]["virtual_hosts"][0]["routes"]
    assert {route["route"]["cluster"] for route in routes if "route" in route} == {"engine", "admin"}
    assert [cluster["name"] for cluster in FILES.clusters["resources"]] == ["engine", "admin", "collector"]
    assert FILES.endpoints["resources"][0]["cluster_name"] == "engine"


def test_no_limit_of_retries_is_reached_before_that_of_requests() -> None:
    """A retry counts until its answer is whole: a lower limit would be used up by long answers, and a dying pod's requests be lost."""
    (thresholds,) = FILES.clusters["resources"][0]["circuit_breakers"]["thresholds"]
    assert "retry_budget" not in thresholds
    assert thresholds["max_retries"] >= thresholds["max_requests"]
