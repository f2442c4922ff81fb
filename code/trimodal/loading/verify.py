"""Replays recorded records: do the answers still hold?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimodal.errors import ArtifactError
from trimodal.loading.compare import Comparison, compare
from trimodal.records import Payload
from trimodal.serving.pipeline import Pipeline


def replay_golden(pipeline: Pipeline, path: Path) -> Comparison:
    """Scores the records of `golden.jsonl`.

    Returns:
        How far the scores are from the recorded ones, by the tolerance of the precision that is served.

    Raises:
        ArtifactError: the file is missing or not of its form.
        RequestError: a record cannot be scored.
    """
    if not path.is_file():
        raise ArtifactError("golden.jsonl is missing from the model directory; there is nothing to verify against.")
    pairs = read_golden(path)
    predictions = pipeline.predict(Payload([record for record, _ in pairs]))
    if len({len(probs) for _, probs in pairs}) > 1:
        raise ArtifactError("golden.jsonl has lines with different numbers of classes; record it again.")
    expected = np.array([probs for _, probs in pairs], np.float32)
    expected = expected[:, 1:] if pipeline.binary else expected
    if expected.shape != predictions.raw.shape:
        raise ArtifactError("golden.jsonl holds another number of classes than the model; record it again.")
    precision = str(pipeline.status.get("precision", "fp32"))
    if pipeline.binary:  # one score a record: give both classes, so that labels can be compared
        both = [np.concatenate([1 - scores, scores], axis=1) for scores in (predictions.raw, expected)]
        return compare(both[0], both[1], precision)
    return compare(predictions.raw, expected, precision)


def read_golden(path: Path) -> list[tuple[Mapping[str, Any], list[float]]]:
    """Reads `golden.jsonl`: lines `{"record": {…}, "probs": […]}`.

    Returns:
        Pairs of a record and its expected probabilities.

    Raises:
        ArtifactError: a line is not of that form.
    """
    pairs: list[tuple[Mapping[str, Any], list[float]]] = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactError("golden.jsonl is not readable as UTF-8 text; record it again.") from err
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            pairs.append((dict(item["record"]), [float(p) for p in item["probs"]]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as err:
            raise ArtifactError(
                f"golden.jsonl line {number} must be an object with “record” and “probs”; record it again."
            ) from err
    if not pairs:
        raise ArtifactError("golden.jsonl holds no record; record it again.")
    return pairs
