"""Runs records of several requests together, where the engine gains from it: on a GPU.

The first request that comes opens a batch, waits `delay` seconds for others or until the batch is full, and runs all
of it on its own thread; the others wait for it. On a CPU batching loses, and where the scales of quantized products are
found at run time a record's score would depend on its neighbours: there every request runs by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from trimodal.errors import InferenceFailed
from trimodal.records import Features, FloatArray
from trimodal.serving.pipeline import Pipeline, Scorer
from trimodal.serving.steps import Alone, Steps
from trimodal.settings import Settings

EXACT = ("fp32", "fp16")
"""Precisions whose scores do not depend on the other records of a run."""

_GAINS = ("cuda", "tensorrt")
"""Rungs on engines that run several records in little more time than one."""


def batched(pipeline: Pipeline, settings: Settings) -> Pipeline:
    """Returns a pipeline that runs requests together where that is asked for, pays, and changes no score."""
    if settings.max_batch == 1 or not pays(pipeline.status):
        return pipeline
    return replace(pipeline, runner=Batcher(pipeline.runner, settings.max_batch, settings.batch_delay))


def pays(status: Mapping[str, object]) -> bool:
    """Tells whether what serves gains from batches and keeps each record's score in them."""
    return str(status.get("rung")).startswith(_GAINS) and status.get("precision") in EXACT


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests that are run together.

    Attributes:
        features: their records, one after another.
        closed: takes no more.
        full: set when no more fit.
        done: set when it has run, or has failed.
        probabilities: of all records; None where the batch failed.
    """

    features: list[Features] = field(default_factory=list)
    closed: bool = False
    full: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    probabilities: FloatArray | None = None


class Batcher:
    """A runner that joins what several threads ask of another runner.

    Attributes:
        runner: does the work.
        size: most records of one batch; a request of more runs by itself.
        delay: seconds that the first request of a batch waits for others.
    """

    def __init__(self, runner: Scorer, size: int, delay: float) -> None:
        self.runner = runner
        self.size = size
        self.delay = delay
        self._lock = threading.Lock()
        self._open: _Batch | None = None

    def steps(self, features: Sequence[Features], alone: Alone) -> Steps[FloatArray]:
        """Scores records in slices; those of a request that fits into a batch in one slice."""
        if len(features) >= self.size or alone():
            return (yield from self.runner.steps(features, alone))
        return self.run(features)

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Scores records, together with those of other threads.

        Raises:
            InferenceFailed: the batch failed, and so did this request by itself.
        """
        if len(features) >= self.size:
            return self.runner.run(features)
        batch, start, leads = self._join(features)
        if leads:
            batch.full.wait(self.delay)
            self._lead(batch)
        batch.done.wait()
        if batch.probabilities is None:  # its cause may be a neighbour's record
            return self.runner.run(features)
        return batch.probabilities[start : start + len(features)]

    def _join(self, features: Sequence[Features]) -> tuple[_Batch, int, bool]:
        """Adds records to the open batch; returns it, their place in it, and whether the caller opened it."""
        with self._lock:
            batch = self._open
            leads = batch is None or batch.closed or len(batch.features) + len(features) > self.size
            if batch is None or leads:
                if batch is not None:
                    batch.full.set()
                batch = self._open = _Batch()
            start = len(batch.features)
            batch.features.extend(features)
            if len(batch.features) == self.size:
                batch.full.set()
            return batch, start, leads

    def _lead(self, batch: _Batch) -> None:
        with self._lock:
            batch.closed = True
            if self._open is batch:
                self._open = None
        try:
            batch.probabilities = self.runner.run(batch.features)
        except InferenceFailed:
            return  # each request runs by itself
        finally:
            batch.done.set()
