"""Scores a sample of the live records again with the unoptimized model, in idle time, and tells how far they differ.

So an optimized model, and a lossy precision above all, stays proven on what is really asked. A request never waits for
it: a full queue drops records, and at most one record is being scored when a request comes.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from trimodal.errors import TrimodalError
from trimodal.metrics.instruments import Recorder
from trimodal.records import Features, FloatArray
from trimodal.serving.pipeline import Pipeline, Scorer
from trimodal.serving.steps import Alone, Steps, always, finish

logger = logging.getLogger(__name__)

QUEUE_RECORDS = 64
"""Records that wait: a few kilobytes each, their token ids above all."""

IDLE_SECONDS = 0.05
"""Without a request for so long the path counts as idle."""

_NICENESS = 19


class Shadow:
    """A runner that scores a sample twice; may be called from several threads.

    What it returns is what the runner returns, always.
    """

    def __init__(
        self,
        runner: Scorer,
        open_reference: Callable[[], Scorer],
        recorder: Recorder,
        rate: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Starts the thread that scores again; the reference is opened there, when the first record is drawn.

        Args:
            runner: what serves.
            open_reference: opens the unoptimized model.
            recorder: takes `ScoreDrift`, `LabelFlip`, `ShadowChecked` and `ShadowSkipped`.
            rate: share of the records that are drawn, 0 to 1.
            draw: gives numbers from 0 up to 1.
        """
        self.runner = runner
        self.recorder = recorder
        self.rate = rate
        self._draw = draw
        self._open_reference = open_reference
        self._waiting: queue.Queue[tuple[Features, FloatArray]] = queue.Queue(QUEUE_RECORDS)
        self._running = 0
        self._lock = threading.Lock()
        self._touched = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread within ONNX Runtime must not outlive the interpreter

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Scores records; see `trimodal.serving.pipeline.Scorer`."""
        return finish(self.steps(features, always))

    def steps(self, features: Sequence[Features], alone: Alone) -> Steps[FloatArray]:
        """Scores records in slices; the path is busy until the last of them, or until they are given up."""
        self._enter(1)
        try:
            probabilities = yield from self.runner.steps(features, alone)
        finally:
            self._enter(-1)
        for item, row in zip(features, probabilities, strict=True):
            if self._draw() < self.rate:
                self._offer(item, row)
        return probabilities

    def close(self, seconds: float = 2.0) -> None:
        """Ends the thread; what waits is not scored again."""
        atexit.unregister(self.close)
        self._closed.set()
        self._thread.join(seconds)

    def _enter(self, change: int) -> None:
        with self._lock:
            self._running += change
        self._touched.set()

    def _offer(self, item: Features, row: FloatArray) -> None:
        if self._closed.is_set():
            return
        try:
            self._waiting.put_nowait((item, row.copy()))
        except queue.Full:
            self.recorder.record("ShadowSkipped")

    def _work(self) -> None:
        with suppress(OSError):  # on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        reference: Scorer | None = None
        while (drawn := self._next()) is not None:
            try:
                reference = reference or self._open_reference()
                self._compare(reference, *drawn)
            except TrimodalError as err:
                logger.warning("the shadow check ends", extra={"cause": str(err)})
                break
            except Exception as err:  # noqa: BLE001  memory above all; whatever it is, serving goes on
                logger.warning("the shadow check ends", extra={"cause": type(err).__name__})
                break
        self._closed.set()

    def _next(self) -> tuple[Features, FloatArray] | None:
        """Waits for a drawn record and for an idle moment; None when closed."""
        while not self._closed.is_set():
            try:
                drawn = self._waiting.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                continue
            while not self._closed.is_set():
                self._touched.clear()
                if self._running == 0 and not self._touched.wait(IDLE_SECONDS):
                    return drawn
                self._closed.wait(IDLE_SECONDS)
        return None

    def _compare(self, reference: Scorer, item: Features, row: FloatArray) -> None:
        (expected,) = reference.run([item])
        self.recorder.record("ShadowChecked")
        self.recorder.record("ScoreDrift", float(np.abs(expected - row).max()))
        if int(expected.argmax()) != int(row.argmax()):
            self.recorder.record("LabelFlip")


def shadowed(pipeline: Pipeline, recorder: Recorder, rate: float, open_reference: Callable[[], Scorer]) -> Pipeline:
    """Returns a pipeline whose scores are checked, where that is asked for and what serves is not the reference.

    Args:
        pipeline: a loaded model.
        recorder: takes the measurements.
        rate: share of the records, 0 to 1.
        open_reference: opens the unoptimized model, see `trimodal.loading.load.open_reference`.
    """
    if rate <= 0:
        return pipeline
    if pipeline.status.get("entry") is None:
        logger.info("no shadow check: the model is served as it is", extra={"rung": pipeline.status.get("rung")})
        return pipeline
    return replace(pipeline, runner=Shadow(pipeline.runner, open_reference, recorder, rate))
