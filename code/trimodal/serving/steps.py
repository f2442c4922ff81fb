"""Work that is done in slices, so that a small request need not wait for the end of a large one.

A generator does one slice of its work between two `yield`s and returns the result at its end. Whoever drives it decides
what runs between the slices; a generator that is closed early has done no harm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from trimodal.errors import InferenceTimeout

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Yields between slices and returns the result."""

Alone = Callable[[], bool]
"""Tells whether no other request waits or runs, so that a slice may take every core."""


def always() -> bool:
    """Tells that nothing else waits: for callers that do one request at a time."""
    return True


def never() -> bool:
    """Tells that something else waits: for checks of what runs then."""
    return False


def finish(steps: Steps[T], deadline: float = math.inf) -> T:
    """Does every slice and returns the result.

    Args:
        steps: the work.
        deadline: when nobody waits for it any more, seconds of the monotonic clock.

    Raises:
        InferenceTimeout: the deadline came before the end; no slice is begun after it.
    """
    while time.monotonic() <= deadline:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
    steps.close()
    raise InferenceTimeout("There was no answer in time; send fewer records.")


def timed(steps: Steps[T]) -> Steps[tuple[T, float]]:
    """Does the same work and also returns the seconds that its slices took, without what ran between them."""
    seconds = 0.0
    while True:
        begun = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            return end.value, seconds + time.perf_counter() - begun
        seconds += time.perf_counter() - begun
        yield
