"""`POST /predict`: JSON in, JSON with numbers out, for clients that are written against the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable

from trimodal.errors import NotFound
from trimodal.serving.decode import decode
from trimodal.serving.encode import JSON, ResponseFormat, encode
from trimodal.serving.pipeline import Pipeline
from trimodal.serving.steps import Alone, Steps

FORM = ResponseFormat(numbers=True, label=True, echo_id=True)
"""Scores as numbers, the most probable class, and the record's id."""


def predict_steps(model: object) -> Callable[[bytes, Alone], Steps[tuple[bytes, str]]]:
    """Returns what answers `/predict` in slices.

    Args:
        model: a `Pipeline`; another model of a user's own has no `/predict`.
    """

    def steps(body: bytes, alone: Alone) -> Steps[tuple[bytes, str]]:
        if not isinstance(model, Pipeline):
            raise NotFound("This model has handlers of its own; use POST /invocations.")
        predictions = yield from model.steps(decode(body, JSON, model.limits), alone)
        return encode(predictions, JSON, FORM)

    return steps
