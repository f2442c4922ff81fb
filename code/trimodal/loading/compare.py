"""Compares a candidate's probabilities with the reference's: one table of tolerances, used everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimodal.records import FloatArray


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a precision may change of a probability.

    Attributes:
        largest: of all differences.
        mean: of all differences.
    """

    largest: float
    mean: float


TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(1e-4, 1e-4),
    "fp16": Tolerance(1e-2, 1e-2),
    "bf16": Tolerance(3e-2, 3e-2),
    "int8": Tolerance(1e-1, 2e-2),
    "int4": Tolerance(1e-1, 2e-2),
}
AGREEMENT = 0.99
"""Least share of records whose most probable class stays the same."""

SLOWER = 1.03
"""Times the reference's time from which a candidate counts as slower: below it lies the noise of a few seconds'
measurement, and a split model has equal texts computed once besides."""

F1_LOSS = 0.01
"""Most that F1 may fall where the true labels are known."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a candidate is from the reference.

    Attributes:
        records: how many were compared.
        largest: largest difference of a probability.
        mean: mean difference.
        agreement: share of records with the same label.
        f1: of the candidate, or None where labels are not known.
        f1_reference: of the reference.
        refusal: why the candidate is refused, or None.
    """

    records: int
    largest: float
    mean: float
    agreement: float
    f1: float | None
    f1_reference: float | None
    refusal: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def compare(
    candidate: FloatArray, reference: FloatArray, precision: str, labels: Sequence[int] | None = None
) -> Comparison:
    """Compares probabilities, float32 `[N, K]`, by the tolerance of a precision."""
    if candidate.shape != reference.shape or not (np.isfinite(candidate).all() and np.isfinite(reference).all()):
        return Comparison(
            len(reference), float("inf"), float("inf"), 0.0, None, None, "scores are missing or not finite"
        )
    difference = np.abs(candidate - reference)
    largest, mean = float(difference.max()), float(difference.mean())
    agreement = float((candidate.argmax(1) == reference.argmax(1)).mean())
    f1 = None if labels is None else f1_score(labels, candidate)
    f1_reference = None if labels is None else f1_score(labels, reference)
    tolerance = TOLERANCES[precision]
    refusal = None
    if largest > tolerance.largest:
        refusal = f"a probability differs by {largest:.2g}, more than {tolerance.largest:g}"
    elif mean > tolerance.mean:
        refusal = f"probabilities differ by {mean:.2g} on average, more than {tolerance.mean:g}"
    elif agreement < AGREEMENT:
        refusal = f"{agreement:.1%} of the labels agree, less than {AGREEMENT:.0%}"
    elif f1 is not None and f1_reference is not None and f1 < f1_reference - F1_LOSS:
        refusal = f"F1 falls from {f1_reference:.3f} to {f1:.3f}"
    return Comparison(len(reference), largest, mean, agreement, f1, f1_reference, refusal)


def f1_score(labels: Sequence[int], probabilities: FloatArray) -> float:
    """Returns F1: of class 1 for two classes, else the mean over the classes that occur (macro)."""
    truth, guess = np.asarray(labels), probabilities.argmax(1)
    classes = [1] if probabilities.shape[1] == 2 else sorted(set(truth.tolist()) | set(guess.tolist()))
    scores = []
    for label in classes:
        hits = int(((truth == label) & (guess == label)).sum())
        total = int((truth == label).sum() + (guess == label).sum())
        scores.append(2 * hits / total if total else 1.0)
    return float(np.mean(scores))
