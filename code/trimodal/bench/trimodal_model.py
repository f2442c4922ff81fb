"""A trimodal model directory as what is optimized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from trimodal.bench.models import AnySession, Item, Work, encoder_work
from trimodal.bench.traffic import fixed, realistic
from trimodal.bench.variants import pytorch_variant
from trimodal.errors import ArtifactError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.facts import ModelFacts, open_view, read_facts
from trimodal.loading.optimize import Subject, read_subject
from trimodal.records import Features
from trimodal.serving.runner import Runner


@dataclass(slots=True)
class TrimodalModel:
    """A trimodal model directory; see `Model`."""

    subject: Subject
    facts: ModelFacts
    name: str
    heads: int
    hidden: int
    layers: int
    notes: list[str] = field(default_factory=list)
    embeds: bool = False

    @property
    def graph(self) -> Path:
        """The FP32 export."""
        return self.subject.artifacts.graph

    @property
    def max_tokens(self) -> int:
        """Longest chunk."""
        return self.subject.artifacts.config.max_tokens

    @property
    def items(self) -> Sequence[Item]:
        """The golden records."""
        return self.subject.samples.features

    @property
    def labels(self) -> Sequence[int] | None:
        """The golden records' labels."""
        return self.subject.samples.labels

    def mix(self, count: int) -> Sequence[Item]:
        """Returns records of realistic lengths."""
        return realistic(self.items, count, self.max_tokens).requests

    def fixed(self, count: int, tokens: int) -> Sequence[Item]:
        """Returns records whose two texts have so many tokens."""
        return fixed(self.items, count, tokens).requests

    def lengths(self, item: Features) -> list[int]:
        """Returns the tokens of each chunk."""
        return [len(chunk) for text in (item.primary, item.secondary) for chunk in text.chunks]

    def work(self, item: Features) -> Work:
        """Returns what a record costs at least; nothing where an encoder is not known."""
        total, weights = Work(), 0.0
        for text, one in zip((item.primary, item.secondary), self.facts.encoders, strict=False):
            chunks = [encoder_work(one.layers, one.hidden, one.inner, len(chunk)) for chunk in text.chunks]
            weights += chunks[0].weights
            total = sum(chunks, total)
        return replace(total, weights=weights)

    def scorer(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns what opens a scorer of records."""
        return partial(_open_runner, opening, self.subject, None)

    def padded(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns the same for texts that are all padded."""
        return partial(_open_runner, opening, self.subject, self.max_tokens)

    def pytorch(self, threads: int, *, bf16: bool) -> Callable[[], Any]:
        """Returns what opens a scorer in PyTorch."""
        return pytorch_variant(self.subject, threads, bf16=bf16).open


def _open_runner(opening: Callable[[], AnySession], subject: Subject, tokens: int | None) -> Runner:
    layout = subject.layout
    if tokens is not None:
        layout = replace(
            layout,
            primary=replace(layout.primary, tokens=layout.primary.tokens or tokens),
            secondary=replace(layout.secondary, tokens=layout.secondary.tokens or tokens),
        )
    return Runner(opening(), layout, subject.pad_id)


def is_trimodal(folder: Path) -> bool:
    """Tells a trimodal model directory by its `hyperparameters.json`, or by its network's files."""
    return any((folder / name).is_file() for name in ("hyperparameters.json", "model_artifacts.pth"))


def read_trimodal(folder: Path) -> TrimodalModel:
    """Reads a trimodal model directory.

    Raises:
        ArtifactError: it cannot be used, or has no `model.onnx`.
    """
    artifacts = read_artifacts(folder)
    if not artifacts.has_graph:
        raise ArtifactError("model.onnx is missing from the model directory; write it with `trimodal export`.")
    view = open_view(artifacts.graph)
    facts = read_facts(artifacts, view)
    known = [encoder for encoder in facts.encoders if encoder.heads]
    heads, hidden = (known[0].heads, known[0].hidden) if known else (0, 0)
    return TrimodalModel(read_subject(artifacts, view), facts, folder.resolve().name, heads, hidden, facts.layers)
