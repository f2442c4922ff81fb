"""Raw probabilities to calibrated scores, by the tables of the model directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trimodal.records import FloatArray

Table = tuple[tuple[float, float], ...]
"""Pairs of (raw, calibrated) score."""


def interpolate(score: float, table: Table) -> float:
    """Reads a calibrated score off a table: clamped at both ends, linear in the first bracketing interval.

    The first interval in the table's own order counts, as in the service that the tables were made for.
    """
    if score <= table[0][0]:
        return table[0][1]
    if score >= table[-1][0]:
        return table[-1][1]
    for (x1, y1), (x2, y2) in pairwise(table):
        if x1 <= score <= x2:
            return y1 if x1 == x2 else y1 + (score - x1) * (y2 - y1) / (x2 - x1)
    return table[-1][1]


@dataclass(frozen=True, slots=True)
class Calibrator:
    """The calibrators of one model; without any, scores stay as they are.

    Attributes:
        binary: table for the probability of class 1, or None.
        classes: class index to its table; a class without one keeps its probability before renormalisation.
    """

    binary: Table | None = None
    classes: Mapping[int, Table] | None = None

    def calibrate(self, probabilities: FloatArray) -> FloatArray:
        """Calibrates probabilities.

        Args:
            probabilities: float32 `[N, K]`.

        Returns:
            float32 `[N, K]`; with a binary table only column 1 is calibrated and column 0 is its complement.
        """
        if self.binary is not None and probabilities.shape[1] == 2:
            score = np.array([interpolate(float(p), self.binary) for p in probabilities[:, 1]], np.float32)
            return np.stack([np.float32(1) - score, score], axis=1)
        if not self.classes:
            return probabilities
        scores = probabilities.copy()
        for index, table in self.classes.items():
            scores[:, index] = [interpolate(float(p), table) for p in probabilities[:, index]]
        total = scores.sum(axis=1, keepdims=True)
        normalized: FloatArray = np.divide(scores, total, out=probabilities.copy(), where=total > 0)
        return normalized
