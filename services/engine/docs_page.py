"""`/docs`: Swagger UI from an installed package, so that it works without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from aiohttp import web

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Convoy API</title>
  <link rel="stylesheet" href="docs/assets/swagger-ui.css">
  <link rel="icon" href="docs/assets/favicon-32x32.png">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="docs/assets/swagger-ui-bundle.js"></script>
  <script>
    SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, validatorUrl: null});
  </script>
</body>
</html>
"""
_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "application/javascript",
    "favicon-32x32.png": "image/png",
}


def assets_folder() -> Path:
    """Where the package `swagger-ui-py` keeps the assets; found without importing it."""
    spec = importlib.util.find_spec("swagger_ui")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package swagger-ui-py is not installed; run `make up`, which installs what is missing")
    return Path(spec.submodule_search_locations[0]) / "static"


async def page(_: web.Request) -> web.Response:
    """GET /docs."""
    return web.Response(text=_PAGE, content_type="text/html")


async def asset(request: web.Request) -> web.StreamResponse:
    """GET /docs/assets/{name}: one of the three files that the page asks for."""
    name = request.match_info["name"]
    if name not in _ASSETS:
        raise web.HTTPNotFound
    headers = {"Content-Type": _ASSETS[name], "Cache-Control": "public, max-age=86400"}
    return web.FileResponse(assets_folder() / name, headers=headers)
