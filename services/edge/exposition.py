"""The edge's own metrics over HTTP, for Prometheus. Nothing else is answered."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.settings import EdgeSettings
    from services.telemetry.edge_metrics import EdgeMetrics


@contextlib.asynccontextmanager
async def serving(metrics: EdgeMetrics, settings: EdgeSettings) -> AsyncIterator[str]:
    """Answers GET /metrics for as long as it is entered; yields the address at which Prometheus finds it."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host if settings.stats_address else "127.0.0.1", settings.edge_port).start()
        port = runner.addresses[0][1]
        yield f"{settings.stats_address.rpartition(':')[0] or '127.0.0.1'}:{port}"
    finally:
        await runner.cleanup()
