"""The page `/docs`, which shows the OpenAPI document and tries it out, without a network."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from trimodal.servers.openapi import describe
from trimodal.settings import Settings

_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png"}

# The page shows an object of JSON lines over several lines, and would send it so.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Trimodal inference container</title>
<link rel="stylesheet" href="docs/swagger-ui.css"><link rel="icon" href="docs/favicon-32x32.png"></head>
<body><div id="swagger-ui"></div><script src="docs/swagger-ui-bundle.js"></script>
<script>
const onOneLine = (request) => {
  if (!/jsonl|ndjson/.test(request.headers["Content-Type"])) return request
  try { return {...request, body: JSON.stringify(JSON.parse(request.body))} } catch { return request }
}
SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", requestInterceptor: onOneLine})
</script></body></html>
"""


def documentation(model: object, settings: Settings) -> list[BaseRoute]:
    """Returns the routes `/openapi.json` and `/docs`."""
    document = describe(model, settings)

    async def openapi(_request: Request) -> Response:
        return JSONResponse(document)

    async def docs(_request: Request) -> Response:
        return HTMLResponse(_PAGE)

    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
        *(_asset(name, media) for name, media in _ASSETS.items()),
    ]


def _asset(name: str, media: str) -> BaseRoute:
    async def asset(_request: Request) -> Response:
        from swagger_ui_bundle import swagger_ui_path

        return FileResponse(Path(swagger_ui_path) / name, media_type=media)

    return Route(f"/docs/{name}", asset, methods=["GET"])
