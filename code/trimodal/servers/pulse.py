"""What the serving process does at this moment, in a page of memory that its supervisor reads, even after its death."""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

FILE = "pulse"

MEMORY = "killed-for-memory"
"""Name of the file by which the supervisor tells the next process how the one before it ended."""

_FORMAT = struct.Struct("=dd?64s")
"""Heartbeat and start of the oldest slice (monotonic clock, seconds; 0 for none), ready, stage."""


@dataclass(frozen=True, slots=True)
class State:
    """One look at the page.

    Attributes:
        beat: when the event loop last ran; 0 before it has.
        slice_start: when the longest-running piece of work began; 0 for none.
        ready: the port is or was open.
        stage: what the process was doing.
    """

    beat: float = 0.0
    slice_start: float = 0.0
    ready: bool = False
    stage: str = "starting"

    def stuck(self, now: float, patience: float) -> str | None:
        """Says what is stuck, or None.

        Args:
            now: the monotonic clock, seconds.
            patience: seconds that a piece of work, or a turn of the event loop, may take.
        """
        if self.slice_start and now - self.slice_start > patience:
            return f"an inference thread did not come back for {now - self.slice_start:.0f} s"
        if self.beat and now - self.beat > patience:
            return f"the event loop stood still for {now - self.beat:.0f} s"
        return None


class Pulse:
    """The serving process's side."""

    def __init__(self, run_dir: Path) -> None:
        path = run_dir / FILE
        path.write_bytes(bytes(_FORMAT.size))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _FORMAT.size)
        self._ready = False
        self._stage = "starting"
        self.tell("starting")

    def tell(self, stage: str) -> None:
        """Names what the process does next."""
        self._stage = stage
        self._write(State(stage=stage, ready=self._ready))

    def beat(self, slice_start: float | None, *, ready: bool = True) -> None:
        """Says that the event loop runs, and since when the longest-running piece of work does."""
        self._ready = ready
        stage = "answering" if slice_start is not None else "waiting for requests"
        self._write(State(time.monotonic(), slice_start or 0.0, ready, stage))

    def _write(self, state: State) -> None:
        stage = state.stage.encode()[:64]
        self._page[:] = _FORMAT.pack(state.beat, state.slice_start, state.ready, stage)


def look(run_dir: Path) -> State:
    """Returns what the serving process wrote last."""
    path = run_dir / FILE
    content = path.read_bytes() if path.is_file() else b""
    if len(content) != _FORMAT.size:
        return State()
    beat, slice_start, ready, stage = _FORMAT.unpack(content)
    return State(beat, slice_start, ready, stage.rstrip(b"\0").decode(errors="replace") or "starting")
