"""Every metric of the edge, declared once: whether what people decided is in force, and which pods Envoy is told of."""

from __future__ import annotations

from collections import Counter as Count
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nothing reads

POD_STATES = ("ready", "draining", "loading", "stalled", "foreign", "gone", "unknown")
RESOURCES = ("limit_address", "limit_client", "keys", "clusters", "routes", "endpoints")


class EdgeMetrics:
    """The metrics of one edge, on a registry of their own."""

    def __init__(self) -> None:
        """All bounded labels are there from the start."""
        self.registry = CollectorRegistry()
        self.file_refused = Gauge(
            "convoy_edge_file_refused",
            "1 while a file holds what cannot be used, so that what it said before counts.",
            ["file"],
            registry=self.registry,
        )
        self.refused = Counter("convoy_edge_envoy_refused", "Updates that Envoy refused.", ["resource"], registry=self.registry)
        self.agreed = Gauge("convoy_edge_agreed", "1 when Envoy runs all that the edge has written.", registry=self.registry)
        self.pods = Gauge("convoy_edge_pods", "Pods by what they say of themselves.", ["state"], registry=self.registry)
        self.crash_loops = Gauge("convoy_edge_crash_loops", "Pods that die again and again, in the runner's word.", registry=self.registry)
        self.clients = Gauge("convoy_edge_clients", "Clients known; -1 without a clients file.", registry=self.registry)
        for resource in RESOURCES:
            self.refused.labels(resource)
        ProcessCollector(registry=self.registry)

    def tell_refused_file(self, path: str, *, is_refused: bool) -> None:
        """Sets one file's state; its label is the file's name."""
        self.file_refused.labels(Path(path).name).set(is_refused)

    def tell(self, told: dict[str, Any]) -> None:
        """Sets what `edge.json` tells, too."""
        runs = (told["envoy"] or {}).get("runs")
        self.agreed.set(runs == told["written"])
        self.clients.set(-1 if told["num_clients"] is None else told["num_clients"])
        self.crash_loops.set(told["num_crash_loops"])
        states = Count(pod["state"] for pod in told["pods"])
        for state in POD_STATES:
            self.pods.labels(state).set(states[state])
