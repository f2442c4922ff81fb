"""The requests that are timed: a realistic mix of text lengths, fixed lengths, and texts that come again.

Lengths decide the time, words do not; so the words are those of the model directory's golden records, repeated or
cut to the length that is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from statistics import NormalDist, mean, median

import numpy as np

from trimodal.records import EncodedText, Features

MIX = "mix"
"""Name of the realistic traffic."""

PRIMARY = (101.0, 80.0, 315)
"""Tokens of the dialogue in real traffic: mean, median, longest."""

SECONDARY = (68.0, 68.0 * 80 / 101, 212)
"""Tokens of the shipment history: the mean is known; shaped as the dialogue's."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one kind, each of one record.

    Attributes:
        name: `mix`, `S=…` or `repeats`.
        requests: the records.
        note: in what it is not what was asked for, or empty.
    """

    name: str
    requests: Sequence[Features]
    note: str = ""

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of the primary and of the secondary texts."""
        return (
            [sum(map(len, item.primary.chunks)) for item in self.requests],
            [sum(map(len, item.secondary.chunks)) for item in self.requests],
        )

    def to_json(self) -> dict[str, object]:
        """Returns its statistics in plain values."""
        sides = zip(("primary", "secondary"), self.lengths, strict=True)
        statistics: Mapping[str, object] = {
            side: {"mean": round(mean(sizes), 1), "median": median(sizes), "max": max(sizes)} for side, sizes in sides
        }
        return {"name": self.name, "requests": len(self.requests), "note": self.note, **statistics}


def draw_lengths(count: int, average: float, middle: float, longest: int) -> list[int]:
    """Returns text lengths in tokens, ascending: quantiles of a log-normal distribution, clipped.

    Quantiles instead of draws, so that few requests already have the statistics; the spread is searched for, since
    clipping takes from the mean.
    """
    normal = NormalDist()
    scores = np.array([normal.inv_cdf((place + 0.5) / count) for place in range(count)])
    low, high = 0.0, 3.0
    for _ in range(40):
        spread = (low + high) / 2
        lengths = np.clip(np.rint(middle * np.exp(spread * scores)), 3, longest)
        low, high = (spread, high) if lengths.mean() < average else (low, spread)
    return [int(length) for length in lengths]


def realistic(samples: Sequence[Features], count: int, max_tokens: int, seed: int = 0) -> Traffic:
    """Makes the realistic mix.

    Args:
        samples: records whose words and tabular values are used.
        count: requests.
        max_tokens: tokens of the longest chunk that the model takes; longer texts are cut.
        seed: of the order in which lengths come and meet.
    """
    rng = np.random.default_rng(seed)
    pairs = [rng.permutation(draw_lengths(count, *shape)).tolist() for shape in (PRIMARY, SECONDARY)]
    cut = sum(size > max_tokens for side in pairs for size in side)
    note = f"{cut} of {2 * count} texts are cut to max_sen_len={max_tokens}" if cut else ""
    lengths = [(min(a, max_tokens), min(b, max_tokens)) for a, b in zip(*pairs, strict=True)]
    return Traffic(MIX, _records(samples, lengths), note)


def fixed(samples: Sequence[Features], count: int, tokens: int) -> Traffic:
    """Makes requests whose two texts both have `tokens` tokens."""
    return Traffic(f"S={tokens}", _records(samples, [(tokens, tokens)] * count))


def repeating(mix: Traffic) -> Traffic:
    """Returns the mix with every second shipment text replaced by one that was seen before: half of them repeat.

    A request brings a new shipment text, and the second one after it brings that text again.
    """
    texts = [item.secondary for item in mix.requests]
    sources = [place - 2 if place % 4 >= 2 else place for place in range(len(texts))]
    requests = [replace(item, secondary=texts[at]) for item, at in zip(mix.requests, sources, strict=True)]
    return Traffic("repeats", requests, mix.note)


def saved_tokens(traffic: Traffic) -> float:
    """Returns the tokens of all texts over those of the texts that are not a repeated shipment text."""
    firsts = {tuple(map(tuple, item.secondary.chunks)) for item in traffic.requests}
    primary, secondary = map(sum, traffic.lengths)
    return (primary + secondary) / (primary + sum(len(chunk) for text in firsts for chunk in text))


def _records(samples: Sequence[Features], lengths: Sequence[tuple[int, int]]) -> list[Features]:
    return [
        Features(
            index=0,
            primary=_resize(sample.primary, primary, index),
            secondary=_resize(sample.secondary, secondary, index),
            tabular=sample.tabular,
        )
        for index, ((primary, secondary), sample) in enumerate(zip(lengths, cycle(samples), strict=False))
    ]


def _resize(text: EncodedText, tokens: int, start: int) -> EncodedText:
    """Repeats or cuts a text's words to one chunk of so many tokens; its first and last token stay the special ones.

    The words are begun at another place in each request, so that no two requests have the same text.
    """
    first, last = text.chunks[0][0], text.chunks[0][-1]
    words = [token for chunk in text.chunks for token in chunk[1:-1]] or [last]
    return EncodedText([[first, *islice(cycle(words), start % len(words), start % len(words) + tokens - 2), last]])
