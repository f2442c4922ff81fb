"""Room for another model beside those that are served: memory for its workers, disk for its optimized form."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from trimodal.errors import OutOfMemory
from trimodal.loading.entries import MANIFEST
from trimodal.loading.facts import graph_files
from trimodal.loading.hardware import (
    control_groups,
    machine_memory,
    read_field,
    read_number,
    worker_count,
    worker_memory,
)
from trimodal.loading.places import temporary_root
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

_GROUPS = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Limit, use, and what of the use are files that the kernel keeps while it can: of both versions of control groups."""

_SPARED = 0.1
"""Share of the disk that is left for the models that SageMaker brings."""


def free_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that processes of this container can still take.

    Args:
        root: where `proc` and `sys` are.
    """
    free = [machine_memory(root, "MemAvailable")]
    for folder in control_groups(root, "memory"):
        for limit, use, cached in _GROUPS:
            most, used = read_number(folder / limit), read_number(folder / use)
            if most is not None and used is not None:
                free.append(most - used + sum(read_field(folder / "memory.stat", name) for name in cached))
    return max(0, min(free))


def require_memory(settings: Settings, free: int) -> None:
    """Checks that the workers of a model directory fit.

    Raises:
        OutOfMemory: they need more than `free` bytes.
        OSError: the directory cannot be read.
    """
    need = worker_count(settings) * worker_memory(_size(settings.model_dir))
    if need > free:
        raise OutOfMemory(
            f"This model needs {need // 1_000_000} MB of memory to load and {free // 1_000_000} MB are free; "
            "unload another model."
        )


def make_room(settings: Settings, used: Collection[Path], free: Callable[[Path], int]) -> None:
    """Removes optimized models from the temporary directory until another fits, the least recently used first.

    Args:
        settings: those of the model that shall fit.
        used: entries that are served, and stay.
        free: returns the free bytes of a directory's disk.
    """
    root = temporary_root()
    if settings.optimized_dir is not None or not root.is_dir():
        return
    need = 2 * _size(settings.model_dir) + int(_SPARED * shutil.disk_usage(root).total)
    unused = [path.parent for path in root.glob(f"*/{MANIFEST}") if path.parent not in used]
    for entry in sorted(unused, key=lambda path: path.stat().st_mtime):
        if free(root) >= need:
            return
        shutil.rmtree(entry, ignore_errors=True)
        logger.info("an optimized model that is not loaded was removed for lack of disk space")


def free_disk(folder: Path) -> int:
    """Returns the free bytes of the disk that holds a directory."""
    return shutil.disk_usage(folder).free


def _size(model_dir: Path) -> int:
    """Returns the bytes of a model's graph and weights."""
    graph = model_dir / "model.onnx"
    if not graph.is_file():
        graph = model_dir / "model.pth"
    return sum(path.stat().st_size for path in graph_files(graph) if path.is_file())
