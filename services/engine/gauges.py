"""What a pod measures of itself beside its requests: gauges read off when Prometheus asks, and how late the event loop wakes."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from services.engine.keys import ADMISSION, GENERATOR, HEALTH, METRICS, POD, PROMISES

if TYPE_CHECKING:
    from aiohttp import web

    from services.telemetry.metrics import Metrics

_LAG_EVERY_SECONDS = 0.25


def read_off(app: web.Application) -> Metrics:
    """The pod's metrics with its gauges as of now."""
    metrics, admission, settings, load = app[METRICS], app[ADMISSION], app[POD].settings, app[GENERATOR].load()
    metrics.queue_depth.set(admission.waiting)
    metrics.queue_bytes.set(admission.queue.num_bytes)
    metrics.promised.set(app[PROMISES].num_open)
    metrics.queue_capacity.set(settings.queue_capacity if settings.enable_backpressure else math.inf)
    metrics.slots_in_use.set(admission.running)
    metrics.slots.set(settings.slots)
    metrics.ready.set(app[HEALTH].state == "ready")
    metrics.set_state(app[HEALTH].state)
    metrics.tasks.set(len(asyncio.all_tasks()))
    metrics.batch_size.set(load.running)
    metrics.engine_waiting.set(load.waiting)
    metrics.tokens_per_second.set(load.tokens_per_second)
    metrics.cache_usage.set(load.cache_usage)
    metrics.gpu_memory.set(load.gpu_memory_bytes)
    metrics.cost_per_hour.set(settings.pod_cost_per_hour)
    return metrics


async def watch_loop(metrics: Metrics) -> None:
    """Observes for ever how much later than asked the event loop wakes."""
    loop = asyncio.get_running_loop()
    while True:
        wanted = loop.time() + _LAG_EVERY_SECONDS
        await asyncio.sleep(_LAG_EVERY_SECONDS)
        metrics.loop_lag.observe(max(0.0, loop.time() - wanted))
