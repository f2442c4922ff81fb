"""The OpenAPI document of a loaded model, from its own fields."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trimodal import __version__
from trimodal.errors import (
    InferenceFailed,
    InferenceTimeout,
    InvalidRecord,
    MalformedBody,
    NotAcceptable,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
    TooManyRequests,
    Unavailable,
    UnsupportedMedia,
)
from trimodal.records import Schema
from trimodal.servers import examples
from trimodal.servers.typed import FORM
from trimodal.serving.decode import DECODERS
from trimodal.serving.encode import ENCODERS, JSON, ResponseFormat
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import MIB, Settings

Json = dict[str, Any]

_SCORING, _STATE = "Scoring", "State"
_TAGS = [
    {"name": _SCORING, "description": "send records, get scores"},
    {"name": _STATE, "description": "what SageMaker and its Batch Transform ask"},
]

_IN_ORDER = "One object or line a record, in their order."
_NO_LINE = "Line 2 is not valid JSON: Expecting ',' delimiter at line 1 column 40."
_ERRORS: tuple[tuple[str, RequestError], ...] = (
    ("The body is empty, or not what its content type says.", MalformedBody(_NO_LINE)),
    ("Nothing in `Accept` can be produced.", NotAcceptable("None of the accepted media types can be produced.")),
    ("The body did not arrive in time.", RequestTimeout("The body did not arrive within 60 seconds; send it faster.")),
    ("The body is too large.", PayloadTooLarge("The body is larger than 25 MB; send fewer records.")),
    ("Unknown content type or coding.", UnsupportedMedia("This content type is not supported.")),
    ("A record cannot be scored.", InvalidRecord("Record 0: the field x is not a number.", record=0)),
    ("Too many requests wait.", TooManyRequests("100 requests wait; try again in 2 seconds.")),
    ("The model failed.", InferenceFailed("The model failed on this request.")),
    ("The container ends, or no worker lives.", Unavailable("The container is draining.")),
    ("No answer in time.", InferenceTimeout("No answer within 60 seconds; send fewer records.")),
)
"""What every error means, with an example."""


def describe(model: object, settings: Settings) -> Json:
    """Returns the OpenAPI document (3.0.3, which the packaged page reads).

    Args:
        model: a `Pipeline`; of another model of a user's own no fields are known.
        settings: the container's settings.
    """
    pipeline = model if isinstance(model, Pipeline) else None
    paths: Json = {} if pipeline is None else {"/predict": {"post": _predict()}}
    paths |= {
        "/invocations": {"post": _invocations(pipeline, settings.max_payload // MIB)},
        "/ping": {"get": _state("Whether the model is loaded, verified and warmed up, and what serves it")},
        "/health": {"get": _state("The same as /ping")},
        "/execution-parameters": {"get": _operation(_STATE, "How Batch Transform should send records")},
    }
    schemas: Json = {"Error": _error()}
    if pipeline is not None:
        schemas |= {
            "Record": record_schema(pipeline),
            "Records": {"oneOf": [_ref("Record"), {"type": "array", "items": _ref("Record"), "minItems": 1}]},
            "Scores": _scores(pipeline, pipeline.form),
            "TypedScores": _scores(pipeline, FORM),
        }
    info = {"title": "Trimodal inference container", "version": __version__, "description": _introduction(pipeline)}
    return {"openapi": "3.0.3", "info": info, "tags": _TAGS, "paths": paths, "components": {"schemas": schemas}}


def _introduction(model: Pipeline | None) -> str:
    """Says, in Markdown, what there is and where to begin."""
    if model is None:
        return "This model directory has a model of its own; `POST /invocations` takes what its handlers take."
    schema = model.schema
    numbers = f"{len(schema.tabular)} tabular fields"
    begin = "To begin, open `POST /predict`, press *Try it out* and *Execute*: the example is a complete record."
    if schema.columns is not None:
        missing = "Every field must be there; a number may be `null`, and is then imputed."
    else:
        missing = "A number that is not there, or `null`, is imputed."
    return (
        f"Scores records of two texts, `{schema.primary}` and `{schema.secondary}`, and {numbers}.\n\n"
        f"{begin}\n\nA text is a sequence of messages, `[bom] … [eom]`. {missing} "
        'An error is `{"error": {"code", "message", "record"}}`, and says what to fix.'
    )


def record_schema(model: Pipeline) -> Json:
    """Returns the JSON schema of one record of a model, with an example that it scores."""
    schema, reader = model.schema, examples.tabular(model)
    categories: Collection[str] = () if reader is None else reader.risk_tables
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
    described = {"type": "object", "properties": properties, "example": examples.record(model)}
    return described | ({"required": required} if required else {})


def _scores(model: Pipeline, form: ResponseFormat) -> Json:
    """Returns the schema of an answer: one object a record."""
    example = examples.answer(model, form, JSON)
    score: Json = {"type": "number" if form.numbers else "string"}
    extra = {"output-label", *_identity(model.schema)}
    row = {name: {"nullable": True} if name in extra else score for name in example["predictions"][0]}
    items = {"type": "array", "items": {"type": "object", "properties": row}}
    return {"type": "object", "properties": {"predictions": items}, "example": example}


def _identity(schema: Schema) -> tuple[str, ...]:
    return () if schema.id_name is None else (schema.id_name,)


def _predict() -> Json:
    operation = _operation(_SCORING, "Scores as numbers, with the most probable class", _ref("TypedScores"), _IN_ORDER)
    operation["description"] = "JSON in, JSON out, whatever the headers say."
    operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref("Records")}}}
    operation["responses"] |= _errors(NotAcceptable)
    return operation


def _invocations(model: Pipeline | None, limit: int) -> Json:
    """Returns the operation of SageMaker's contract; `limit` is the largest body in MB."""
    if model is None:
        operation = _operation(_SCORING, "SageMaker's requests")
    else:
        operation = _operation(_SCORING, "Scores as SageMaker's clients get them", description=_IN_ORDER)
    operation["description"] = (
        f"At most {limit} MB. `Content-Type` says what is sent, `Accept` what is wanted; JSON when absent. "
        "JSON lines hold one object a line."
    )
    operation["requestBody"] = {"required": True, "content": {media: _request(model, media) for media in DECODERS}}
    operation["responses"]["200"]["content"] = {media: _answer(model, media) for media in ENCODERS}
    operation["responses"] |= _errors()
    return operation


def _request(model: Pipeline | None, media: str) -> Json:
    if "parquet" in media:
        return {"schema": {"type": "string", "format": "binary"}}
    if model is None:
        return {"schema": {}}
    if media == "text/csv":
        return {"schema": {"type": "string"}, "example": examples.csv_body(examples.record(model))}
    return {"schema": _ref("Records" if media == JSON else "Record")}


def _answer(model: Pipeline | None, media: str) -> Json:
    if model is None:
        return {"schema": {}}
    if media == JSON:
        return {"schema": _ref("Scores")}
    kind = "object" if "json" in media else "string"
    return {"schema": {"type": kind}, "example": examples.answer(model, model.form, media)}


def _state(summary: str) -> Json:
    operation = _operation(_STATE, summary)
    operation["responses"]["503"] = {"description": "The container is draining, or cannot answer."}
    return operation


def _operation(tag: str, summary: str, schema: Json | None = None, description: str = "OK") -> Json:
    content = {JSON: {"schema": schema or {"type": "object"}}}
    return {"tags": [tag], "summary": summary, "responses": {"200": {"description": description, "content": content}}}


def _errors(*left_out: type[RequestError]) -> Json:
    """Returns the answers to what goes wrong, by status."""
    return {
        str(error.status): {
            "description": text,
            "content": {JSON: {"schema": _ref("Error"), "example": error.to_dict()}},
        }
        for text, error in _ERRORS
        if not isinstance(error, left_out)
    }


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
