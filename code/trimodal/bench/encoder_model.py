"""One encoder of a Hugging Face directory as what is optimized."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trimodal.bench.apart import call_apart
from trimodal.bench.models import AnySession, Item, Work, encoder_work
from trimodal.bench.traffic import PRIMARY, draw_lengths
from trimodal.errors import ArtifactError
from trimodal.records import FloatArray


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
