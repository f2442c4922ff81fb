"""The OpenAPI document of a loaded model, from its own fields, and the page that shows it without a network."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from trimodal import __version__
from trimodal.records import Schema
from trimodal.serving.decode import DECODERS
from trimodal.serving.encode import ENCODERS
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import MIB, Settings

Json = dict[str, Any]

_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript", "favicon-32x32.png": "image/png"}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Trimodal inference container</title>
<link rel="stylesheet" href="docs/swagger-ui.css"><link rel="icon" href="docs/favicon-32x32.png"></head>
<body><div id="swagger-ui"></div><script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui"})</script></body></html>
"""

_STATUSES = {
    "400": "The body is empty, or not what its content type says.",
    "406": "Nothing in Accept can be produced.",
    "413": "The body is larger than SAGEMAKER_MAX_PAYLOAD_IN_MB.",
    "415": "Unknown content type.",
    "422": "A record cannot be scored; the error names record and field.",
    "429": "MAX_QUEUE_SIZE requests wait; the error says when to try again.",
    "500": "The model failed.",
    "503": "The container is draining.",
    "504": "No answer within SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS.",
}


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


def describe(model: object, settings: Settings) -> Json:
    """Returns the OpenAPI document (3.0.3, which the packaged page reads).

    Args:
        model: a `Pipeline`; of another model of a user's own no fields are known.
        settings: the container's settings.
    """
    known = isinstance(model, Pipeline)
    paths: Json = {
        "/ping": {"get": _state("Whether the model is loaded, verified and warmed up, and what serves it")},
        "/health": {"get": _state("The same as /ping")},
        "/execution-parameters": {"get": _operation("How Batch Transform should send records", {"type": "object"})},
        "/invocations": {"post": _invocations(known=known, limit=settings.max_payload // MIB)},
    }
    schemas: Json = {"Error": _error()}
    if isinstance(model, Pipeline):
        numbers = _answers(binary=model.binary, score={"type": "number"}, fields=(*_LABEL, *_identity(model.schema)))
        score: Json = {"type": "number"} if model.form.numbers else {"type": "string"}
        extra = (*(_LABEL if model.form.label else ()), *(_identity(model.schema) if model.form.echo_id else ()))
        schemas |= {
            "Record": record_schema(model),
            "Records": _records(),
            "Scores": _answers(binary=model.binary, score=score, fields=extra),
            "TypedScores": numbers,
        }
        operation = _operation("Scores as numbers, with the most probable class", _ref("TypedScores"))
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("Records")}}}
        operation["responses"] |= _errors()
        paths["/predict"] = {"post": operation}
    return {
        "openapi": "3.0.3",
        "info": {"title": "Trimodal inference container", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def record_schema(model: Pipeline) -> Json:
    """Returns the JSON schema of one record of a model."""
    schema = model.schema
    categories = _categories(model.features)
    number = {"oneOf": [{"type": "number"}, {"type": "string"}], "nullable": True}
    properties: Json = {
        schema.primary: {"type": "string", "nullable": True, "description": "the primary text"},
        schema.secondary: {"type": "string", "nullable": True, "description": "the secondary text"},
    }
    for name in schema.tabular:
        text = "a category" if name in categories else "a number, or a text that holds one"
        properties[name] = number | {"description": f"{text}; imputed when null"}
    if schema.id_name is not None:
        properties.setdefault(schema.id_name, {"nullable": True, "description": "echoed where asked for"})
    required = sorted(schema.fields) if schema.columns is not None else []
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _categories(reader: object) -> Collection[str]:
    """Returns the tabular fields that are categories, whatever measures the reader from outside."""
    inner = getattr(reader, "reader", reader)
    return inner.tabular.risk_tables if isinstance(inner, FeatureEncoder) else ()


_LABEL = ("output-label",)


def _identity(schema: Schema) -> tuple[str, ...]:
    return () if schema.id_name is None else (schema.id_name,)


def _answers(*, binary: bool, score: Json, fields: tuple[str, ...]) -> Json:
    """Returns the schema of an answer: one object a record."""
    row: Json = {"type": "object", "properties": {name: {"nullable": True} for name in fields}}
    if binary:
        row["properties"] |= dict.fromkeys(("legacy-score", "calibrated-score", "score-percentile"), score)
    else:
        row |= {"additionalProperties": score, "description": "prob_01, calibrated_prob_01, prob_02, …"}
    return {"type": "object", "properties": {"predictions": {"type": "array", "items": row}}}


def _records() -> Json:
    return {"oneOf": [_ref("Record"), {"type": "array", "items": _ref("Record"), "minItems": 1}]}


def _invocations(*, known: bool, limit: int) -> Json:
    records = _ref("Records") if known else {}
    content = {media: {"schema": records if "json" in media else {"type": "string"}} for media in DECODERS}
    scores = _ref("Scores") if known else {}
    operation = _operation("SageMaker's requests", scores)
    operation["requestBody"] = {"required": True, "content": content, "description": f"at most {limit} MB"}
    operation["responses"]["200"]["content"] |= {m: {} for m in ENCODERS if m != "application/json"}
    operation["responses"] |= _errors()
    return operation


def _state(summary: str) -> Json:
    operation = _operation(summary, {"type": "object"})
    operation["responses"]["503"] = {"description": "The container is draining, or cannot answer."}
    return operation


def _operation(summary: str, schema: Json) -> Json:
    return {
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}},
    }


def _errors() -> Json:
    content = {"application/json": {"schema": _ref("Error")}}
    return {status: {"description": text, "content": content} for status, text in _STATUSES.items()}


def _error() -> Json:
    fields: Json = {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "record": {"type": "integer", "nullable": True, "description": "counted from 0"},
    }
    inner = {"type": "object", "required": sorted(fields), "properties": fields}
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
