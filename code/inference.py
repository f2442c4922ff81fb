"""SageMaker's four handler functions over the trimodal pipeline.

A model directory may bring a `code/inference.py` of its own; each function that it defines takes the place of ours.
"""

import functools
import os
from dataclasses import replace
from pathlib import Path

from trimodal.loading.load import load_pipeline, response_format
from trimodal.records import Payload, Predictions
from trimodal.serving.decode import decode
from trimodal.serving.encode import encode
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import Settings


@functools.cache
def _settings() -> Settings:
    return Settings.from_environment(os.environ)


def model_fn(model_dir: str) -> Pipeline:
    """Loads a model directory; raises `ArtifactError` with the remedy when it cannot be used."""
    return load_pipeline(replace(_settings(), model_dir=Path(model_dir)))


def input_fn(body: bytes | str, content_type: str) -> Payload:
    """Parses a request body; raises a `RequestError` that says what is wrong with it."""
    settings = _settings()
    content = body.encode() if isinstance(body, str) else body
    return decode(content, content_type, settings.limits, report=settings.report_errors)


def predict_fn(payload: Payload, model: Pipeline) -> Predictions:
    """Scores the records of a request; raises a `RequestError` that names the record."""
    return model.predict(payload)


def output_fn(predictions: Predictions, accept: str) -> tuple[bytes, str]:
    """Writes the answer; returns its bytes and media type."""
    return encode(predictions, accept, response_format(_settings()))
