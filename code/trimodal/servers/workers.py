"""What workers tell the process that started them, as files in a directory that both know."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimodal.errors import StartupError
from trimodal.loading.directory import check_directory

ANSWERED = "x-trimodal-answer"
"""Header on every answer of a handler, so that the front tells it from the model server's own errors."""

SENT = "x-trimodal-sent"
"""Header on every request to a worker: when the front sent it, seconds of the host's monotonic clock."""

REQUEST_ID = "x-trimodal-request-id"
"""Header on every request to a worker: its id, for the log."""

CODE = "x-trimodal-code"
"""Header on every answer of a handler that is an error: its code."""

_FAILED = "failed"
_UNTOLD = "The model cannot be loaded, and no space is left to say why; mount a larger volume on /tmp."
_READY = ".ready"

_MOST_PATH = 88
"""Bytes of the run directory's path: a Unix socket's has at most 107 (unix(7)), and `/.mms.sock.` and a port follow."""


SHOWN = ("level", "rung", "precision", "engine", "causes", "declined")
"""What `/ping` tells of the ladder."""


@contextmanager
def run_directory(model_dir: Path | None) -> Iterator[Path]:
    """Makes the directory that the processes of one container share while it runs.

    Args:
        model_dir: the model directory, which is looked at before anything of it is opened; None where models come
            later.

    Raises:
        StartupError: it is not, holds what no model directory may hold, or nothing can be written.
    """
    if model_dir is not None:
        check_directory(model_dir)
    try:
        folder = tempfile.TemporaryDirectory(prefix="trimodal-")
    except OSError as err:
        raise StartupError("No writable directory for temporary files; mount a tmpfs on /tmp.") from err
    with full_disk_told(), folder as name:
        excess = len(os.fsencode(name)) - _MOST_PATH
        if excess > 0:
            most = len(os.fsencode(Path(name).parent)) - excess
            raise StartupError(f"TMPDIR is too long for the sockets in it; set it to at most {most} bytes.")
        yield Path(name)


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Makes a full disk, where it ends a block, an error that says what to do.

    Raises:
        StartupError: that error.
    """
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StartupError("No space is left for temporary files; mount a larger volume on /tmp.") from err


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker's side.

    Attributes:
        run_dir: the shared directory, or None when nobody listens.
    """

    run_dir: Path | None

    def ready(self, status: Mapping[str, object]) -> None:
        """Says that this process has loaded and warmed up the model, and what it serves."""
        if self.run_dir is not None:
            self._write(f"{os.getpid()}{_READY}", json.dumps(dict(status)))

    def failed(self, message: str) -> None:
        """Says why this process cannot load the model."""
        if self.run_dir is not None:
            self._write(_FAILED, message)

    def _write(self, name: str, text: str) -> None:
        """Writes a file that is never seen half written, or an empty one where the disk is full: its name says most."""
        draft = Path(self.run_dir or ".") / f"{os.getpid()}.draft"
        try:
            draft.write_text(text, encoding="utf-8")
        except OSError:
            os.truncate(draft, 0)
        draft.rename(draft.with_name(name))


def ready_workers(run_dir: Path) -> int:
    """Counts the living processes that have reported ready."""
    return len(living(run_dir))


def living(run_dir: Path) -> set[int]:
    """Returns the process ids of the workers that have reported ready and live."""
    return {pid for path in run_dir.glob(f"*{_READY}") if _alive(pid := int(path.stem))}


def served(run_dir: Path) -> dict[str, Any]:
    """Returns what the living worker on the lowest rung of the ladder serves; empty where that is not known."""
    states = [
        json.loads(path.read_text(encoding="utf-8") or "{}")
        for path in run_dir.glob(f"*{_READY}")
        if _alive(int(path.stem))
    ]
    return max(states, key=lambda state: int(state.get("level", 0)), default={})


def failure(run_dir: Path) -> str | None:
    """Returns why a worker could not load the model, or None."""
    path = run_dir / _FAILED
    return path.read_text(encoding="utf-8") or _UNTOLD if path.is_file() else None


def _alive(pid: int) -> bool:
    """Tells whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
