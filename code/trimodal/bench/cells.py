"""What is timed: the realistic mix and fixed lengths, in batches of several sizes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trimodal.bench.models import Item, Model
from trimodal.bench.traffic import MIX

MIX_RECORDS = 64
"""Records of the realistic mix."""

MOST_BATCHES = {1: 16, 16: 2, 32: 2}
"""Batches of one size that are timed; of another size two."""

FIXED_BATCHES = 2
"""Batches of a fixed length: their records have other words, and cost the same."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One traffic in batches of one size.

    Attributes:
        traffic: `mix` or `S=…`.
        batch: records of a call.
        places: of its batches among the workers' batches.
        tokens: of all its batches.
    """

    traffic: str
    batch: int
    places: Sequence[int]
    tokens: int


@dataclass(slots=True)
class Plan:
    """What is run.

    Attributes:
        model: the model.
        batches: everything that is run; workers know them by place.
        cells: what is timed, most wanted first.
        judged: places of the accuracy records, each alone.
        notes: what is left out and why.
    """

    model: Model
    batches: list[Sequence[Item]] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, traffic: str, size: int, records: Sequence[Item], most: int) -> None:
        """Adds a cell whose batches are made of records."""
        cut = [records[start : start + size] for start in range(0, len(records) - size + 1, size)][:most]
        places = range(len(self.batches), len(self.batches) + len(cut))
        self.batches += cut
        tokens = sum(sum(self.model.lengths(item)) for batch in cut for item in batch)
        self.cells.append(Cell(traffic, size, places, tokens))


def make_plan(model: Model, batch_sizes: Sequence[int], lengths: Collection[int], *, quick: bool) -> Plan:
    """Decides what is run: the realistic mix first, then fixed lengths, the cheapest first."""
    plan = Plan(model)
    plan.judged = list(range(len(model.items)))
    plan.batches = [[item] for item in model.items]
    records = model.mix(max(MIX_RECORDS, *(2 * size for size in batch_sizes)))
    for size in sorted(set(batch_sizes)):
        plan.add(MIX, size, records, 6 if quick and size == 1 else MOST_BATCHES.get(size, FIXED_BATCHES))
    fitting = [length for length in sorted(set(lengths)) if length <= model.max_tokens]
    too_long = sorted(set(lengths) - set(fitting))
    plan.notes += [f"S={length} is not timed: the model takes {model.max_tokens} tokens" for length in too_long]
    for length, size in sorted(((n, b) for n in fitting for b in set(batch_sizes)), key=lambda pair: pair[0] * pair[1]):
        plan.add(f"S={length}", size, model.fixed(FIXED_BATCHES * size, length), FIXED_BATCHES)
    return plan
