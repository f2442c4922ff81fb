"""What a run tells while it goes on, and at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

from trimodal.scoring.scorer import Outcome

SHOWN = 10
"""Failed partitions that are named; the others are counted."""

_SECONDS = (0.2, 10.0)
"""Between two words of progress, on a terminal and elsewhere."""


def standard_error() -> TextIO:
    """Returns standard error as it is now, wherever it is sent to later."""
    return os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")


@dataclass(slots=True)
class Progress:
    """Follows a run.

    Attributes:
        left: partitions and records to do.
        workers: processes that do them.
        stream: where to write.
        done: partitions and records that are through.
        seconds: what the partitions took, each by its worker.
        errors: records with an error instead of scores.
        error: the first of these errors.
        failed: partitions that failed.
    """

    left: tuple[int, int]
    workers: int
    stream: TextIO
    done: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    errors: int = 0
    error: str | None = None
    failed: int = 0
    _said: float = 0.0

    def say(self, text: str) -> None:
        """Writes a line."""
        self.stream.write(f"{self._clear()}score: {text}\n")
        self.stream.flush()

    def follow(self, outcomes: Iterable[Outcome]) -> None:
        """Counts what became of partitions, and tells of it from time to time."""
        for outcome in outcomes:
            self.done = self.done[0] + 1, self.done[1] + outcome.records
            self.seconds += outcome.seconds
            self.errors += outcome.errors
            self.error = self.error or outcome.error
            if outcome.failure is not None:
                self.failed += 1
                if self.failed <= SHOWN:
                    self.say(f"{outcome.place} failed: {outcome.failure}")
            self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        last = self.done[0] == self.left[0]
        if now - self._said < _SECONDS[not self.stream.isatty()] and not last:
            return
        self._said = now
        text = f"{self.done[0]} of {self.left[0]} partitions, {self.done[1]} records"
        if self.done[1]:
            rate = self.done[1] * self.workers / max(self.seconds, 1e-6)
            text += f", {rate:.0f} a second" + (
                "" if last else f", {_duration((self.left[1] - self.done[1]) / rate)} left"
            )
        if self.stream.isatty():
            self.stream.write(f"{self._clear()}score: {text}")
            self.stream.flush()
        else:
            self.say(text)

    def _clear(self) -> str:
        """Returns what takes the last word of progress off a terminal."""
        return "\r\x1b[K" if self.stream.isatty() else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
