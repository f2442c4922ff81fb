"""Measures all variants of a model side by side: each in its own process, every batch through each of them in turn."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np

from trimodal.bench.apart import MIB, Worker
from trimodal.bench.candidates import NAIVE, REFERENCE, Candidate
from trimodal.bench.measures import Accuracy, Outputs, Times, judge, summarize_calls
from trimodal.bench.models import Item, Model
from trimodal.bench.progress import Progress
from trimodal.bench.traffic import MIX
from trimodal.errors import OptimizationError, TrimodalError

logger = logging.getLogger(__name__)

MIX_RECORDS = 64
"""Records of the realistic mix."""

MOST_BATCHES = {1: 24, 16: 2, 32: 2}
"""Batches of one size that are timed; of another size two."""

FIXED_BATCHES = 2
"""Batches of a fixed length: their records have other words, and cost the same."""

LEAST_ROUNDS, MOST_ROUNDS = 2, 12


@dataclass(frozen=True, slots=True)
class Cell:
    """One traffic in batches of one size.

    Attributes:
        traffic: `mix` or `S=…`.
        batch: records of a call.
        places: of its batches among the workers' batches.
        tokens: of all its batches, padded as a batch is.
        records: of all its batches.
    """

    traffic: str
    batch: int
    places: Sequence[int]
    tokens: int
    records: int


@dataclass(slots=True)
class Measured:
    """One variant with what was measured.

    Attributes:
        candidate: it.
        accuracy: of its outputs.
        load_seconds: from nothing to ready, libraries included.
        loaded_mib: of its process then.
        peak_mib: the most that its process held.
        times: by (traffic, batch).
    """

    candidate: Candidate
    accuracy: Accuracy
    load_seconds: float
    loaded_mib: float
    peak_mib: float = 0.0
    times: dict[tuple[str, int], Times] = field(default_factory=dict)


Opened = tuple[Measured, Worker]
"""A variant with the process that holds it."""


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
        longest = [max(sum(self.model.lengths(item)) for item in batch) * len(batch) for batch in cut]
        self.cells.append(Cell(traffic, size, places, sum(longest), sum(map(len, cut))))


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


@dataclass(slots=True)
class Analysis:
    """Runs a plan.

    Attributes:
        plan: what is run.
        budget: seconds for timing.
        progress: is told what is done.
        skipped: variant to why it is not measured; grows.
        notes: grows.
    """

    plan: Plan
    budget: float
    progress: Progress
    skipped: dict[str, str]
    notes: list[str] = field(default_factory=list)
    rate: float = 0.0

    def run(self, candidates: Sequence[Candidate], memory: int) -> list[Measured]:
        """Measures the variants, the reference beside each group that fits into memory.

        Raises:
            OptimizationError: the reference cannot be measured.
        """
        reference = next((one for one in candidates if one.name == REFERENCE), None)
        if reference is None:
            raise OptimizationError("there is no FP32 reference to compare with")
        others = [one for one in candidates if one is not reference]
        groups = list(_groups(reference, others, memory))
        self.progress.expect(len(candidates) + len(groups) * (len(self.plan.cells) + 1) - 1)
        if len(groups) > 1:
            self.notes.append(f"Memory: {len(groups)} groups of variants, one after another, {REFERENCE} in each.")
        measured: list[Measured] = []
        for group in groups:
            found = self._group([reference, *group], self.budget / len(groups))
            measured += found if not measured else found[1:]
        return measured

    def _group(self, candidates: Sequence[Candidate], budget: float) -> list[Measured]:
        with ExitStack() as stack:
            open_ones: list[Opened] = []
            expected: Outputs | None = None
            for candidate in candidates:
                self.progress(f"loading and judging {candidate.name}")
                worker = stack.enter_context(closing(Worker(candidate.open, self.plan.batches)))
                try:
                    one, outputs = self._open(candidate, worker, expected)
                except TrimodalError as err:
                    if candidate.name == REFERENCE:
                        raise OptimizationError(f"the FP32 reference cannot be measured: {err}") from err
                    self.skipped[candidate.name] = str(err)
                    worker.close()
                    continue
                expected = expected or outputs
                open_ones.append((one, worker))
            self._time_all(open_ones, budget)
            return [one for one, _ in open_ones]

    def _open(self, candidate: Candidate, worker: Worker, expected: Outputs | None) -> tuple[Measured, Outputs]:
        seconds, memory = worker.opened()
        alone = np.concatenate([worker.scores(place) for place in self.plan.judged])
        outputs = Outputs(alone, worker.scores(self._check_place()))
        model = self.plan.model
        accuracy = judge(outputs, expected or outputs, candidate.precision, embeds=model.embeds, labels=model.labels)
        return Measured(candidate, accuracy, seconds, memory), outputs

    def _check_place(self) -> int:
        """Returns the batch whose outputs are compared, too: of the mix, the largest but 16 records at most."""
        cells = [cell for cell in self.plan.cells if cell.traffic == MIX and cell.batch <= 16]
        return (cells or self.plan.cells)[-1].places[0]

    def _time_all(self, open_ones: list[Opened], budget: float) -> None:
        ends = time.monotonic() + budget
        for index, cell in enumerate(self.plan.cells):
            left = ends - time.monotonic()
            share = left / (len(self.plan.cells) - index)
            self.progress(f"timing {cell.traffic}, batch {cell.batch}")
            guess = self.rate * cell.tokens * len(open_ones)
            # The cells that come later are larger, so what is left is theirs; twice the share is still fair.
            if self.rate and 1.5 * guess > max(2 * share, 0.5 * left):
                self._leave_out(cell, guess)
                continue
            while not self._time(cell, open_ones, share):
                pass
        for one, worker in open_ones:
            one.peak_mib = worker.peak()

    def _leave_out(self, cell: Cell, guess: float) -> None:
        note = f"{cell.traffic}, batch {cell.batch} is not timed: about {guess:.0f} s a round, over --budget"
        if note.partition(": about")[0] not in {known.partition(": about")[0] for known in self.notes}:
            self.notes.append(note)

    def _time(self, cell: Cell, open_ones: list[Opened], share: float) -> bool:
        """Times a cell; returns False where a variant was lost, which is then not among the open ones any more."""
        wanted = [pair for pair in open_ones if _wants(pair[0].candidate, cell)]
        try:
            rounds = self._rounds(cell, wanted, share)
        except _LostError as err:
            name = err.pair[0].candidate.name
            if name == REFERENCE:
                raise OptimizationError(f"the FP32 reference failed in {cell.traffic}: {err}") from err
            err.pair[1].close()
            open_ones.remove(err.pair)
            self.skipped[name] = f"failed in {cell.traffic}, batch {cell.batch}: {err}"
            return False
        for (one, _), own in zip(wanted, np.array(rounds).transpose(2, 0, 1), strict=True):
            one.times[cell.traffic, cell.batch] = summarize_calls(own)
        return True

    def _rounds(self, cell: Cell, wanted: Sequence[Opened], share: float) -> list[list[list[float]]]:
        """Returns seconds by round, batch and variant: as many rounds as fit into the share of the time."""
        started = time.monotonic()
        for pair in wanted:
            _seconds(pair, cell.places[0])  # shapes that are new cost once
        rounds: list[list[list[float]]] = []
        while len(rounds) < MOST_ROUNDS:
            begun = time.monotonic()
            rounds.append([[_seconds(pair, place) for pair in wanted] for place in cell.places])
            took = time.monotonic() - begun
            self.rate = took / (cell.tokens * len(wanted))  # of the largest so far: small ones are mostly overhead
            if len(rounds) >= LEAST_ROUNDS and time.monotonic() - started + took > share:
                break
        return rounds


class _LostError(TrimodalError):
    """A variant's process failed while it was timed."""

    def __init__(self, pair: Opened, why: str) -> None:
        super().__init__(why)
        self.pair = pair


def _seconds(pair: Opened, place: int) -> float:
    try:
        return pair[1].time(place)
    except TrimodalError as err:
        raise _LostError(pair, str(err)) from err


def _wants(candidate: Candidate, cell: Cell) -> bool:
    return not candidate.only_mix or (cell.traffic == MIX and cell.batch == 1)


def _groups(reference: Candidate, others: Sequence[Candidate], memory: int) -> Iterator[Sequence[Candidate]]:
    """Cuts variants into groups whose processes fit into half the memory, three times each graph's size."""
    room = memory // 2 - _need(reference)
    group: list[Candidate] = []
    used = 0
    for one in others:
        if group and used + _need(one) > room:
            yield group
            group, used = [], 0
        group.append(one)
        used += _need(one)
    yield group


def _need(candidate: Candidate) -> int:
    libraries = 500 * MIB if candidate.engine == "pytorch" else 200 * MIB
    return 3 * candidate.bytes + libraries


def throughput(one: Measured, traffic: str, batch: int) -> float | None:
    """Returns records a second, one batch after another, or None where it was not timed."""
    times = one.times.get((traffic, batch))
    return None if times is None else 1000 * batch / times.typical


def best(measured: Sequence[Measured], traffic: str, batch: int) -> Measured | None:
    """Returns the fastest variant whose outputs are right."""
    timed = [one for one in measured if (traffic, batch) in one.times and one.candidate.name != NAIVE]
    right = [one for one in timed if one.accuracy.wrong is None]
    return min(right, key=lambda one: one.times[traffic, batch].typical, default=None)
