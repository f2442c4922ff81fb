"""Work that is done in slices, so that a small request need not wait for the end of a large one.

A generator does one slice of its work between two `yield`s and returns the result at its end. Whoever drives it decides
what runs between the slices; a generator that is closed early has done no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Yields between slices and returns the result."""

Alone = Callable[[], bool]
"""Tells whether no other request waits or runs, so that a slice may take every core."""


def always() -> bool:
    """Tells that nothing else waits: for callers that do one request at a time."""
    return True


def finish(steps: Steps[T]) -> T:
    """Does every slice and returns the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
