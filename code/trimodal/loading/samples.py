"""The records that a candidate is judged on: recorded ones, else made-up ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimodal.errors import ArtifactError, RequestError
from trimodal.loading.artifacts import Artifacts
from trimodal.loading.verify import read_golden
from trimodal.records import EncodedText, Features, FloatArray, Payload
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.naming import name_fields

MOST = 64
"""Records of golden.jsonl that are replayed, evenly picked: enough for a label agreement of 99 %."""

_PROBE_TOKENS = 64
"""Longest chunk of a probe: every start runs them."""

_LENGTHS = ((1.0, 0.3), (0.1, 0.5), (0.4, 0.1), (0.2, 0.2), (0.05, 0.02), (0.6, 0.4), (0.15, 1.0), (0.3, 0.15))
"""Shares of the longest text: both long and short, equal and unequal."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Records with what is known of them.

    Attributes:
        features: the records.
        expected: recorded probabilities, float32 `[N, K]`, or None.
        labels: true classes, or None.
    """

    features: Sequence[Features]
    expected: FloatArray | None = None
    labels: Sequence[int] | None = None


def read_samples(artifacts: Artifacts, encoder: FeatureEncoder, vocabulary: int) -> Samples:
    """Reads the records of `golden.jsonl`; makes some up where there is none.

    Args:
        artifacts: the model directory.
        encoder: reads records.
        vocabulary: token ids to draw from.

    Raises:
        ArtifactError: the file is not of its form.
    """
    path = artifacts.model_dir / "golden.jsonl"
    if not path.is_file():
        return Samples(make_features(artifacts, vocabulary))
    pairs = read_golden(path)
    picked = sorted({round(place) for place in np.linspace(0, len(pairs) - 1, min(MOST, len(pairs)))})
    try:
        records = name_fields(Payload([pairs[i][0] for i in picked]), artifacts.schema)
        features = [encoder.encode(record) for record in records]
    except RequestError as err:
        raise ArtifactError(f"golden.jsonl: {err}") from err
    widths = {len(pairs[i][1]) for i in picked}
    if len(widths) > 1:
        raise ArtifactError("golden.jsonl has lines with different numbers of classes; record it again.")
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    labels = [json.loads(lines[i]).get("label") for i in picked]
    known = all(isinstance(label, int) for label in labels)
    if known and not all(0 <= label < len(pairs[picked[0]][1]) for label in labels):
        raise ArtifactError("golden.jsonl has a label that is no class; labels are classes, counted from 0.")
    return Samples(features, np.array([pairs[i][1] for i in picked], np.float32), labels if known else None)


def make_probes(artifacts: Artifacts, vocabulary: int) -> list[Features]:
    """Makes up the short records whose scores are kept with an optimized model.

    Whoever opens it checks that it still gives them: other instructions or a damaged library would not.
    """
    return make_features(artifacts, vocabulary, longest=_PROBE_TOKENS)[3:6]


def make_features(artifacts: Artifacts, vocabulary: int, seed: int = 0, longest: int | None = None) -> list[Features]:
    """Makes up records: long and short texts, of one chunk and of several, random values.

    Args:
        artifacts: the model directory.
        vocabulary: token ids to draw from.
        seed: other seeds make other records.
        longest: tokens of the longest chunk, or None for as many as the model takes.
    """
    tokens = min(longest or artifacts.config.max_tokens, artifacts.config.max_tokens)
    rng = np.random.default_rng(seed)
    config = artifacts.config
    most = min(3, config.max_chunks or 3)

    def text(share: float, chunks: int) -> EncodedText:
        sizes = [max(2, round(share * tokens / (1 + place))) for place in range(chunks)]
        return EncodedText([rng.integers(0, vocabulary, size).tolist() for size in sizes])

    return [
        Features(
            index=index,
            primary=text(primary, 1 + (index % 4 == 3) * (most - 1)),
            secondary=text(secondary, 1 + (index % 8 == 5) * (most - 1)),
            tabular=rng.normal(0, 3, len(config.tabular)).astype(np.float32),
        )
        for index, (primary, secondary) in enumerate(_LENGTHS * 2)
    ]
