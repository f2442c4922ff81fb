"""Progress bars for long work; silent where nobody watches."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Progress:
    """One bar whose steps are named as they begin; without tqdm, or where stderr is no terminal, a line a step."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(unit="step", bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]", leave=False)

    def expect(self, steps: int) -> None:
        """Says that so many more steps will come."""
        if self._bar is not None:
            self._bar.total = (self._bar.total or 0) + steps
            self._bar.refresh()

    def __call__(self, text: str) -> None:
        """Begins the next step."""
        if self._bar is None:
            sys.stderr.write(f"trimodal optimize: {text}\n")
            sys.stderr.flush()
            return
        self._bar.update(1)
        self._bar.set_description_str(f"{text:44.44}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()


class Cancelled(BaseException):
    """Ctrl+C or SIGTERM while a command works.

    Not `KeyboardInterrupt`: where one passes through code that a library runs from a text, as `dataclasses` does,
    Python remembers it, and ends by SIGINT though it was caught.
    """


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ends the work by an exception, so that children and temporary files are cleared up.

    Raises:
        Cancelled: SIGINT or SIGTERM arrived.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Cancelled

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
