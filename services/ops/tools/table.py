"""The tools: one row each, with version, source and what a copy that was installed by other means must be to serve as well."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from services.ops.state import ROOT

MANIFEST = ROOT / "otel-collector" / "builder.yaml"
"""What the collector is built from."""


@dataclass(frozen=True)
class Tool:
    """One program. `version` is what it calls itself; `source` is the Go module at the version that Go knows it by."""

    name: str
    version: str
    purpose: str
    source: str
    package: str
    minutes: int
    """How long its build takes on two cores, roughly; promtool's comes after Prometheus', with which it shares nearly everything."""
    version_variable: str = ""
    """The variable that the linker sets to the version, where the program does not know it by itself."""
    path_names: tuple[str, ...] = ()
    """What it is called on PATH, its usual name first."""
    oldest: tuple[int, int] = (0, 0)
    """The first version that understands Convoy's files; an older one on PATH is left alone."""
    cure: str = ""
    """How else to get it, if it cannot be built."""


_PROMETHEUS_VERSION = "github.com/prometheus/common/version.Version"

COLLECTOR = Tool(
    name="otelcol",
    version="0.155.0",
    purpose="collects traces and metrics",
    source="go.opentelemetry.io/collector/cmd/builder@v0.155.0",
    package="",
    minutes=2,
    # A program named `otelcol` on PATH is upstream's small distribution: no tail sampling, no span metrics.
    path_names=("otelcol-contrib",),
    oldest=(0, 155),
)

TOOLS: tuple[Tool, ...] = (
    COLLECTOR,
    Tool(
        name="alertmanager",
        version="0.31.1",
        purpose="tells people about alerts",
        # The newest whose module holds the files of its web page, without which it does not compile.
        source="github.com/prometheus/alertmanager@v0.31.1",
        package="cmd/alertmanager",
        minutes=1,
        version_variable=_PROMETHEUS_VERSION,
        path_names=("alertmanager", "prometheus-alertmanager"),
        oldest=(0, 25),
        cure="apt install prometheus-alertmanager",
    ),
    Tool(
        name="prometheus",
        version="3.7.3",
        purpose="keeps metrics and judges alert rules",
        # Later modules need others that cannot be downloaded.
        source="github.com/prometheus/prometheus@v0.307.3",
        package="cmd/prometheus",
        minutes=8,
        version_variable=_PROMETHEUS_VERSION,
        path_names=("prometheus",),
        oldest=(3, 0),  # the first with an OTLP receiver that is not an experiment; Debian's is 2.42
    ),
    Tool(
        name="promtool",
        version="3.7.3",
        purpose="checks and tests rules",
        source="github.com/prometheus/prometheus@v0.307.3",
        package="cmd/promtool",
        minutes=1,
        version_variable=_PROMETHEUS_VERSION,
        path_names=("promtool",),
        oldest=(3, 0),
    ),
    Tool(
        name="jaeger",
        version="2.13.0",
        purpose="keeps and shows traces",
        source="github.com/jaegertracing/jaeger@v1.76.0",  # Jaeger 2 is released under the numbers of Jaeger 1 as a module
        package="cmd/jaeger",
        minutes=6,
        version_variable="github.com/jaegertracing/jaeger/internal/version.latestVersion",
        path_names=("jaeger",),
        oldest=(2, 0),
    ),
)


def components() -> list[str]:
    """The modules in the collector's manifest, each as `path version`."""
    return re.findall(r"^ *- gomod: (\S+ \S+)", MANIFEST.read_text(), re.MULTILINE)


def key(tool: Tool) -> str:
    """The tool's folder in the cache. The collector's depends on its components too: with others it is another program."""
    if tool != COLLECTOR:
        return f"{tool.name}-{tool.version}"
    return f"{tool.name}-{tool.version}-{hashlib.sha256(repr(components()).encode()).hexdigest()[:8]}"
