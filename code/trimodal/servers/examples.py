"""Requests and answers to show: complete, in the model's own fields, and made of nobody's data."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np

from trimodal.records import Predictions
from trimodal.serving.encode import ENCODERS, ResponseFormat
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.pipeline import Pipeline
from trimodal.serving.tabular import TabularEncoder

_DIALOGUE = "[bom] my parcel never arrived and i want my money back [eom] [bom] it was handed to you on monday [eom]"
_HISTORY = "[bom] out for delivery [eom] [bom] delivered, signed by a neighbour [eom]"
_ID = "A-1"


def tabular(model: Pipeline) -> TabularEncoder | None:
    """Returns what reads the tabular fields, whatever measures it from outside; None where that is not known."""
    inner = getattr(model.features, "reader", model.features)
    return inner.tabular if isinstance(inner, FeatureEncoder) else None


def record(model: Pipeline) -> dict[str, Any]:
    """Returns a record that the model scores: made-up texts, and numbers that stand in for missing ones."""
    schema, reader = model.schema, tabular(model)
    values: dict[str, Any] = {} if schema.id_name is None else {schema.id_name: _ID}
    values |= {schema.primary: _DIALOGUE, schema.secondary: _HISTORY}
    for name in schema.tabular:
        if reader is not None and name in reader.risk_tables:
            values[name] = next(iter(reader.risk_tables[name].bins), "")
        else:
            values[name] = 0.0 if reader is None else reader.imputation.get(name, 0.0)
    return values


def csv_body(values: dict[str, Any]) -> str:
    """Returns a record as CSV with a header."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([list(values), list(values.values())])
    return out.getvalue()


def answer(model: Pipeline, form: ResponseFormat, media: str) -> Any:
    """Returns an answer to one record, written as every answer is: a text in CSV, else the object."""
    probabilities = np.full((1, model.classes), 0.25 / max(1, model.classes - 1), np.float32)
    probabilities[0, -1] = 0.75
    scores = probabilities[:, 1:] if model.binary else probabilities
    predictions = Predictions(scores, scores, [model.classes - 1], [_ID], model.binary, model.schema.id_name)
    body = ENCODERS[media](predictions, form)
    return json.loads(body) if "json" in media else body.decode()
