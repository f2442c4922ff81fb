"""Measures a loaded model from outside: wraps what reads records, what scores them, and the handlers around both."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimodal.metrics.instruments import Recorder
from trimodal.metrics.quality import count_quality
from trimodal.records import Features, FloatArray, Record
from trimodal.serving.memory import EncoderCache
from trimodal.serving.pipeline import Pipeline, Reader, Scorer
from trimodal.serving.split import SplitRunner
from trimodal.serving.steps import Alone, Steps, always, finish
from trimodal.serving.steps import timed as timed_steps

Handler = Callable[..., Any]


def measured(pipeline: Pipeline, recorder: Recorder) -> Pipeline:
    """Returns a pipeline that records its stages `tokenize` and `inference`, its records, and what was in them."""
    reader = MeasuredReader(pipeline.features)
    cache = pipeline.runner.cache if isinstance(pipeline.runner, SplitRunner) else None
    return replace(pipeline, features=reader, runner=MeasuredScorer(pipeline.runner, recorder, reader, cache))


def timed(function: Handler, stage: str, recorder: Recorder) -> Handler:
    """Returns a handler that records how long each call takes, failed ones too."""

    @functools.wraps(function)  # the number of parameters decides how a handler is called
    def run(*arguments: object) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            recorder.record("StageLatency", _milliseconds(begun), Stage=stage)

    return run


@dataclass(frozen=True, slots=True)
class MeasuredReader:
    """Adds up the time that one thread spends on reading records, until it is taken.

    Attributes:
        reader: reads them.
    """

    reader: Reader
    _spent: threading.local = field(default_factory=threading.local)

    def encode(self, record: Record) -> Features:
        """Turns one record into features; see `trimodal.serving.features.FeatureEncoder`."""
        begun = time.perf_counter()
        try:
            features = self.reader.encode(record)
        except Exception:
            self._spent.milliseconds = 0.0  # nothing of this request will be run
            raise
        self._spent.milliseconds = getattr(self._spent, "milliseconds", 0.0) + _milliseconds(begun)
        return features

    def take(self) -> float:
        """Returns this thread's milliseconds since the last call, and starts anew."""
        spent: float = getattr(self._spent, "milliseconds", 0.0)
        self._spent.milliseconds = 0.0
        return spent


@dataclass(frozen=True, slots=True)
class MeasuredScorer:
    """Records each run: its time, the time of reading its records before, what was in them and what came out.

    Attributes:
        runner: scores.
        recorder: takes the measurements.
        reader: what read the records on the same thread.
        cache: the encoder cache, or None.
    """

    runner: Scorer
    recorder: Recorder
    reader: MeasuredReader
    cache: EncoderCache | None = None
    _seen: list[int] = field(default_factory=lambda: [0, 0])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Scores records; see `trimodal.serving.pipeline.Scorer`."""
        return finish(self.steps(features, always))

    def steps(self, features: Sequence[Features], alone: Alone) -> Steps[FloatArray]:
        """Scores records in slices; the time between them does not count."""
        record = self.recorder.record
        record("StageLatency", self.reader.take(), Stage="tokenize")
        probabilities, seconds = yield from timed_steps(self.runner.steps(features, alone))
        record("StageLatency", seconds * 1000, Stage="inference")
        record("Records", len(features))
        record("BatchSize", len(features))
        count_quality(features, probabilities, self.recorder)
        if self.cache is not None:
            self._count(self.cache)
        return probabilities

    def _count(self, cache: EncoderCache) -> None:
        """Records how the cache's counts have grown since the last run."""
        with self._lock:
            hits, lookups = cache.hits, cache.hits + cache.misses
            fresh = (hits - self._seen[0], lookups - self._seen[1])
            self._seen[:] = hits, lookups
        if fresh[0]:
            self.recorder.record("EncoderCacheHits", fresh[0])
        if fresh[1]:
            self.recorder.record("EncoderCacheLookups", fresh[1])


def _milliseconds(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
