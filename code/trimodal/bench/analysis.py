"""Measures all variants of a model side by side: each in its own process, every batch through each of them in turn."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace

import numpy as np

from trimodal.bench.apart import MIB, Worker
from trimodal.bench.candidates import NAIVE, REFERENCE, Candidate
from trimodal.bench.cells import Cell, Plan
from trimodal.bench.measures import Accuracy, Outputs, Times, judge, summarize_calls
from trimodal.bench.progress import Progress
from trimodal.bench.traffic import MIX
from trimodal.errors import OptimizationError, TrimodalError

logger = logging.getLogger(__name__)

LEAST_ROUNDS, MOST_ROUNDS = 2, 12

FEWEST = 4
"""Batches of the first cell that are timed whatever they cost."""

MIX_SHARE = 0.4
"""Of the time that is left, what a batch size of the realistic mix may take: it is what the analysis is for."""


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
class Analysis:
    """Runs a plan.

    Attributes:
        plan: what is run.
        budget: seconds for timing.
        progress: is told what is done.
        skipped: variant to why it is not measured; grows.
        notes: grows.
        rate: seconds of a token, mean over the variants, as last seen.
        chosen: by (traffic, batch), the places of the batches for which there is time.
    """

    plan: Plan
    budget: float
    progress: Progress
    skipped: dict[str, str]
    notes: list[str] = field(default_factory=list)
    rate: float = 0.0
    chosen: dict[tuple[str, int], Sequence[int]] = field(default_factory=dict)

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
            self.notes.append(
                f"Memory: {len(groups)} groups of variants, one after another; times are scaled by {REFERENCE}'s."
            )
        measured: list[Measured] = []
        for group in groups:
            found = self._group([reference, *group], self.budget / len(groups))
            measured += found[1:] if measured else found
            _scale(found, measured[0])
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
        started = time.monotonic()
        alone = np.concatenate([worker.scores(place) for place in self.plan.judged])
        tokens = sum(sum(self.plan.model.lengths(item)) for item in self.plan.model.items)
        if not candidate.only_mix:  # padded texts cost several times as much
            self.rate = max(self.rate, (time.monotonic() - started) / tokens / 2)  # the slowest is not the mean
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
            key = (cell.traffic, cell.batch)
            if key not in self.chosen:  # of all groups alike, so that their times compare
                self.chosen[key] = self._fitting(cell, len(open_ones), share, left)
            places = self.chosen[key]
            if places:
                tokens = cell.tokens * len(places) // len(cell.places)
                try:
                    while not self._time(replace(cell, places=places, tokens=tokens), open_ones, share):
                        pass
                except OptimizationError as err:  # what was timed before is still worth telling
                    self.notes.append(f"{err}; nothing was timed after it.")
                    break
        for one, worker in open_ones:
            with suppress(TrimodalError):
                one.peak_mib = worker.peak()

    def _fitting(self, cell: Cell, variants: int, share: float, left: float) -> Sequence[int]:
        """Chooses as many batches as fit into the time: a warm-up call and the least rounds; none is left out aloud."""
        batch = self.rate * cell.tokens / len(cell.places) * variants
        room = MIX_SHARE * left if cell.traffic == MIX else min(2 * share, left / 2)
        count = min(len(cell.places), int((room / batch - 1) / LEAST_ROUNDS)) if batch else len(cell.places)
        if cell is self.plan.cells[0]:  # without it there is nothing to tell
            count = max(count, min(FEWEST, len(cell.places)))
        if count < 1:
            cost = (LEAST_ROUNDS + 1) * batch
            self.notes.append(f"{cell.traffic}, batch {cell.batch} is not timed: about {cost:.0f} s, over --budget")
        return cell.places[: max(count, 0)]

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
            self._learn(cell, wanted, rounds[-1])
            if len(rounds) >= LEAST_ROUNDS and time.monotonic() - started + took > share:
                break
        return rounds

    def _learn(self, cell: Cell, wanted: Sequence[Opened], seconds: Sequence[Sequence[float]]) -> None:
        """Takes the rate from a round of the largest cell so far: small ones are mostly overhead."""
        usual = [place for place, (one, _) in enumerate(wanted) if not one.candidate.only_mix]
        self.rate = sum(row[place] for row in seconds for place in usual) / (cell.tokens * len(usual))


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
    """Cuts variants into groups whose processes fit into half the memory."""
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
    """Guesses a process's peak; measured on the BERT-base-sized model: 2.4 times its file, ONNX Runtime 1.0 to 1.7."""
    if candidate.engine == "onnxruntime":
        return 7 * candidate.bytes // 4 + 200 * MIB
    return 5 * candidate.bytes // 2 + 500 * MIB


def _scale(group: Sequence[Measured], reference: Measured) -> None:
    """Scales the times of a group whose own reference is another measurement than the first group's."""
    own = group[0]
    for cell, times in own.times.items() if own is not reference else ():
        if cell in reference.times:
            factor = reference.times[cell].typical / times.typical
            for one in group[1:]:
                if cell in one.times:
                    one.times[cell] = one.times[cell].scaled(factor)


def throughput(one: Measured, traffic: str, batch: int) -> float | None:
    """Returns records a second, one batch after another, or None where it was not timed."""
    times = one.times.get((traffic, batch))
    return None if times is None else 1000 * batch / times.typical


def best(measured: Sequence[Measured], traffic: str, batch: int) -> Measured | None:
    """Returns the fastest variant whose outputs are right."""
    timed = [one for one in measured if (traffic, batch) in one.times and one.candidate.name != NAIVE]
    right = [one for one in timed if one.accuracy.wrong is None]
    return min(right, key=lambda one: one.times[traffic, batch].typical, default=None)
