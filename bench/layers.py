"""`python -m bench.layers`, in vLLM's environment: where a vLLM pod's own processor time goes while 128 streams run, by layer.

The pod runs in this process under cProfile, whose own cost makes small functions look larger than they are; shares are what to read.
Prints a JSON object: microseconds a token by layer.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress

LAYERS = (
    ("socket writes", ("http_writer.py:106", "http_writer.py:97")),
    ("HTTP (aiohttp)", ("aiohttp/", "multidict", "yarl")),
    ("frames and JSON", ("services/openai/", "services/engine/streaming.py", "msgspec")),
    ("runs, admission, mailboxes", ("services/engine/",)),
    ("text: template, tokenizer, detokenizer", ("jinja2", "tokenizers.Tokenizer", "<template>", "transformers/")),
    ("vLLM's client of its engine core", ("vllm/", "zmq")),
    ("log, metrics, traces", ("services/telemetry", "prometheus_client", "structlog", "opentelemetry")),
)
CLIENTS, ROUNDS = 128, 4


def _ask(port: int, pod: int) -> None:
    """The client, in a process of its own; ends the pod."""
    from bench.engines import TOKENS, Contestant  # noqa: F401, PLC0415 - the pod's process needs none of it
    from bench.streams import loop, repeated  # noqa: PLC0415 - likewise

    one = Contestant(f"http://127.0.0.1:{port}/v1/chat/completions", "demo")
    while True:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            break
        time.sleep(0.1)
    asyncio.run(loop(one.url, repeated(one.bodies(), CLIENTS * ROUNDS), CLIENTS))
    os.kill(pod, signal.SIGTERM)
    time.sleep(0.5)
    os.kill(pod, signal.SIGTERM)


def _settings() -> dict[str, str]:
    wanted = {"ENGINE": "vllm", "DTYPE": "bfloat16", "MAX_CONCURRENT_REQUESTS": str(CLIENTS), "NUM_THREADS": "1"}
    return wanted | {"STATE_DIR": tempfile.mkdtemp(), "LOG_LEVEL": "info"}


def main() -> dict[str, float]:
    """Serves until the client has done, and counts."""
    from services.engine.backends import preimport  # noqa: PLC0415 - after the environment is set
    from services.engine.pod import run_pod  # noqa: PLC0415 - likewise
    from services.settings import EngineSettings, load  # noqa: PLC0415 - likewise

    settings = load(EngineSettings, os.environ | _settings())
    preimport(settings)
    listener, pod = socket.create_server(("127.0.0.1", 0)), os.getpid()
    port = listener.getsockname()[1]
    if os.fork() == 0:
        listener.close()
        _ask(port, pod)
        os._exit(0)
    profile = cProfile.Profile()
    output = os.dup(1)
    os.dup2(2, 1)  # the pod's log
    profile.runcall(run_pod, settings, "engine-1", listener, None)
    os.dup2(output, 1)
    return by_layer(profile)


def by_layer(profile: cProfile.Profile) -> dict[str, float]:
    """Microseconds a token; what waits is left out."""
    from bench.engines import TOKENS  # noqa: PLC0415 - see above

    seconds = dict.fromkeys([name for name, _ in LAYERS] + ["event loop and the rest"], 0.0)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # its own attribute, but not in typeshed
    for (path, line, function), (_, _, own, _, _) in stats.items():
        where = f"{path}:{line} {function}"
        if "runners.py" in where or "selectors" in where or "subprocess" in where or "time.sleep" in where:
            continue
        name = next((name for name, marks in LAYERS if any(mark in where for mark in marks)), "event loop and the rest")
        seconds[name] += own
    return {name: value / (CLIENTS * ROUNDS * TOKENS) * 1e6 for name, value in seconds.items()}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main()) + "\n")
