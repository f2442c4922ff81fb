"""What is optimized: a trimodal model directory, or one encoder in a Hugging Face directory, behind one interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trimodal.bench.traffic import PRIMARY, draw_lengths, fixed, realistic
from trimodal.bench.variants import pytorch_variant
from trimodal.errors import ArtifactError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.facts import ModelFacts, open_view, read_facts
from trimodal.loading.optimize import Subject, read_subject
from trimodal.records import Features, FloatArray
from trimodal.serving.runner import Runner

Item = Any
"""One record: `Features` of a trimodal model, the token ids of one text."""


class AnySession(Protocol):
    """What runs a graph, or stands for one."""

    def run(self, output_names: Sequence[str], input_feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a record costs an ideal machine.

    Attributes:
        operations: additions and multiplications.
        weights: numbers that the products read, once a call.
        activations: numbers that the products read and write.
    """

    operations: float = 0.0
    weights: float = 0.0
    activations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.operations + other.operations, max(self.weights, other.weights), self.activations + other.activations
        )


def encoder_work(layers: int, hidden: int, inner: int, tokens: int) -> Work:
    """Counts a BERT encoder's work for one text: six products with weights a layer, and attention."""
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    return Work(
        operations=2.0 * weights * tokens + 4.0 * layers * tokens**2 * hidden,
        weights=weights,
        activations=float(layers * tokens * (10 * hidden + 2 * inner)),
    )


class Model(Protocol):
    """A model that is optimized and measured.

    Attributes:
        name: of the directory.
        graph: its FP32 export.
        embeds: the output is a vector, not probabilities.
        heads: attention heads of an encoder.
        hidden: width of a token.
        layers: attention layers, all encoders together.
        max_tokens: longest text.
        items: records that accuracy is judged on.
        labels: their true classes, or None.
        notes: what a reader of the results must know.
    """

    name: str
    embeds: bool
    heads: int
    hidden: int
    layers: int
    notes: list[str]

    @property
    def graph(self) -> Path:
        """See above."""

    @property
    def max_tokens(self) -> int:
        """See above."""

    @property
    def items(self) -> Sequence[Item]:
        """See above."""

    @property
    def labels(self) -> Sequence[int] | None:
        """See above."""

    def mix(self, count: int) -> Sequence[Item]:
        """Returns records of realistic lengths."""

    def fixed(self, count: int, tokens: int) -> Sequence[Item]:
        """Returns records whose every text has so many tokens."""

    def lengths(self, item: Item) -> list[int]:
        """Returns the tokens of each chunk that goes through an encoder."""

    def work(self, item: Item) -> Work:
        """Returns what a record costs at least."""

    def scorer(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns what opens a scorer of records on a session."""

    def padded(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns the same for texts that are all padded to `max_tokens`."""

    def pytorch(self, threads: int, *, bf16: bool) -> Callable[[], Any]:
        """Returns what opens a scorer in PyTorch; raises `ArtifactError` where there is none."""


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


@dataclass(frozen=True, slots=True)
class TextScorer:
    """Scores token ids: pads a batch to its longest text.

    Attributes:
        session: runs `input_ids` and `attention_mask`, int64 `[B, T]`.
        pad_id: fills up.
        tokens: pad to so many, or None.
    """

    session: AnySession
    pad_id: int
    tokens: int | None = None

    def run(self, items: Sequence[Sequence[int]]) -> FloatArray:
        """Returns float32 `[N, K]`."""
        width = self.tokens or max(map(len, items))
        ids = np.full((len(items), width), self.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, item in enumerate(items):
            ids[row, : len(item)] = item
            mask[row, : len(item)] = 1
        (output,) = self.session.run(["output"], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(output, np.float32)


@dataclass(slots=True)
class EncoderModel:
    """One encoder of a Hugging Face directory; see `Model`."""

    folder: Path
    name: str
    graph: Path
    embeds: bool
    heads: int
    hidden: int
    inner: int
    layers: int
    max_tokens: int
    pad_id: int
    items: Sequence[Item]
    labels: Sequence[int] | None = None
    notes: list[str] = field(default_factory=list)

    def mix(self, count: int) -> Sequence[Item]:
        """Returns texts of realistic lengths, in an order that mixes them."""
        sizes = np.random.default_rng(0).permutation(draw_lengths(count, *PRIMARY)).tolist()
        return [self._resize(place, min(size, self.max_tokens)) for place, size in enumerate(sizes)]

    def fixed(self, count: int, tokens: int) -> Sequence[Item]:
        """Returns texts of so many tokens."""
        return [self._resize(place, tokens) for place in range(count)]

    def _resize(self, place: int, tokens: int) -> list[int]:
        """Repeats or cuts a text's words; its first and last token stay the special ones."""
        first, *words, last = self.items[place % len(self.items)]
        filled = islice(cycle(words or [last]), place % (len(words) or 1), None)
        return [first, *islice(filled, tokens - 2), last]

    def lengths(self, item: Sequence[int]) -> list[int]:
        """Returns the text's tokens."""
        return [len(item)]

    def work(self, item: Sequence[int]) -> Work:
        """Returns what a text costs at least."""
        return encoder_work(self.layers, self.hidden, self.inner, len(item))

    def scorer(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns what opens a scorer of token ids."""
        return partial(_open_text_scorer, opening, self.pad_id, None)

    def padded(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns the same for texts that are all padded."""
        return partial(_open_text_scorer, opening, self.pad_id, self.max_tokens)

    def pytorch(self, threads: int, *, bf16: bool) -> Callable[[], Any]:
        """Returns what opens a scorer in PyTorch."""
        from trimodal.bench.huggingface import open_torch

        return self.scorer(partial(open_torch, self.folder, threads, bf16=bf16))


def _open_text_scorer(opening: Callable[[], AnySession], pad_id: int, tokens: int | None) -> TextScorer:
    return TextScorer(opening(), pad_id, tokens)


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


def read_encoder(folder: Path, work: Path, texts: Sequence[str], labels: Sequence[int] | None = None) -> EncoderModel:
    """Reads and exports one encoder.

    Args:
        folder: the Hugging Face directory.
        work: where the export goes.
        texts: what accuracy is judged on, and what requests are made of.
        labels: the texts' classes, or None.

    Raises:
        TrimodalError: it cannot be read or exported.
    """
    from trimodal.bench.apart import call_apart

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{folder.name}: neither a trimodal model directory nor a Hugging Face one "
                            "(no readable config.json).") from err  # fmt: skip
    graph = work / "model.onnx"
    difference, classifies = call_apart(partial(_export, folder, graph))
    pad_id = int(config.get("pad_token_id") or 0)
    most = int(config.get("max_position_embeddings") or 512)
    # RoBERTa counts positions from the one behind its padding's.
    most -= pad_id + 1 if "roberta" in str(config.get("model_type")) else 0
    items = tokenize(folder, texts, most, int(config.get("vocab_size") or 100))
    return EncoderModel(
        folder=folder,
        name=folder.resolve().name,
        graph=graph,
        embeds=not classifies,
        heads=int(config.get("num_attention_heads") or config.get("n_heads") or 0),
        hidden=int(config.get("hidden_size") or config.get("dim") or 0),
        inner=int(config.get("intermediate_size") or config.get("hidden_dim") or 0),
        layers=int(config.get("num_hidden_layers") or config.get("n_layers") or 0),
        max_tokens=most,
        pad_id=pad_id,
        items=items,
        labels=labels,
        notes=[f"The export equals PyTorch to {difference:.1e} of the largest output, at three other shapes."],
    )


def _export(folder: Path, graph: Path) -> tuple[float, bool]:
    from trimodal.bench.huggingface import export_directory

    return export_directory(folder, graph)


def tokenize(folder: Path, texts: Sequence[str], most: int, vocabulary: int) -> list[list[int]]:
    """Returns token ids of texts, cut to `most`; made-up ones where the directory has no fast tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        rng = np.random.default_rng(0)
        return [rng.integers(3, vocabulary, min(most, 2 + len(text.split()))).tolist() for text in texts]
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
