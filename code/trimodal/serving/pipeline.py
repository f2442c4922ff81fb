"""The request path as one object: decode → name → text, tabular → run → calibrate → encode."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trimodal.errors import InvalidRecord, RequestError
from trimodal.limits import DEFAULT_LIMITS, Limits
from trimodal.records import Features, FloatArray, Payload, Predictions, Record, Schema
from trimodal.serving.calibrate import Calibrator
from trimodal.serving.decode import decode, find_decoder
from trimodal.serving.encode import ResponseFormat, encode, negotiate
from trimodal.serving.naming import name_fields
from trimodal.serving.steps import Alone, Steps, always, finish
from trimodal.serving.tabular import is_missing

SLICE_RECORDS = 32
"""Records whose texts are tokenized before other requests get a turn."""

SLICE_SECONDS = 0.05
"""Time after which they get one anyway: long texts take longer."""


class Reader(Protocol):
    """What reads records: a `FeatureEncoder`."""

    def encode(self, record: Record) -> Features:
        """Turns one record into features."""


class Scorer(Protocol):
    """What scores features: a `Runner` or a `SplitRunner`."""

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Returns probabilities, float32 `[N, K]`."""

    def steps(self, features: Sequence[Features], alone: Alone, /) -> Steps[FloatArray]:
        """Does the same in slices."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A loaded model; may be called from several threads.

    Attributes:
        schema: the model's fields.
        features: reads records.
        runner: scores them.
        calibrator: calibrates the scores.
        form: how answers are written.
        binary: two classes, one score.
        classes: how many; only read where records could not be scored.
        limits: what a request may hold.
        report_errors: a record that cannot be scored is answered with an error in its place; else its request fails.
        status: what serves and why, in plain values: level of the ladder, rung, precision, engine, causes.
    """

    schema: Schema
    features: Reader
    runner: Scorer
    calibrator: Calibrator
    form: ResponseFormat
    binary: bool
    classes: int = 2
    limits: Limits = DEFAULT_LIMITS
    report_errors: bool = False
    status: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, body: bytes, content_type: str, accept: str | None) -> tuple[bytes, str]:
        """Answers one request.

        Args:
            body: the request's bytes.
            content_type: its media type.
            accept: media types that the client takes, or None.

        Returns:
            The answer's body and media type.

        Raises:
            RequestError: see `trimodal.errors`.
        """
        find_decoder(content_type)
        negotiate(accept, self.form.default)
        payload = decode(body, content_type, self.limits, report=self.report_errors)
        return encode(self.predict(payload), accept, self.form)

    def predict(self, payload: Payload) -> Predictions:
        """Scores the records of a decoded request.

        Raises:
            InvalidRecord: a record cannot be scored.
            InferenceFailed: the model failed.
        """
        return finish(self.steps(payload, always))

    def steps(self, payload: Payload, alone: Alone) -> Steps[Predictions]:
        """Scores the records of a decoded request as `predict` does, in slices of a few records.

        Args:
            payload: the request.
            alone: tells whether a slice may take every core.
        """
        errors: dict[int, RequestError] = {}
        records = name_fields(payload, self.schema, errors if self.report_errors else None, self.limits)
        features: list[Features] = []
        begun = time.perf_counter()
        for place, record in enumerate(records, start=1):
            try:
                features.append(self.features.encode(record))
            except InvalidRecord as err:
                if not self.report_errors:
                    raise
                errors[record.index] = err
            if place % SLICE_RECORDS == 0 or time.perf_counter() - begun > SLICE_SECONDS:
                yield
                begun = time.perf_counter()
        probabilities = (yield from self.runner.steps(features, alone)) if features else self._nothing(0)
        return self._predictions(records, probabilities, errors)

    def _predictions(
        self, records: Sequence[Record], probabilities: FloatArray, errors: dict[int, RequestError]
    ) -> Predictions:
        """Puts scores, ids and errors into the places of their records."""
        calibrated = self.calibrator.calibrate(probabilities)
        ids: list[object] = [None] * (len(probabilities) + len(errors))
        for record in records:
            identity = record.values.get(self.schema.id_name or "")
            ids[record.index] = None if is_missing(identity) else identity
        if errors:
            scored = [place for place in range(len(ids)) if place not in errors]
            raw, final = self._nothing(len(ids)), self._nothing(len(ids))
            raw[scored], final[scored] = probabilities, calibrated
            probabilities, calibrated = raw, final
        return Predictions(
            raw=probabilities[:, 1:] if self.binary else probabilities,
            calibrated=calibrated[:, 1:] if self.binary else calibrated,
            labels=probabilities.argmax(axis=1).tolist(),
            ids=ids,
            binary=self.binary,
            id_name=self.schema.id_name,
            errors=errors,
        )

    def _nothing(self, records: int) -> FloatArray:
        return np.zeros((records, self.classes), np.float32)
