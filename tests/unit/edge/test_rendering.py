"""Settings and pods become Envoy's files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from services import pods_file
from services.edge import rendering
from services.edge.__main__ import main
from services.edge.files import ENVOY_DIR, EnvoyFiles, publish, read_json, read_yaml
from services.edge.inputs import Wanted
from services.edge.pods import Endpoint
from services.edge.publishing import Publisher
from services.settings import EdgeSettings

if TYPE_CHECKING:
    from pathlib import Path

    from services.edge.files import Json

FILES = EnvoyFiles.load()
SETTINGS = EdgeSettings(
    host="0.0.0.0",  # noqa: S104 - a value to find again
    port=8123,
    admin_port=9123,
    max_body_bytes=4096,
    max_concurrent_requests=3,
    queue_capacity=4,
    first_token_timeout_seconds=20.5,
    stall_timeout_seconds=61,
    request_timeout_seconds=601,
)


def _publisher(settings: EdgeSettings) -> Publisher:
    return Publisher(Wanted(settings, FILES), ENVOY_DIR)


def _text(data: Json) -> str:
    return json.dumps(data)


def test_bootstrap_has_addresses_paths_and_limits(tmp_path: Path) -> None:
    """Each setting of the listener arrives where Envoy reads it, and no relative path is left."""
    config = rendering.bootstrap(FILES, SETTINGS, ENVOY_DIR, tmp_path)
    assert config["static_resources"]["listeners"][0]["address"]["socket_address"] == {"address": SETTINGS.host, "port_value": 8123}
    assert config["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 9123}
    assert '"max_request_bytes": 4096' in _text(config)
    assert f'"path": "{tmp_path}/xds/clusters.json"' in _text(config)
    assert f'"path": "{tmp_path}/xds/routes.json"' in _text(config)
    assert f'"filename": "{ENVOY_DIR}/lua/request.lua"' in _text(config)
    assert '"envoy/' not in _text(config)


@pytest.mark.parametrize("num_retries", [0, 1])
def test_routes_have_limits_and_retries(num_retries: int) -> None:
    """Time limits reach their own kind of route, and retries both of the places that hold them."""
    host = rendering.routes(FILES, SETTINGS, num_retries)["resources"][0]["virtual_hosts"][0]
    by_name = {route["name"]: route.get("route") for route in host["routes"]}
    stream, answer = by_name["generation_stream"], by_name["generation_json"]
    assert (stream["timeout"], stream["idle_timeout"], stream["retry_policy"]["per_try_timeout"]) == ("0s", "66s", "20.5s")
    assert (answer["timeout"], answer["idle_timeout"]) == ("601s", "0s")
    assert host["request_body_buffer_limit"] == 4096
    assert {host["retry_policy"]["num_retries"], stream["retry_policy"]["num_retries"]} == {num_retries}


def test_clusters_name_admin_and_collector(tmp_path: Path) -> None:
    """The admin port is set, and where spans go if anybody takes them."""
    assert '"port_value": 9123' in _text(rendering.clusters(FILES, SETTINGS, tmp_path))
    traced = msgspec.structs.replace(SETTINGS, otel_exporter_otlp_endpoint="http://spans:4999/")
    assert '{"address": "spans", "port_value": 4999}' in _text(rendering.clusters(FILES, traced, tmp_path))


@pytest.mark.parametrize(("endpoint", "percent", "numerator"), [("http://x:1", 12.5, 125_000), ("http://x:1", 0, 0), ("", 100, 0)])
def test_the_share_of_traces_is_set(tmp_path: Path, endpoint: str, percent: float, numerator: int) -> None:
    """TRACE_SAMPLE_PERCENT in millionths; nothing where nobody takes spans, whatever callers decided."""
    settings = msgspec.structs.replace(SETTINGS, otel_exporter_otlp_endpoint=endpoint, trace_sample_percent=percent)
    text = _text(rendering.bootstrap(FILES, settings, ENVOY_DIR, tmp_path))
    assert f'"sampling_percentage": {{"numerator": {numerator}, "denominator": "MILLION"}}' in text
    assert ("parent_based" in text) == bool(endpoint)


def test_rendering_leaves_the_files_data_alone(tmp_path: Path) -> None:
    """Rendering twice gives the same; nothing of the first remains in the second."""
    rendering.routes(FILES, SETTINGS, 0)
    rendering.clusters(FILES, SETTINGS, tmp_path)
    assert EnvoyFiles.load() == FILES


@pytest.mark.parametrize(("value", "text"), [(0.0001, "0.0001s"), (1, "1s"), (2.5, "2.5s"), (86_400, "86400s")])
def test_seconds_are_protobufs(value: float, text: str) -> None:
    """Small and large durations are written without an exponent, and never as 0."""
    assert rendering.seconds(value) == text


def test_publish_counts_versions_and_keeps_unchanged_files(tmp_path: Path) -> None:
    """The same content is not written again; another one counts the version up from what the file holds."""
    path = tmp_path / "endpoints.json"
    assert publish(path, {"resources": [1]}) == 1
    before = path.stat()
    assert publish(path, {"resources": [1]}) is None
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert publish(path, {"resources": [2]}) == 2
    assert read_json(path) == {"resources": [2], "version_info": "2"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["endpoints.json"]


def test_publisher_writes_only_what_changed(tmp_path: Path) -> None:
    """A second edge with the same settings and pods writes nothing; a new pod changes only the endpoints."""
    pods = [Endpoint("engine-1", "127.0.0.1", 1, "HEALTHY", "engine-1")]
    settings = EdgeSettings(state_dir=str(tmp_path), admin_port=1)
    assert _publisher(settings).write_all(pods, 1) == dict.fromkeys(rendering.RESOURCES, 1)
    again = _publisher(settings)
    assert again.write_all(again.present_endpoints(), again.present_retries()) == {}
    assert again.write_all([*pods, Endpoint("engine-2", "127.0.0.1", 2, "HEALTHY", "engine-2")], 1) == {"endpoints": 2}
    assert again.write_all(again.present_endpoints(), 0) == {"routes": 2}
    assert again.present_retries() == 0


def test_yaml_loader_leaves_ignored_keys_out(tmp_path: Path) -> None:
    """A key tagged `!ignore` holds anchors for others, as it does for Envoy."""
    path = tmp_path / "a.yaml"
    path.write_text("!ignore shared:\n- &one {a: 1}\nb: *one\n")
    assert read_yaml(path) == {"b": {"a": 1}}


@pytest.mark.parametrize("text", ["", "{", '{"pods": [{"name": "engine-1"}]}', '{"pods": [{"name": "a", "host": "b", "port": "x"}]}'])
def test_broken_pods_file_is_named(tmp_path: Path, text: str) -> None:
    """What is wrong with a pods file is said with its path."""
    path = tmp_path / "pods.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"pods\.json"):
        pods_file.read(path)


def test_port_zero_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a port for Envoy's admin nothing is written, and one line says what to set."""
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("ADMIN_PORT", "0")
    assert main(["render"]) == 1
    assert capsys.readouterr().err.startswith("edge: ADMIN_PORT=0: ")
    assert list(tmp_path.iterdir()) == []


def test_render_keeps_only_listed_pods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before Envoy starts, pods of an earlier run are forgotten unless the pods file still names them."""
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    monkeypatch.setenv("ADMIN_PORT", "9123")
    pods = [Endpoint(f"engine-{port}", "127.0.0.1", port, "HEALTHY", f"engine-{port}") for port in (1, 2)]
    publisher = _publisher(EdgeSettings(state_dir=str(tmp_path), admin_port=9123))
    publisher.write_all(pods, 1)
    (tmp_path / "pods.json").write_text('{"pods": [{"name": "engine-2", "host": "127.0.0.1", "port": 2}]}')
    assert main(["render"]) == 0
    assert publisher.present_endpoints() == pods[1:]


def test_statistics_are_there_only_for_a_prometheus_elsewhere(tmp_path: Path) -> None:
    """STATS_ADDRESS gives Envoy a second listener and Prometheus its name; without it there is one listener and the admin port."""
    assert len(rendering.bootstrap(FILES, SETTINGS, ENVOY_DIR, tmp_path)["static_resources"]["listeners"]) == 1
    settings = msgspec.structs.replace(SETTINGS, stats_address="envoy:9902", state_dir=str(tmp_path))
    second = rendering.bootstrap(FILES, settings, ENVOY_DIR, tmp_path)["static_resources"]["listeners"][1]
    assert second["address"]["socket_address"] == {"address": SETTINGS.host, "port_value": 9902}
    _publisher(settings).write_targets([])
    assert '"envoy:9902"' in (tmp_path / "prometheus" / "targets" / "envoy.json").read_text()
