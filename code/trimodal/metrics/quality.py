"""Counts what a model's owner wants to know of the data: what was cut, dropped, filled in, and what came out."""

from __future__ import annotations

from collections.abc import Sequence

from trimodal.metrics.instruments import Recorder
from trimodal.records import Features, FloatArray

TEXTS = ("primary", "secondary")


def count_quality(features: Sequence[Features], probabilities: FloatArray, recorder: Recorder) -> None:
    """Counts one run.

    Args:
        features: the records as the model read them.
        probabilities: float32 `[N, K]`.
        recorder: takes the counts; nothing is recorded where nothing happened, but for the scores: of class 1 where
            there are two classes, else of the most probable one.
    """
    for name in TEXTS:
        texts = [getattr(item, name) for item in features]
        _count(recorder, "TextsTruncated", sum(text.cut_messages for text in texts), Text=name)
        _count(recorder, "ChunksDropped", sum(text.dropped_chunks for text in texts), Text=name)
        _count(recorder, "UnmarkedTexts", sum(text.unmarked for text in texts), Text=name)
    _count(recorder, "ImputedValues", sum(item.imputed for item in features))
    _count(recorder, "UnknownCategories", sum(item.unknown for item in features))
    scores = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities.max(axis=1)
    for score in scores.tolist():
        recorder.record("Score", score)


def _count(recorder: Recorder, name: str, count: int, **dimensions: str) -> None:
    if count:
        recorder.record(name, count, **dimensions)
