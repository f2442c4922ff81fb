"""Features to probabilities: groups records, pads as little as possible, runs the ONNX graph.

Rows of one run have equal chunk counts, because the model's mean over chunks has no mask; they are padded only to
the longest text among them. So a record's score never depends on the other records of its request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trimodal.errors import InferenceFailed
from trimodal.records import EncodedText, Features, FloatArray
from trimodal.serving.steps import Alone, Steps, always, finish

logger = logging.getLogger(__name__)

MAX_RUN_TOKENS = 4096
"""Padded tokens of one run, both texts together: bounds the memory of a run whatever the request's size."""

MAX_PADDING = 1.1
"""A run stops growing where padding would make it this many times its real tokens: padding costs like text."""


class Session(Protocol):
    """What the runner needs of an `onnxruntime.InferenceSession`."""

    def run(self, output_names: Sequence[str], input_feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the graph."""


@dataclass(frozen=True, slots=True)
class TextInput:
    """The two inputs of one text.

    Attributes:
        ids: name of the token ids' input.
        mask: name of the attention mask's input.
        dtype: integer type of both.
        chunked: `[B, C, T]`; else `[B, T]`, one chunk a record.
        chunks: fixed size of the chunk axis, or None.
        tokens: fixed size of the token axis, or None.
    """

    ids: str
    mask: str
    dtype: DTypeLike
    chunked: bool = True
    chunks: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TabularInput:
    """One tabular input.

    Attributes:
        name: the input's name.
        dtype: its floating point type.
        columns: indices into `Features.tabular`.
        flat: the input is `[B]` instead of `[B, columns]`.
    """

    name: str
    dtype: DTypeLike
    columns: tuple[int, ...]
    flat: bool = False


@dataclass(frozen=True, slots=True)
class GraphLayout:
    """The inputs and the output of a graph, as found in it.

    Attributes:
        primary: inputs of the dialogue.
        secondary: inputs of the shipment history.
        tabular: the tabular inputs.
        output: name of the probabilities, `[B, K]`.
        batch: fixed size of the batch axis, or None.
        rows: most records of one run, or None.
    """

    primary: TextInput
    secondary: TextInput
    tabular: tuple[TabularInput, ...]
    output: str
    batch: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs one graph.

    Attributes:
        session: the graph, ready to run; may be called from several threads.
        layout: its inputs and output.
        pad_id: token id that fills up a text; the mask hides it.
    """

    session: Session
    layout: GraphLayout
    pad_id: int = 0

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Scores records.

        Returns:
            Probabilities, float32 `[N, K]`, in the order of `features`.

        Raises:
            InferenceFailed: the graph failed, or gave something that is not a probability.
        """
        return finish(self.steps(features, always))

    def steps(self, features: Sequence[Features], _alone: Alone) -> Steps[FloatArray]:
        """Scores records as `run` does, one run of the graph a slice."""
        order: list[int] = []
        parts: list[FloatArray] = []
        for batch in self._batches(features):
            if parts:
                yield
            parts.append(self._run_batch([features[i] for i in batch]))
            order.extend(batch)
        probabilities = np.concatenate(parts)
        result = np.empty_like(probabilities)
        result[order] = probabilities
        return result

    def _batches(self, features: Sequence[Features]) -> Iterator[list[int]]:
        """Yields indices of records that are run together: equal chunk counts, similar lengths."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, item in enumerate(features):
            groups.setdefault((len(item.primary.chunks), len(item.secondary.chunks)), []).append(index)
        for group in groups.values():
            sizes = {i: self._shape(features[i]) for i in group}
            group.sort(key=lambda i: sizes[i])
            yield from self._split(group, sizes)

    def _split(self, group: list[int], sizes: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
        """Cuts a sorted group where its padded size passes a limit."""
        batch: list[int] = []
        real = longest_primary = longest_secondary = 0
        for index in group:
            primary, secondary = sizes[index]
            longest_primary = max(longest_primary, primary)
            longest_secondary = max(longest_secondary, secondary)
            real += primary + secondary
            padded = (len(batch) + 1) * (longest_primary + longest_secondary)
            full = len(batch) in (self.layout.batch, self.layout.rows)
            if batch and (full or padded > min(MAX_RUN_TOKENS, MAX_PADDING * real)):
                yield batch
                batch, real = [], primary + secondary
                longest_primary, longest_secondary = primary, secondary
            batch.append(index)
        yield batch

    def _shape(self, item: Features) -> tuple[int, int]:
        """Returns the padded tokens of both texts of one record."""
        return (_area(item.primary, self.layout.primary), _area(item.secondary, self.layout.secondary))

    def _run_batch(self, batch: list[Features]) -> FloatArray:
        rows = len(batch)
        if self.layout.batch is not None:
            batch = batch + [batch[-1]] * (self.layout.batch - rows)
        feed = self._feed(batch)
        try:
            (output,) = self.session.run([self.layout.output], feed)
        except Exception as err:
            logger.error("inference failed: %s", type(err).__name__)  # noqa: TRY400  its text can hold token ids
            raise InferenceFailed("The model failed on this request.") from err
        if np.ndim(output) != 2 or len(output) != len(batch):
            raise InferenceFailed("The model gave no probabilities for this request.")
        probabilities = np.asarray(output[:rows], dtype=np.float32)
        finite = np.isfinite(probabilities).all(axis=1)
        if not finite.all():
            bad = batch[int(np.argmin(finite))].index
            raise InferenceFailed(f"The model gave no finite score for record {bad}.", record=bad)
        return probabilities

    def _feed(self, batch: list[Features]) -> dict[str, NDArray[Any]]:
        feed = self._text_feed([item.primary for item in batch], self.layout.primary)
        feed |= self._text_feed([item.secondary for item in batch], self.layout.secondary)
        tabular = np.stack([item.tabular for item in batch])
        for column in self.layout.tabular:
            values = tabular[:, column.columns].astype(column.dtype, copy=False)
            feed[column.name] = values[:, 0] if column.flat else values
        return feed

    def _text_feed(self, texts: list[EncodedText], layout: TextInput) -> dict[str, NDArray[Any]]:
        """Returns token ids and mask, `[B, C, T]` or `[B, T]`, padded to the longest chunk or the fixed axes."""
        chunks = layout.chunks or len(texts[0].chunks)
        tokens = layout.tokens or max(len(chunk) for text in texts for chunk in text.chunks)
        ids = np.full((len(texts), chunks, tokens), self.pad_id, dtype=layout.dtype)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            for place, chunk in enumerate(text.chunks):
                ids[row, place, : len(chunk)] = chunk
                mask[row, place, : len(chunk)] = 1
        if not layout.chunked:
            ids, mask = ids[:, 0], mask[:, 0]
        return {layout.ids: ids, layout.mask: mask}


def _area(text: EncodedText, layout: TextInput) -> int:
    """Returns chunks × tokens of one text as it will be padded on its own."""
    chunks = layout.chunks or len(text.chunks)
    return chunks * (layout.tokens or max(len(chunk) for chunk in text.chunks))
