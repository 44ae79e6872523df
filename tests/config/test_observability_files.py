"""The files of collector, Jaeger and Prometheus, judged by their own programs, and held against what the upstream images have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from services.ops.tools import TOOLS, find
from services.ops.tools.table import components
from tests.running import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CONTRIB = re.compile(r"(go\.opentelemetry\.io/collector|github\.com/open-telemetry/opentelemetry-collector-contrib)/\w+/(\w+)")
"""Modules of these two repositories are all in the image otel/opentelemetry-collector-contrib of their version."""


def tool(name: str) -> str:
    """The program, or a skip; where CI says that it must be there, a failure."""
    path = next((find(one, os.environ) for one in TOOLS if one.name == name), None)
    if path is None and os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not built; .ci/run makes it")
    if path is None:
        pytest.skip(f"{name} is not built; make tools")
    return str(path)


def run(*command: str) -> str:
    """What a program says; it must be content."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def used_components() -> set[str]:
    """The types of all components in the collector's configuration, with their kind: `processor/batch`."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "otel-collector/config.yaml").read_text())
    kinds = ("receivers", "processors", "connectors", "exporters", "extensions")
    return {f"{kind[:-1]}/{name.partition('/')[0]}" for kind in kinds for name in config[kind]}


def test_the_collectors_configuration_uses_only_what_the_upstream_image_has() -> None:
    """Each component is built from a module that the contrib image is built from, too, so the same file runs there."""
    assert all(CONTRIB.match(module) for module in components()), components()
    plain = re.compile(r"/(receiver|processor|connector|exporter|extension)/(\w+?)\1 ")
    built = {f"{kind}/{name}" for module in components() for kind, name in plain.findall(module)}
    renamed = {"exporter/otlp": "exporter/otlp_grpc", "exporter/otlphttp": "exporter/otlp_http"}  # module -> type, since 0.144
    types = {renamed.get(name, name).replace("_", "") for name in built}
    assert {name.replace("_", "") for name in used_components()} <= types


def test_the_collector_takes_its_configuration() -> None:
    """`otelcol validate` with every variable left to its default."""
    run(tool("otelcol"), "validate", "--config", "otel-collector/config.yaml")


def test_prometheus_takes_configuration_and_rules(tmp_path: Path) -> None:
    """`promtool check config`, which reads the rules, too; no recording rule is named against the convention."""
    for name in ("prometheus.yaml", "rules"):
        source = ROOT / "prometheus" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    told = run(tool("promtool"), "check", "config", str(tmp_path / "prometheus.yaml"))
    assert "SUCCESS" in told
    assert "rules found" in told
    for path in sorted((ROOT / "prometheus/rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                assert re.fullmatch(r"[a-z]+:[a-z_]+:[a-z0-9_]+", rule.get("record", "a:b:c")), rule


def test_what_tells_prometheus_of_envoy_and_pods_is_the_name_of_their_job() -> None:
    """Job, target file and pool are called alike; every file that is scraped from is one that somebody writes."""
    config = yaml.safe_load((ROOT / "prometheus/prometheus.yaml").read_text())
    files = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in config["scrape_configs"]}
    assert files == {name: [f"targets/{name}.json"] for name in ("engine", "envoy", "edge", "collector", "prometheus")}
