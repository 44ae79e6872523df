"""The programs beside the stack that watch it, as far as they are found: which ports they take, how they are started, where they answer.

Convoy serves whether they live or die: nothing here can stop a start.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from services.files import write_atomically
from services.ops.ports import free_port, is_free
from services.ops.state import ROOT
from services.ops.tools import TOOLS, find

if TYPE_CHECKING:
    from pathlib import Path

    from services.ops.plan import Plan
    from services.ops.state import StateDir

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Part:
    """One program. A lower `priority` starts earlier and stops later; `scraped_at` is where its own metrics are, empty if nowhere."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    url: str
    priority: int
    scraped_at: str = ""


@dataclass(frozen=True)
class Observability:
    """What is started, what is not there, and where pods and Envoy send their spans (empty: nowhere)."""

    parts: tuple[Part, ...] = ()
    missing: tuple[str, ...] = ()
    otlp_endpoint: str = ""

    @property
    def hint(self) -> str:
        """One line about what is missing; empty if nothing is."""
        if not self.missing:
            return ""
        return f"not found: {', '.join(self.missing)}; `make tools` builds them, once per machine (Convoy serves without)"


def arrange(plan: Plan) -> Observability:
    """Finds the programs and gives each its addresses, all on loopback."""
    endpoint = plan.edge.otel_exporter_otlp_endpoint
    if plan.ops.observability == "off":
        return Observability(otlp_endpoint=endpoint)
    found = {tool.name: str(path) for tool in TOOLS if (path := find(tool, plan.env))}
    missing = tuple(tool.name for tool in TOOLS if tool.name not in found and tool.name != "promtool")
    make = _Maker(plan, found)
    parts = [make.jaeger(), make.prometheus(), make.alertmanager(), None if endpoint else make.collector()]
    own = f"http://{_HOST}:{make.ports['otlp_http']}" if "otelcol" in found else ""
    return Observability(tuple(part for part in parts if part), missing, endpoint or own)


def write_files(state: StateDir, observability: Observability) -> None:
    """Prometheus' files, as they lie in the checkout, and the addresses of what is neither pod nor Envoy (those the edge writes)."""
    folder = state.path / "prometheus"
    shutil.rmtree(folder / "rules", ignore_errors=True)
    shutil.copytree(ROOT / "prometheus" / "rules", folder / "rules")
    shutil.copy(ROOT / "prometheus" / "prometheus.yaml", folder / "prometheus.yaml")
    (folder / "targets").mkdir(exist_ok=True)
    addresses = {part.name: part.scraped_at for part in observability.parts}
    for name, job in (("otel-collector", "collector"), ("prometheus", "prometheus"), ("alertmanager", "alertmanager")):
        groups = [{"targets": [addresses[name]], "labels": {"instance": name}}] if addresses.get(name) else []
        write_atomically(folder / "targets" / f"{job}.json", msgspec.json.encode(groups))


class _Maker:
    """Makes parts: each method one, or None where its program was not found."""

    def __init__(self, plan: Plan, found: dict[str, str]) -> None:
        self._plan = plan
        self._found = found
        ops = plan.ops
        taken = {plan.edge.port, plan.edge.admin_port}
        usual = {"jaeger": ops.jaeger_port, "prometheus": ops.prometheus_port, "alertmanager": ops.alertmanager_port}
        usual |= {"otlp_http": ops.otlp_http_port}
        inner = ("otlp_grpc", "collector_health", "collector_metrics", "jaeger_grpc", "jaeger_otlp", "jaeger_health")
        self.ports = {name: _port(wanted, taken) for name, wanted in {**usual, **dict.fromkeys(inner, 0)}.items()}

    def jaeger(self) -> Part | None:
        env = {
            "JAEGER_QUERY_ADDRESS": self._at("jaeger"),
            "JAEGER_QUERY_GRPC_ADDRESS": self._at("jaeger_grpc"),
            "JAEGER_OTLP_ADDRESS": self._at("jaeger_otlp"),
            "JAEGER_HEALTH_ADDRESS": self._at("jaeger_health"),
            "JAEGER_DATA_DIR": str(self._folder("jaeger")),
        }
        return self._part("jaeger", "jaeger", ["--config", "jaeger/config.yaml"], env, 3)

    def prometheus(self) -> Part | None:
        folder = self._folder("prometheus")
        options = [
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/data",
            "--storage.tsdb.retention.time=15d",
            "--storage.tsdb.retention.size=2GB",
            f"--web.listen-address={self._at('prometheus')}",
            "--web.enable-otlp-receiver",
            "--enable-feature=exemplar-storage",
            f"--web.external-url=http://{self._at('prometheus')}",  # in links of alerts; else the machine's name, which may resolve nowhere
            "--rules.alert.resend-delay=10s",  # 1 min by default: so late does an alert arrive that fired before Alertmanager was found
        ]
        return self._part("prometheus", "prometheus", options, {}, 3, scraped="prometheus")

    def alertmanager(self) -> Part | None:
        options = [
            "--config.file=prometheus/alertmanager.yaml",
            f"--storage.path={self._folder('alertmanager')}",
            f"--web.listen-address={self._at('alertmanager')}",
            "--cluster.listen-address=",  # one instance; the default would listen on every address
        ]
        return self._part("alertmanager", "alertmanager", options, {}, 3, scraped="alertmanager")

    def collector(self) -> Part | None:
        env = {
            "OTLP_HTTP_ADDRESS": self._at("otlp_http"),
            "OTLP_GRPC_ADDRESS": self._at("otlp_grpc"),
            "JAEGER_OTLP_ADDRESS": self._at("jaeger_otlp"),
            "PROMETHEUS_URL": f"http://{self._at('prometheus')}",
            "COLLECTOR_HEALTH_ADDRESS": self._at("collector_health"),
            "COLLECTOR_METRICS_HOST": _HOST,
            "COLLECTOR_METRICS_PORT": str(self.ports["collector_metrics"]),
            "TRACE_SLOW_MS": str(self._plan.ops.trace_slow_ms),
            "TRACE_KEEP_PERCENT": f"{self._plan.ops.trace_keep_percent:g}",
        }
        return self._part("otel-collector", "otelcol", ["--config", "otel-collector/config.yaml"], env, 5, scraped="collector_metrics")

    def _part(  # noqa: PLR0913 - what a part is
        self, name: str, tool: str, options: list[str], env: dict[str, str], priority: int, *, scraped: str = ""
    ) -> Part | None:
        if tool not in self._found:
            return None
        url = f"http://{self._at(name)}" if name in self.ports else f"http://{self._at('otlp_http')}"
        return Part(name, (self._found[tool], *options), env, url, priority, self._at(scraped) if scraped else "")

    def _at(self, name: str) -> str:
        return f"{_HOST}:{self.ports[name]}"

    def _folder(self, name: str) -> Path:
        folder = self._plan.state.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _port(wanted: int, taken: set[int]) -> int:
    """The wanted port, or a free one if that is 0 or taken: another program's port is no reason not to watch."""
    port = wanted if wanted and wanted not in taken and is_free(_HOST, wanted) else free_port(_HOST, taken)
    taken.add(port)
    return port
