"""Predictions to response bytes, in the media type that `Accept` asks for."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trimodal.errors import NotAcceptable
from trimodal.records import FloatArray, Predictions

JSON = "application/json"
JSON_LINES = "application/jsonlines"
CSV = "text/csv"
OUTPUT_LABEL = "output-label"


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answers hold beside the scores.

    Attributes:
        numbers: write scores as JSON numbers instead of strings.
        label: add `output-label`, the most probable class.
        echo_id: add the record's id under its own field name.
        default: media type of a request without `Accept`, or with `*/*`.
    """

    numbers: bool = False
    label: bool = False
    echo_id: bool = False
    default: str = JSON


def encode(predictions: Predictions, accept: str | None, form: ResponseFormat) -> tuple[bytes, str]:
    """Writes predictions.

    Returns:
        The body and its media type.

    Raises:
        NotAcceptable: `accept` allows nothing that can be written.
    """
    media = negotiate(accept, form.default)
    return ENCODERS[media](predictions, form), media


def negotiate(accept: str | None, default: str = JSON) -> str:
    """Picks the media type of the answer (RFC 9110, section 12.5.1, without specificity).

    Raises:
        NotAcceptable: nothing that `accept` lists can be written.
    """
    wanted = sorted(_ranges(accept or "*/*"), key=lambda item: -item[1])
    for media, quality in wanted:
        if quality <= 0:
            continue
        if media in ("*/*", "*"):
            return default
        if media in ENCODERS:
            return media
        if media.endswith("/*"):
            for name in (default, *ENCODERS):
                if name.startswith(media[:-1]):
                    return name
    raise NotAcceptable(f"None of the accepted media types can be produced; accept one of {', '.join(ENCODERS)}.")


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    for item in accept.split(","):
        media, *parameters = item.split(";")
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if media.strip():
            yield media.strip().lower(), quality


def to_objects(predictions: Predictions, form: ResponseFormat) -> list[dict[str, object]]:
    """Returns one response object a record, its keys in the order that clients know."""
    rows = zip(_scores(predictions, form), _extras(predictions, form), strict=True)
    objects: list[dict[str, object]] = [{**scores, **extra} for scores, extra in rows]
    for place, error in predictions.errors.items():
        objects[place] = error.to_dict()
    return objects


def _scores(predictions: Predictions, form: ResponseFormat) -> Iterator[dict[str, object]]:
    for raw, calibrated in zip(predictions.raw, predictions.calibrated, strict=True):
        if predictions.binary:
            score, final = _format(raw[0], form), _format(calibrated[0], form)
            yield {"legacy-score": score, "calibrated-score": final, "score-percentile": final}
        else:
            row: dict[str, object] = {}
            for number, (p, c) in enumerate(zip(raw, calibrated, strict=True), start=1):
                row[f"prob_{number:02d}"] = _format(p, form)
                row[f"calibrated_prob_{number:02d}"] = _format(c, form)
            yield row


def _extras(predictions: Predictions, form: ResponseFormat) -> Iterator[dict[str, object]]:
    for label, identity in zip(predictions.labels, predictions.ids, strict=True):
        row: dict[str, object] = {}
        if form.label:
            row[OUTPUT_LABEL] = f"class-{label}"
        if form.echo_id and predictions.id_name is not None:
            row[predictions.id_name] = _echo(identity)
        yield row


def _echo(identity: object) -> str | int | float | None:
    """Returns an id as JSON can hold it."""
    if identity is None or isinstance(identity, int):
        return identity
    return identity if isinstance(identity, float) and math.isfinite(identity) else str(identity)


def _format(score: np.float32, form: ResponseFormat) -> str | float:
    """Returns the shortest decimal form of the float32 value as a double, which is what clients compare."""
    return float(score) if form.numbers else repr(float(score))


def _json(predictions: Predictions, form: ResponseFormat) -> bytes:
    return json.dumps({"predictions": to_objects(predictions, form)}).encode()


def _json_lines(predictions: Predictions, form: ResponseFormat) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in to_objects(predictions, form)).encode()


def _csv(predictions: Predictions, form: ResponseFormat) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for place, (scores, extra) in enumerate(zip(_columns(predictions), _extras(predictions, form), strict=True)):
        row = [*(f"{score:.4f}" for score in scores), *extra.values()]
        error = predictions.errors.get(place)
        writer.writerow(row if error is None else [f"error: {error}", *[""] * (len(row) - 1)])
    return out.getvalue().encode(errors="replace")


def _columns(predictions: Predictions) -> FloatArray:
    """Returns the CSV columns: binary raw, calibrated, calibrated; else all raw, then all calibrated."""
    parts = [predictions.raw, predictions.calibrated]
    if predictions.binary:
        parts.append(predictions.calibrated)
    return np.concatenate(parts, axis=1)


ENCODERS: dict[str, Callable[[Predictions, ResponseFormat], bytes]] = {
    JSON: _json,
    JSON_LINES: _json_lines,
    "application/x-ndjson": _json_lines,
    CSV: _csv,
}
"""Media type to the function that writes it."""
