"""What handlers find in the app, under typed keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.engine.admission import Admission
from services.engine.concurrency import Concurrency
from services.engine.ending import Will
from services.engine.health import Health
from services.engine.runs import Runs
from services.store.promises import SharedPromises
from services.telemetry.metrics import Metrics
from services.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from services.settings import EngineSettings


@dataclass(frozen=True, slots=True)
class Pod:
    """Who this pod is and what it was told. `model` is the served model's id, `created` its time in Unix seconds."""

    name: str
    model: str
    created: int
    settings: EngineSettings


POD = web.AppKey("pod", Pod)
CONCURRENCY = web.AppKey("concurrency", Concurrency)
ADMISSION = web.AppKey("admission", Admission)
GENERATOR: web.AppKey[Any] = web.AppKey("generator")
"""A `TokenGenerator` or, with ENGINE=remote, a `RemoteGenerator`."""
HEALTH = web.AppKey("health", Health)
METRICS = web.AppKey("metrics", Metrics)
RUNS = web.AppKey("runs", Runs)
PROMISES = web.AppKey("promises", SharedPromises)
WILL = web.AppKey("will", Will)
TRACING = web.AppKey("tracing", Tracing)
