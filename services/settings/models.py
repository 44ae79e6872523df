"""The settings of the engines: which one, which model, and what each takes for itself."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from services.settings.common import PASSED_SECRET, CapacitySettings, Seconds


class ModelSettings(CapacitySettings, frozen=True, kw_only=True):
    """Engine and model of the pods."""

    engine: Annotated[Literal["transformers", "vllm", "remote", "fake"], Meta(description="Generation backend of the pods.")] = (
        "transformers"
    )
    model_name: Annotated[
        str, Meta(min_length=1, description="`demo` (shipped), a path, or a Hugging Face id (safetensors only, no remote code).")
    ] = "demo"
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="Number format of the weights; auto takes what the processor is fast at."),
    ] = "auto"
    max_model_len: Annotated[
        int, Meta(ge=0, le=10_000_000, description="Context in tokens, prompt and answer together; 0 takes the model's own.")
    ] = 0
    num_threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description="Compute threads of one pod; 0 means cores divided by the number of pods when it starts, at least 1.",
        ),
    ] = 0
    batching: Annotated[
        Literal["none", "window", "continuous"],
        Meta(
            description="ENGINE=transformers: what runs together. none: one request at a time; window: what comes within BATCH_WINDOW_MS; "
            "continuous: requests join and leave at every token."
        ),
    ] = "continuous"
    batch_window_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="BATCHING=window: how long the first one waits for others, milliseconds.")
    ] = 50
    kv_cache_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Memory of one pod's KV cache. 0: ENGINE=transformers takes what its slots need and 64 MiB for known prompts, "
            "ENGINE=vllm what GPU_MEMORY_UTILIZATION leaves, or 1 GiB on a processor.",
        ),
    ] = 0
    gpu_memory_utilization: Annotated[
        float, Meta(gt=0, le=1, description="ENGINE=vllm: share of the GPU's memory that one pod takes, for weights and KV cache.")
    ] = 0.9
    tensor_parallel_size: Annotated[int, Meta(ge=1, le=1024, description="ENGINE=vllm: GPUs that one pod splits the model over.")] = 1
    enable_prefix_caching: Annotated[
        bool, Meta(description="A prompt that begins as an earlier one did does not read that part again: usage tells cached_tokens.")
    ] = True
    quantization: Annotated[
        str,
        Meta(pattern=r"^$|^[a-z0-9_-]+$", description="ENGINE=vllm: how the weights are quantized, as vLLM names it; empty: as they say."),
    ] = ""
    vllm_args: Annotated[
        str,
        Meta(
            description="ENGINE=vllm: more of vLLM's own options, as on its command line, such as --enforce-eager; what Convoy sets cannot "
            "be given here."
        ),
    ] = ""
    upstream_url: Annotated[
        str,
        Meta(
            pattern=r"^$|^https?://[^\s?#@]+$",
            description="ENGINE=remote: base address of a server that speaks OpenAI's API, up to /v1, such as http://127.0.0.1:11434/v1.",
        ),
    ] = ""
    upstream_api_key: Annotated[
        str,
        Meta(pattern=r"^[\x21-\x7e]*$", description="ENGINE=remote: the key that it asks for; visible ASCII.", extra=PASSED_SECRET),
    ] = ""
    upstream_ca_file: Annotated[
        str, Meta(description="ENGINE=remote: certificates (PEM) to trust beside the system's, for an upstream that signs its own.")
    ] = ""
    upstream_connect_timeout_seconds: Annotated[
        Seconds, Meta(description="ENGINE=remote: longest time until a connection to the upstream stands.")
    ] = 5
    fake_first_token_ms: Annotated[float, Meta(ge=0, le=600_000, description="ENGINE=fake: milliseconds until the first token.")] = 10
    fake_tokens_per_second: Annotated[
        float, Meta(gt=0, le=1e9, description="ENGINE=fake: tokens per second of each request after the first.")
    ] = 200
    fake_load_seconds: Annotated[float, Meta(ge=0, le=600, description="ENGINE=fake: seconds that loading takes.")] = 0
    fake_failure: Annotated[
        Literal["none", "error", "error_after_first_token", "exit", "hang", "load", "warm_up"],
        Meta(
            description="ENGINE=fake: fail each request (error, error_after_first_token), end the process at a request (exit), "
            "never answer (hang), or fail to load (load, warm_up)."
        ),
    ] = "none"
    fake_faults_file: Annotated[
        str,
        Meta(
            description="ENGINE=fake: a JSON file of faults by pod, or * for all, read anew when it is replaced while pods run: "
            '{"engine-1": {"failure": "error", "prompt": "only where the prompt has this"}}. Beside those of FAKE_FAILURE: unavailable '
            "(503), freeze (the process stops), die (the engine ends, its process does not), slow (with a factor). Empty: none."
        ),
    ] = ""

    def problem(self) -> str | None:
        """A remote engine needs an address; for the rest see there."""
        if self.engine == "remote" and not self.upstream_url:
            return "ENGINE=remote needs UPSTREAM_URL, such as https://example.org/v1"
        return super().problem()

    @property
    def slots(self) -> int:
        """Requests that one pod has in its engine at once."""
        return 1 if self.engine == "transformers" and self.batching == "none" else self.max_concurrent_requests
