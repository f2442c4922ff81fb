"""What workers tell the process that started them, as files in a directory that both know."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ANSWERED = "x-trimodal-answer"
"""Header on every answer of a handler, so that the front tells it from the model server's own errors."""

_FAILED = "failed"
_READY = ".ready"


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker's side.

    Attributes:
        run_dir: the shared directory, or None when nobody listens.
    """

    run_dir: Path | None

    def ready(self) -> None:
        """Says that this process has loaded and warmed up the model."""
        if self.run_dir is not None:
            (self.run_dir / f"{os.getpid()}{_READY}").touch()

    def failed(self, message: str) -> None:
        """Says why this process cannot load the model."""
        if self.run_dir is not None:
            draft = self.run_dir / f"{os.getpid()}.draft"
            draft.write_text(message, encoding="utf-8")
            draft.rename(self.run_dir / _FAILED)


def ready_workers(run_dir: Path) -> int:
    """Counts the living processes that have reported ready."""
    return sum(_alive(int(path.stem)) for path in run_dir.glob(f"*{_READY}"))


def failure(run_dir: Path) -> str | None:
    """Returns why a worker could not load the model, or None."""
    path = run_dir / _FAILED
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _alive(pid: int) -> bool:
    """Tells whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
