"""`create_app`: routes, middleware, lifetimes. It wires and decides nothing."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from services.engine import docs_page, forwarding, handlers, queue_page
from services.engine.admission import Admission, Limits
from services.engine.concurrency import Concurrency
from services.engine.ending import EXIT_ENGINE_DIED, EXIT_LOAD_FAILED
from services.engine.entry import Entry
from services.engine.gauges import watch_loop
from services.engine.generation import WARM_UP_ID, BackendError, BackendUnavailable
from services.engine.health import Health
from services.engine.keys import ADMISSION, CONCURRENCY, GENERATOR, HEALTH, METRICS, POD, PROMISES, RUNS, TRACING, WILL
from services.engine.middleware import exchange_middleware
from services.engine.runs import Runs
from services.engine.watchdog import Watchdog
from services.store.leases import Leases
from services.store.promises import SharedPromises
from services.store.sqlite import Store
from services.telemetry.logging import get_logger
from services.telemetry.metrics import Metrics
from services.telemetry.spans import Process
from services.telemetry.tracing import Tracing
from services.version import version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from services.engine.backends import AnyGenerator
    from services.engine.ending import Will
    from services.engine.keys import Pod
    from services.settings import EngineSettings

log = get_logger()

# The prompt, and steps behind it.
_WARM_UP_TOKENS = 4


def create_app(pod: Pod, generator: AnyGenerator, will: Will) -> web.Application:
    """The pod's app; it answers while the model loads. `will` is told when the pod shall end."""
    settings = pod.settings
    app = web.Application(middlewares=[exchange_middleware], client_max_size=settings.max_body_bytes)
    metrics = app[METRICS] = Metrics(pod.model)
    app[POD], app[GENERATOR], app[HEALTH], app[WILL] = pod, generator, Health(), will
    process = Process(service="engine", instance=pod.name, version=version())
    app[TRACING] = Tracing(
        process,
        settings.otel_exporter_otlp_endpoint,
        settings.trace_sample_percent,
        on_drop=lambda reason, count: metrics.spans_dropped.labels(pod.model, reason).inc(count),
    )
    app[ADMISSION] = Admission(_limits(settings))
    store = Store(settings.store_path)
    app[CONCURRENCY] = Concurrency(Leases(store), app[ADMISSION], metrics)
    app[PROMISES] = SharedPromises(store, settings.slots)
    app[RUNS] = Runs(generator, Entry(app[ADMISSION], app[PROMISES], metrics), metrics, app[HEALTH].check_ready)
    _add_routes(app, forwarding if generator.is_remote else handlers)
    for resource in {route.resource for route in app.router.routes() if route.method == "POST"}:
        for status in ("2xx", "4xx", "5xx"):  # from zero on: a series that begins with its first error has no rate for it
            metrics.requests.labels(pod.model, resource.canonical if resource else "other", status)

    async def model_ctx(app: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_live(app)), asyncio.create_task(watch_loop(metrics))]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await app[RUNS].cancel_all()
        await generator.stop()
        await store.stop()
        await asyncio.to_thread(app[TRACING].stop)

    app.cleanup_ctx.append(model_ctx)
    return app


def _limits(settings: EngineSettings) -> Limits:
    return Limits(
        slots=settings.slots,
        capacity=settings.queue_capacity if settings.enable_backpressure else None,
        timeout_seconds=settings.queue_timeout_seconds,
        max_queue_bytes=settings.queue_capacity_bytes,
        max_total_tokens=settings.max_total_tokens,
    )


async def _live(app: web.Application) -> None:
    """Loads, warms up, and then watches the engine, for ever."""
    try:
        await _load(app)
        await _warm_up(app, app[POD].settings.request_timeout_seconds)
    except BackendUnavailable as error:  # it died, by no fault of model and settings
        app[WILL].end(EXIT_ENGINE_DIED, str(error))
        return
    except BackendError as error:
        app[WILL].end(EXIT_LOAD_FAILED, str(error))
        return
    except Exception as error:  # the boundary: a pod that cannot load must end, not stay "loading" for ever
        log.exception("pod.load_broke", error_type=type(error).__name__)
        app[WILL].end(EXIT_LOAD_FAILED, f"loading the model broke: {type(error).__name__}: {error}")
        return
    if app[HEALTH].become("ready"):
        log.info("pod.ready", model=app[POD].model, info=repr(app[GENERATOR].info))
    await Watchdog(app).watch()


async def _load(app: web.Application) -> None:
    start = time.monotonic()
    await app[GENERATOR].start(app[HEALTH].report)
    info = app[GENERATOR].info
    if not app[POD].settings.max_total_tokens:
        app[ADMISSION].bound(info.cache_tokens, by_expected=info.preempts)
    log.info("pod.loaded", seconds=round(time.monotonic() - start, 3))


async def _warm_up(app: web.Application, limit_seconds: float) -> None:
    """One generation, so that the first client does not pay for what is done once. Raises `BackendError`."""
    if not app[HEALTH].become("warming"):
        return
    start = time.monotonic()
    try:
        await asyncio.wait_for(app[GENERATOR].try_out(WARM_UP_ID, _WARM_UP_TOKENS), limit_seconds)
    except asyncio.TimeoutError:
        raise BackendError(f"the warm-up brought no answer within REQUEST_TIMEOUT_SECONDS={limit_seconds:g}") from None
    except BackendError as error:
        raise type(error)(f"the warm-up failed: {error}") from error
    log.info("pod.warmed_up", seconds=round(time.monotonic() - start, 3), tokens=_WARM_UP_TOKENS)


def _add_routes(app: web.Application, answers: ModuleType) -> None:
    """`answers` has what answers the three endpoints that generate."""
    app.add_routes(
        [
            web.post("/v1/chat/completions", answers.chat_completions),
            web.post("/v1/completions", answers.completions),
            web.post("/chat", answers.short_chat),
            web.get("/v1/models", handlers.models),
            web.get("/v1/models/{id:.+}", handlers.model),
            web.get("/health", handlers.healthz),
            web.get("/healthz", handlers.healthz),
            web.get("/livez", handlers.healthz),
            web.get("/readyz", handlers.readyz),
            web.get("/metrics", handlers.metrics),
            web.get("/v1/queue", queue_page.queue),
            web.post("/drain", handlers.drain),
            web.get("/openapi.json", handlers.openapi_json),
            web.get("/docs", docs_page.page),
            web.get("/docs/assets/{name}", docs_page.asset),
        ]
    )
