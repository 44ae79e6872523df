"""The settings classes: one frozen struct per process, sharing fields by inheritance so that each is declared once.

A field's environment variable is its name in capitals. `msgspec.Meta` holds bounds and help, and in `extra` when a change applies;
`.env.example` and the error messages are made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from services.settings.common import SCALE, SECRET, START, CommonSettings, Port
from services.settings.edge import EdgeSettings
from services.settings.models import ModelSettings

MAX_PODS = 256


class EngineSettings(ModelSettings, frozen=True, kw_only=True):
    """One pod: `python -m services.engine`."""

    queue_capacity_bytes: Annotated[
        int,
        Meta(
            ge=1024, le=1 << 40, description="Memory of requests that wait in one pod for a slot; beyond it the answer is 429 queue_full."
        ),
    ] = 64 * 1024 * 1024
    max_total_tokens: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000_000,
            description="Tokens, of prompt and longest answer together, that one pod's running requests may come to; others wait. "
            "0: as many as fit into the slots, or into the engine's KV cache where that holds less.",
        ),
    ] = 0
    store_url: Annotated[
        str,
        Meta(
            pattern=r"^$|^sqlite:.+",
            description="Where pods keep what they share for a short time: sqlite:PATH, a file that all pods of the machine reach. "
            "Empty: store.sqlite in STATE_DIR.",
        ),
    ] = ""
    enable_backpressure: Annotated[
        bool,
        Meta(description="Refuse with 429 what cannot be served in time; false lets everybody wait, without bound, however long it takes."),
    ] = True
    pod_cost_per_hour: Annotated[
        float,
        Meta(ge=0, le=1e6, description="What an hour of one pod costs, in the currency that you count in; the default is an assumption."),
    ] = 0.05
    otel_instrumentation_genai_capture_message_content: Annotated[
        bool, Meta(description="Write prompts and answers into traces. Off: no text of users is traced.")
    ] = False
    log_prompts: Annotated[bool, Meta(description="Write prompts and answers into the log. Off: no text of users is logged.")] = False

    @property
    def store_path(self) -> Path:
        """The file of STORE_URL."""
        return Path(self.store_url.partition(":")[2]) if self.store_url else Path(self.state_dir) / "store.sqlite"


class RunnerSettings(EngineSettings, frozen=True, kw_only=True):
    """The runner, parent of the pods of one machine."""

    pods: Annotated[int, Meta(ge=1, le=MAX_PODS, description="Engine pods on this machine.", extra=SCALE)] = 2
    pod_start: Annotated[
        Literal["auto", "fork", "exec"],
        Meta(description="How a pod starts: fork of the warmed runner (fast), exec of a new process; auto forks where that is possible."),
    ] = "auto"
    pod_host: Annotated[str, Meta(min_length=1, description="Address on which pods listen.", extra=START)] = "127.0.0.1"
    pod_log_dir: Annotated[
        str,
        Meta(
            description="Folder of the pods' log files, one a pod; empty writes to the runner's output. `convoy up` sets it.", extra=START
        ),
    ] = ""
    pod_port: Annotated[
        Port,
        Meta(
            description="Port of the first pod, the next ones count up; 0 takes free ports. A pod that comes before its predecessor "
            "has gone takes the next free one above.",
        ),
    ] = 0
    pod_name: Annotated[
        str,
        Meta(
            pattern=r"^$|^engine-[a-z0-9][a-z0-9.-]*$",
            description="Name of the one pod (PODS=1) of a container, engine-SOMETHING, different in each; empty: engine-1, engine-2, …",
            extra=START,
        ),
    ] = ""

    def problem(self) -> str | None:
        """A name is one pod's; for the rest see there."""
        if self.pod_name and self.pods > 1:
            return f"POD_NAME={self.pod_name} names one pod, but PODS={self.pods}"
        return super().problem()


class OpsSettings(CommonSettings, frozen=True, kw_only=True):
    """The `convoy` command and the installation."""

    torch_backend: Annotated[
        Literal["default", "cpu"],
        Meta(
            description="At install: PyPI's CUDA build (2.6 GB, once per machine), or cpu from PyTorch's own index, if that is reachable."
        ),
    ] = "default"
    vllm_build: Annotated[
        Literal["auto", "cpu", "gpu"],
        Meta(description="ENGINE=vllm, at install: vLLM for processors or for NVIDIA's GPUs; auto looks for a GPU of this machine."),
    ] = "auto"
    convoy_api_key: Annotated[
        str, Meta(description="Key with which `convoy chat` and `make load` call, where there is a clients file.", extra=SECRET)
    ] = ""
    clients_group: Annotated[
        int,
        Meta(
            ge=0,
            le=4_294_967_294,
            description="Id of the edge's group that may read the clients file (`id -g`); in compose only.",
        ),
    ] = 10001
    observability: Annotated[
        Literal["auto", "off"],
        Meta(description="Collector, Jaeger, Prometheus, Alertmanager: auto starts what is found (`make tools` builds them), off none."),
    ] = "auto"
    jaeger_port: Annotated[Port, Meta(description="Port of Jaeger on loopback; 0, or a port that is taken: a free one.")] = 16686
    prometheus_port: Annotated[Port, Meta(description="Port of Prometheus on loopback; likewise.")] = 9090
    alertmanager_port: Annotated[Port, Meta(description="Port of Alertmanager on loopback; likewise.")] = 9093
    grafana_port: Annotated[Port, Meta(description="Port of Grafana on loopback; in compose only.")] = 3000
    otlp_http_port: Annotated[
        Port, Meta(description="Port of the collector (OTLP over HTTP) on loopback; 0, or a taken one: a free one.")
    ] = 4318
    trace_slow_ms: Annotated[
        int, Meta(ge=1, le=86_400_000, description="A trace at least so long (milliseconds) is kept, whatever TRACE_KEEP_PERCENT says.")
    ] = 10_000
    trace_keep_percent: Annotated[
        float,
        Meta(ge=0, le=100, description="Share of traces that the collector keeps, of those without error, without retry, not slow."),
    ] = 100
    tools_dir: Annotated[
        str,
        Meta(
            description="Folder of the programs that `make tools` builds, shared by all clones; empty: $XDG_CACHE_HOME/convoy/bin "
            "or ~/.cache/convoy/bin."
        ),
    ] = ""


ALL: tuple[type[CommonSettings], ...] = (RunnerSettings, EdgeSettings, OpsSettings)
"""Together these hold every setting; `.env.example` lists them in this order."""
