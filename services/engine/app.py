"""`create_app`: routes, middleware, lifetimes. It wires and decides nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from services.engine import docs_page, handlers, queue_page
from services.engine.admission import Admission, Limits
from services.engine.concurrency import Concurrency
from services.engine.gauges import watch_loop
from services.engine.generation import BackendError
from services.engine.health import Health
from services.engine.keys import ADMISSION, CONCURRENCY, GENERATOR, HEALTH, METRICS, POD, RUNS, TRACING
from services.engine.middleware import exchange_middleware
from services.engine.runs import Runs
from services.store.leases import Leases
from services.telemetry.logging import get_logger
from services.telemetry.metrics import Metrics
from services.telemetry.spans import Process
from services.telemetry.tracing import Tracing
from services.version import version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from services.engine.keys import Pod
    from services.engine.token_generator import TokenGenerator
    from services.settings import EngineSettings

log = get_logger()


def create_app(pod: Pod, generator: TokenGenerator, on_load_failed: Callable[[str], None]) -> web.Application:
    """The pod's app; it answers while the model loads. `on_load_failed` is told the one-line reason if it cannot."""
    settings = pod.settings
    app = web.Application(middlewares=[exchange_middleware], client_max_size=settings.max_body_bytes)
    metrics = app[METRICS] = Metrics(pod.model)
    app[POD], app[GENERATOR], app[HEALTH] = pod, generator, Health()
    process = Process(service="engine", instance=pod.name, version=version())
    app[TRACING] = Tracing(
        process,
        settings.otel_exporter_otlp_endpoint,
        settings.trace_sample_percent,
        on_drop=lambda reason, count: metrics.spans_dropped.labels(pod.model, reason).inc(count),
    )
    app[ADMISSION] = Admission(_limits(settings), on_reject=lambda reason: metrics.rejected.labels(pod.model, reason).inc())
    app[CONCURRENCY] = Concurrency(Leases(settings.store_path), app[ADMISSION], metrics)
    app[RUNS] = Runs(generator, app[ADMISSION], metrics)
    _add_routes(app)
    for resource in {route.resource for route in app.router.routes() if route.method == "POST"}:
        for status in ("2xx", "4xx", "5xx"):  # from zero on: a series that begins with its first error has no rate for it
            metrics.requests.labels(pod.model, resource.canonical if resource else "other", status)

    async def model_ctx(app: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_load(app, on_load_failed)), asyncio.create_task(watch_loop(metrics))]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await app[RUNS].cancel_all()
        await generator.stop()
        await app[CONCURRENCY].leases.stop()
        await asyncio.to_thread(app[TRACING].stop)

    app.cleanup_ctx.append(model_ctx)
    return app


def _limits(settings: EngineSettings) -> Limits:
    return Limits(
        slots=settings.max_concurrent_requests,
        capacity=settings.queue_capacity if settings.enable_backpressure else None,
        timeout_seconds=settings.queue_timeout_seconds,
        max_queue_bytes=settings.queue_capacity_bytes,
        max_total_tokens=settings.max_total_tokens,
    )


async def _load(app: web.Application, on_load_failed: Callable[[str], None]) -> None:
    health = app[HEALTH]
    try:
        await app[GENERATOR].start(health.report)
    except BackendError as error:
        on_load_failed(str(error))
        return
    except Exception as error:  # the boundary: a pod that cannot load must end, not stay "loading" for ever
        log.exception("pod.load_broke", error_type=type(error).__name__)
        on_load_failed(f"loading the model broke: {type(error).__name__}: {error}")
        return
    health.become_ready()
    log.info("pod.ready", model=app[POD].model, info=repr(app[GENERATOR].info))


def _add_routes(app: web.Application) -> None:
    app.add_routes(
        [
            web.post("/v1/chat/completions", handlers.chat_completions),
            web.post("/v1/completions", handlers.completions),
            web.post("/chat", handlers.short_chat),
            web.get("/v1/models", handlers.models),
            web.get("/v1/models/{id:.+}", handlers.model),
            web.get("/health", handlers.healthz),
            web.get("/healthz", handlers.healthz),
            web.get("/livez", handlers.healthz),
            web.get("/readyz", handlers.readyz),
            web.get("/metrics", handlers.metrics),
            web.get("/v1/queue", queue_page.queue),
            web.get("/openapi.json", handlers.openapi_json),
            web.get("/docs", docs_page.page),
            web.get("/docs/assets/{name}", docs_page.asset),
        ]
    )
