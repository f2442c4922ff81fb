"""Features to probabilities through a split model: each text by its own encoder, then one head for all.

Every text, or every chunk of it where the encoder takes chunks, runs at its exact length: nothing is padded, equal
ones are computed once, and what was computed lately is remembered. The two encoders run side by side where that was
measured to be faster.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimodal.errors import InferenceFailed
from trimodal.records import EncodedText, Features, FloatArray
from trimodal.serving.memory import EncoderCache, Key, Outputs
from trimodal.serving.runner import Session, TabularInput, TextInput
from trimodal.serving.steps import Alone, Steps, always, finish

logger = logging.getLogger(__name__)

Array = NDArray[Any]

HEAD_RECORDS = 512
"""Records that are scored together: bounds the memory that their encoded texts take."""


SLICE_TOKENS = 512
"""Tokens after which other requests get a turn; at least both texts of one record."""

ALONE_UNITS = 16
"""Texts of a slice where no other request waits: few waits for the slower of two encoders side by side."""


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """One text's part of the model.

    Attributes:
        session: the graph.
        text: its inputs; `mask` is empty where it takes none.
        outputs: names of its outputs, which are inputs of the head.
        by_chunk: it takes single chunks, `[R, T]`; else a text of all its chunks, `[1, C, T]` or `[1, T]`.
        rows: most chunks of equal length that are run together.
        bucket: texts are padded to a multiple of so many tokens.
    """

    session: Session
    text: TextInput
    outputs: tuple[str, ...]
    by_chunk: bool
    rows: int = 1
    bucket: int = 1

    def units(self, text: EncodedText) -> list[list[list[int]]]:
        """Cuts a text into what runs alone: its chunks, or the whole of it."""
        return [[chunk] for chunk in text.chunks] if self.by_chunk else [text.chunks]

    def padded(self, chunks: Sequence[Sequence[int]]) -> int:
        """Returns the tokens that chunks which run together are padded to."""
        return self.text.tokens or -(-max(map(len, chunks)) // self.bucket) * self.bucket

    def run(self, units: Sequence[list[list[int]]], pad_id: int) -> list[Outputs]:
        """Runs units of one shape; returns the outputs of each."""
        chunks = [chunk for unit in units for chunk in unit]
        tokens = self.padded(chunks)
        ids = np.full((len(chunks), tokens), pad_id, self.text.dtype)
        mask = np.zeros_like(ids)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
            mask[row, : len(chunk)] = 1
        feed = {self.text.ids: ids, self.text.mask: mask}
        if not self.by_chunk and self.text.chunked:
            feed = {name: value[None] for name, value in feed.items()}
        feed.pop("", None)
        results = self.session.run(self.outputs, feed)
        if len(units) == 1:
            return [tuple(results)]
        return [tuple(result[row : row + 1] for result in results) for row in range(len(units))]


@dataclass(frozen=True, slots=True)
class Head:
    """What joins the texts and the tabular fields.

    Attributes:
        session: the graph.
        output: name of the probabilities, `[B, K]`.
        tabular: the tabular inputs.
        shapes: the texts' own inputs that it reads for their shape alone, by side (0 primary, 1 secondary).
    """

    session: Session
    output: str
    tabular: tuple[TabularInput, ...]
    shapes: tuple[tuple[int, TextInput, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SplitRunner:
    """Runs a split model; may be called from several threads.

    Attributes:
        encoders: the primary text's, the secondary text's.
        head: the rest.
        cache: remembered encoder outputs.
        pool: runs encoders side by side, or None to run them in turn.
        pad_id: token id that fills up a chunk where an encoder takes several; its mask hides it.
        crowded: the same encoders on one thread each, for while other requests are there, or None.
    """

    encoders: tuple[TextEncoder, TextEncoder]
    head: Head
    cache: EncoderCache = field(default_factory=lambda: EncoderCache(0))
    pool: ThreadPoolExecutor | None = None
    pad_id: int = 0
    crowded: tuple[TextEncoder, TextEncoder] | None = None

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Scores records.

        Returns:
            Probabilities, float32 `[N, K]`, in the order of `features`.

        Raises:
            InferenceFailed: a graph failed, or gave something that is not a probability.
        """
        return finish(self.steps(features, always))

    def steps(self, features: Sequence[Features], alone: Alone) -> Steps[FloatArray]:
        """Scores records as `run` does, in slices.

        Args:
            features: the records.
            alone: tells whether the encoders may run side by side, each on every core.
        """
        parts: list[FloatArray] = []
        for start in range(0, len(features), HEAD_RECORDS):
            if parts:
                yield
            parts.append((yield from self._run_slice(features[start : start + HEAD_RECORDS], alone)))
        return np.concatenate(parts)

    def _run_slice(self, features: Sequence[Features], alone: Alone) -> Steps[FloatArray]:
        units = {}
        places: list[tuple[list[Key], list[Key]]] = []
        for item in features:
            place: tuple[list[Key], list[Key]] = ([], [])
            for side, text in enumerate((item.primary, item.secondary)):
                for unit in self.encoders[side].units(text):
                    key = (side, _hash(unit))
                    units[key] = unit
                    place[side].append(key)
            places.append(place)
        try:
            encoded = yield from self._encode(units, sum(len(keys) for place in places for keys in place), alone)
            return self._score(features, places, encoded)
        except InferenceFailed:
            raise
        except Exception as err:
            logger.error("inference failed: %s", type(err).__name__)  # noqa: TRY400  its text can hold token ids
            raise InferenceFailed("The model failed on this request.") from err

    def _encode(self, units: Mapping[Key, list[list[int]]], wanted: int, alone: Alone) -> Steps[dict[Key, Outputs]]:
        """Encodes units that are not remembered, the longest first."""
        encoded = self.cache.find(units)
        missing = [key for key in units if key not in encoded]
        self.cache.count(wanted - len(missing), len(missing))
        batches = sorted(self._batches(missing, units), key=lambda keys: -_area(units[keys[0]]) * len(keys))
        done = 0
        while done < len(batches):
            if done:
                yield
            lonely = alone()
            together = self.pool if lonely else None
            encoders = self.encoders if lonely else self.crowded or self.encoders

            def run(keys: list[Key], encoders: tuple[TextEncoder, TextEncoder] = encoders) -> list[Outputs]:
                return encoders[keys[0][0]].run([units[key] for key in keys], self.pad_id)

            window = batches[done : done + (ALONE_UNITS if together else _slice_length(batches[done:], units))]
            mapped = together.map(run, window) if together is not None and len(window) > 1 else map(run, window)
            fresh = {
                key: value
                for keys, values in zip(window, mapped, strict=True)
                for key, value in zip(keys, values, strict=True)
            }
            self.cache.store(fresh)
            encoded |= fresh
            done += len(window)
        return encoded

    def _batches(self, keys: Iterable[Key], units: Mapping[Key, list[list[int]]]) -> Iterator[list[Key]]:
        """Groups chunks of equal length where their encoder takes several."""
        groups: dict[tuple[int, int], list[Key]] = {}
        for key in keys:
            if self.encoders[key[0]].rows == 1:
                yield [key]
            else:
                groups.setdefault((key[0], len(units[key][0])), []).append(key)
        for (side, _), group in groups.items():
            rows = self.encoders[side].rows
            yield from (group[start : start + rows] for start in range(0, len(group), rows))

    def _score(
        self, features: Sequence[Features], places: list[tuple[list[Key], list[Key]]], encoded: Mapping[Key, Outputs]
    ) -> FloatArray:
        """Runs the head on records whose encoded texts have equal shapes."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, place in enumerate(places):
            sizes = [self._axes(features[index], side) for side, _, _ in self.head.shapes]
            shape = (*map(len, place), *sizes, *(part.shape for keys in place for part in encoded[keys[0]]))
            groups.setdefault(shape, []).append(index)
        results: list[FloatArray] = []
        for group in groups.values():
            feed = self._feed([features[i] for i in group])
            for side, encoder in enumerate(self.encoders):
                outputs = [encoded[key] for i in group for key in places[i][side]]
                feed |= {
                    name: np.concatenate(parts)
                    for name, parts in zip(encoder.outputs, zip(*outputs, strict=True), strict=True)
                }
            (output,) = self.head.session.run([self.head.output], feed)
            results.append(_checked(output, [features[i] for i in group]))
        order = [i for group in groups.values() for i in group]
        probabilities = np.concatenate(results)
        result = np.empty_like(probabilities)
        result[order] = probabilities
        return result

    def _feed(self, batch: list[Features]) -> dict[str, Array]:
        tabular = np.stack([item.tabular for item in batch])
        feed: dict[str, Array] = {}
        for column in self.head.tabular:
            values = tabular[:, column.columns].astype(column.dtype, copy=False)
            feed[column.name] = values[:, 0] if column.flat else values
        for side, text, name in self.head.shapes:
            chunks, tokens = self._axes(batch[0], side)
            axes = (len(batch), chunks, tokens) if text.chunked else (len(batch), tokens)
            feed[name] = np.zeros(axes, text.dtype)
        return feed

    def _axes(self, item: Features, side: int) -> tuple[int, int]:
        """Returns the chunks and tokens of a text as its encoder saw it; single chunks have no common length."""
        chunks = (item.primary, item.secondary)[side].chunks
        encoder = self.encoders[side]
        return len(chunks), 1 if encoder.by_chunk else encoder.padded(chunks)


def _checked(output: Array, batch: list[Features]) -> FloatArray:
    """Returns the probabilities.

    Raises:
        InferenceFailed: they are not one finite row for each record.
    """
    if np.ndim(output) != 2 or len(output) != len(batch):
        raise InferenceFailed("The model gave no probabilities for this request.")
    finite = np.isfinite(output).all(axis=1)
    if not finite.all():
        bad = batch[int(np.argmin(finite))].index
        raise InferenceFailed(f"The model gave no finite score for record {bad}.", record=bad)
    return np.asarray(output, np.float32)


def _hash(unit: list[list[int]]) -> bytes:
    """Returns a hash of token ids that no two texts share in practice (128 bits)."""
    lengths = [len(unit), *map(len, unit)]
    ids = np.array([*lengths, *(token for chunk in unit for token in chunk)], np.int32)
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def _area(unit: list[list[int]]) -> int:
    return len(unit) * max(map(len, unit))


def _slice_length(batches: Sequence[list[Key]], units: Mapping[Key, list[list[int]]]) -> int:
    """Returns how many batches make a slice: two, or more while they are short."""
    tokens = 0
    for count, keys in enumerate(batches):
        tokens += _area(units[keys[0]]) * len(keys)
        if count >= 2 and tokens > SLICE_TOKENS:
            return count
    return len(batches)
