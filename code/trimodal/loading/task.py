"""What the main process tells the optimizing process, and how that process is set up; imports nothing heavy."""

from __future__ import annotations

import ctypes
import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimodal.limits import Limits
from trimodal.settings import Settings

TASK, JOURNAL = "task.json", "journal.jsonl"
"""Files of the working directory: what to do, and what was done."""

EXPORTED = "exported"
"""Its directory for an export of `model.pth`."""

_PATHS = ("model_dir", "optimized_dir", "run_dir")
_PR_SET_PDEATHSIG = 1


def write_task(folder: Path, settings: Settings, threads: int, skip: Mapping[str, str]) -> None:
    """Writes what the optimizing process shall do."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    task = {"settings": plain, "threads": threads, "skip": dict(skip)}
    (folder / TASK).write_text(json.dumps(task), encoding="utf-8")


def read_task(folder: Path) -> tuple[Settings, int, dict[str, str]]:
    """Returns (settings, threads, rungs to skip with the cause of each)."""
    task = json.loads((folder / TASK).read_text(encoding="utf-8"))
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in task["settings"].items()
    }
    values |= {key: Path(values[key]) for key in _PATHS if values[key] is not None}
    values["limits"] = Limits(**values["limits"])
    return Settings(**values), task["threads"], task["skip"]


def victim() -> None:
    """Makes the calling process the first to be killed when memory runs out, and end with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _badness(1000)


@contextmanager
def expendable() -> Iterator[None]:
    """Makes the calling process the first to be killed when memory runs out, for as long as the block runs."""
    before = _badness(1000)
    try:
        yield
    finally:
        _badness(before)


def _badness(score: int) -> int:
    """Sets how readily the kernel kills the calling process for memory (proc(5)); returns how readily before."""
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:  # noqa: PTH123  nothing to import here
            before = int(file.read())
            file.seek(0)
            file.write(str(score))
    except OSError:
        return 0  # some sandboxes hide it; then the kernel chooses by size, which is ours anyway
    return before
