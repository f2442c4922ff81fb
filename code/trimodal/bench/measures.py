"""What is measured of a variant: times with their spread, and how far its outputs are from the FP32 reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimodal.bench.timing import summarize
from trimodal.errors import InferenceFailed
from trimodal.loading.compare import compare, f1_score
from trimodal.records import FloatArray

COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.97, "int4": 0.9}
"""Least cosine of a text's vector with the reference's, by precision. Measured on MiniLM and 120 English texts: bf16
0.99997, INT8 per channel 0.988; a wrong mask or a wrong pooling stays under 0.9."""


@dataclass(frozen=True, slots=True)
class Times:
    """What calls of one batch size took, in milliseconds of a call.

    Attributes:
        calls: how many.
        rounds: passes over the batches.
        p50: median.
        p95: 95th percentile.
        p99: 99th percentile; of fewer than 100 calls it lies next to the slowest.
        mean: mean.
        std: standard deviation.
        low: mean of the fastest round.
        high: mean of the slowest round.
        typical: mean over the batches of each one's median over the rounds; what ratios are made of.
    """

    calls: int
    rounds: int
    p50: float
    p95: float
    p99: float
    mean: float
    std: float
    low: float
    high: float
    typical: float

    def scaled(self, factor: float) -> Times:
        """Returns the times multiplied."""
        plain = asdict(self)
        counts = {name: plain.pop(name) for name in ("calls", "rounds")}
        return Times(**counts, **{name: value * factor for name, value in plain.items()})


def summarize_calls(seconds: NDArray[np.float64]) -> Times:
    """Sums up seconds, float64 `[rounds, batches]`."""
    timing = summarize(seconds)
    flat = seconds.ravel() * 1000
    p50, p95, p99 = (float(value) for value in np.percentile(flat, (50, 95, 99)))
    return Times(
        calls=flat.size, rounds=len(seconds), p50=p50, p95=p95, p99=p99, mean=float(flat.mean()),
        std=float(flat.std()), low=timing.low, high=timing.high, typical=timing.milliseconds,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far outputs are from the reference's.

    Attributes:
        records: compared, each alone.
        max_diff: largest difference of an output.
        mean_diff: mean difference.
        agreement: share of equal labels: the most probable class, or the nearest other text.
        cosine_mean: of outputs with the reference's, mean over the records.
        cosine_min: the least.
        f1: where labels are known: of the classes; for vectors, of the nearest other text's label.
        f1_reference: the reference's.
        batched_diff: largest difference of a timed batch's outputs.
        wrong: why the outputs are wrong, or None.
    """

    records: int
    max_diff: float
    mean_diff: float
    agreement: float
    cosine_mean: float
    cosine_min: float
    f1: float | None
    f1_reference: float | None
    batched_diff: float
    wrong: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a variant gave.

    Attributes:
        alone: of the accuracy records, each run alone, float32 `[N, K]`.
        batched: of one timed batch, float32 `[M, K]`.
    """

    alone: FloatArray
    batched: FloatArray


def judge(
    found: Outputs, reference: Outputs, precision: str, *, embeds: bool, labels: Sequence[int] | None
) -> Accuracy:
    """Compares a variant's outputs with the reference's, by the tolerance of its precision."""
    for own, right in ((found.alone, reference.alone), (found.batched, reference.batched)):
        if own.shape != right.shape or not np.isfinite(own).all():
            infinite = float("inf")
            return Accuracy(len(right), infinite, infinite, 0, 0, -1, None, None, infinite,
                            "outputs are missing or not finite")  # fmt: skip
    cosines = np.concatenate([_cosines(found.alone, reference.alone), _cosines(found.batched, reference.batched)])
    batched = float(np.abs(found.batched - reference.batched).max())
    difference = np.abs(found.alone - reference.alone)
    if embeds:
        agreement, f1, f1_reference = _neighbours(found.alone, reference.alone, labels)
        wrong = None
        if cosines.min() < COSINE[precision]:
            wrong = f"a vector's cosine with the reference is {cosines.min():.3f}, less than {COSINE[precision]:g}"
    else:
        comparison = compare(found.alone, reference.alone, precision, labels)
        together = compare(found.batched, reference.batched, precision)
        agreement, f1, f1_reference = comparison.agreement, comparison.f1, comparison.f1_reference
        wrong = comparison.refusal
        if wrong is None and together.largest > 0 and "probabilit" in (together.refusal or ""):
            wrong = f"in a batch, {together.refusal}"
    alone = cosines[: len(found.alone)]
    return Accuracy(
        records=len(found.alone), max_diff=float(difference.max()), mean_diff=float(difference.mean()),
        agreement=agreement, cosine_mean=float(alone.mean()), cosine_min=float(alone.min()), f1=f1,
        f1_reference=f1_reference, batched_diff=batched, wrong=wrong,
    )  # fmt: skip


def _cosines(own: FloatArray, right: FloatArray) -> NDArray[np.float64]:
    left, other = np.asarray(own, np.float64), np.asarray(right, np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(other, axis=1)
    result: NDArray[np.float64] = (left * other).sum(axis=1) / np.maximum(lengths, 1e-30)
    return result


def _neighbours(
    own: FloatArray, right: FloatArray, labels: Sequence[int] | None
) -> tuple[float, float | None, float | None]:
    """Returns the share of texts whose nearest other text stays, and both F1 of that text's label."""
    nearest, expected = _nearest(own), _nearest(right)
    agreement = float((nearest == expected).mean())
    if labels is None:
        return agreement, None, None
    classes = np.asarray(labels)
    one_hot = np.eye(int(classes.max()) + 1, dtype=np.float32)
    return agreement, f1_score(labels, one_hot[classes[nearest]]), f1_score(labels, one_hot[classes[expected]])


def _nearest(vectors: FloatArray) -> NDArray[np.intp]:
    if len(vectors) < 2:
        raise InferenceFailed("Nearest neighbours need two texts at least.")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    result: NDArray[np.intp] = similarity.argmax(axis=1)
    return result
