"""Whether another model fits into the memory that this container has left."""

from __future__ import annotations

from pathlib import Path

from trimodal.errors import OutOfMemory
from trimodal.loading.facts import graph_files
from trimodal.loading.hardware import (
    control_groups,
    machine_memory,
    read_field,
    read_number,
    worker_count,
    worker_memory,
)
from trimodal.settings import Settings

_GROUPS = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Limit, use, and what of the use are files that the kernel keeps while it can: of both versions of control groups."""


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
    """
    graph = settings.model_dir / "model.onnx"
    if not graph.is_file():
        graph = settings.model_dir / "model.pth"
    size = sum(path.stat().st_size for path in graph_files(graph) if path.is_file())
    need = worker_count(settings) * worker_memory(size)
    if need > free:
        raise OutOfMemory(
            f"This model needs {need // 1_000_000} MB of memory to load and {free // 1_000_000} MB are free; "
            "unload another model."
        )
