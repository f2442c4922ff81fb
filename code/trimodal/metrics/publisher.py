"""Hands what was measured to the sinks, every interval, on a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from trimodal.metrics.aggregate import Aggregate, Snapshot

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where measurements go; a sink that may wait does so on a thread of its own."""

    def publish(self, snapshot: Snapshot, at: float) -> None:
        """Takes what was measured until `at`, seconds since the epoch."""

    def close(self, seconds: float) -> None:
        """Sends what is left, for at most so long."""


class Publisher:
    """Publishes until it is closed; the last time then."""

    def __init__(
        self, aggregate: Aggregate, sinks: Sequence[Sink], interval: float, before: Callable[[], None] = lambda: None
    ) -> None:
        """Starts to publish.

        Args:
            aggregate: what is measured.
            sinks: where it goes; one that fails does not stop the others.
            interval: seconds between two publications; the first comes sooner, at random, so that containers that
                start together do not publish together.
            before: called before each publication, to measure states.
        """
        self._aggregate = aggregate
        self._sinks = sinks
        self._interval = interval
        self._before = before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Publishes what is left and closes the sinks, within so many seconds."""
        deadline = time.monotonic() + seconds
        self._stop.set()
        self._thread.join(seconds)
        for sink in self._sinks:
            self._guarded(sink.close, max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        wait = self._interval * random.uniform(0.5, 1.0)  # noqa: S311  no secret
        while not self._stop.wait(wait):
            self._publish()
            wait = self._interval
        self._publish()

    def _publish(self) -> None:
        self._guarded(self._before)
        snapshot, now = self._aggregate.drain(), time.time()
        if snapshot:
            for sink in self._sinks:
                self._guarded(sink.publish, snapshot, now)

    def _guarded(self, action: Callable[..., None], *arguments: object) -> None:
        try:
            action(*arguments)
        except Exception as err:  # noqa: BLE001  a measurement must not cost the service
            logger.warning("metrics are lost", extra={"cause": type(err).__name__})
