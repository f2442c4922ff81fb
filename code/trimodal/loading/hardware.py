"""Cores and memory that this container may use, as its control group says."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from trimodal.settings import Settings

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the plan works with.

    Attributes:
        cores: whole cores, at least 1; half a core counts as one.
        memory: bytes.
    """

    cores: int
    memory: int


def detect(root: Path = Path("/")) -> Hardware:
    """Reads the limits of this process: affinity and control group (version 2 or 1), and the machine's memory."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = _quota_v2(root) or _quota_v1(root)
    if quota is not None:
        cores = min(cores, quota)
    limits = [_number(root / "sys/fs/cgroup/memory.max"), _number(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")]
    memory = min([_machine_memory(root), *(limit for limit in limits if limit is not None)])
    return Hardware(cores=max(1, math.ceil(cores)), memory=memory)


def _quota_v2(root: Path) -> float | None:
    parts = _read(root / "sys/fs/cgroup/cpu.max").split()
    if len(parts) != 2 or not parts[0].isdecimal() or not parts[1].isdecimal():
        return None
    return int(parts[0]) / int(parts[1])


def _quota_v1(root: Path) -> float | None:
    folder = root / "sys/fs/cgroup/cpu"
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _machine_memory(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def choose_workers(hardware: Hardware, model_bytes: int) -> int:
    """Chooses the worker processes: two cores each, as many as memory holds, at least one.

    A worker holds its own copy of the model: about twice its file while it loads, and 200 MiB of libraries; the
    model server's JVM takes 400 MiB.
    """
    each = 2 * model_bytes + 200 * MIB
    by_memory = (hardware.memory - 400 * MIB) // each
    return max(1, min(hardware.cores // 2, by_memory))


def choose_threads(hardware: Hardware, workers: int) -> int:
    """Chooses the threads of one operator: the worker's share of the cores, at most 4."""
    return max(1, min(4, hardware.cores // workers))


def worker_count(settings: Settings) -> int:
    """Returns how many workers serve the model directory: as told, else by cores and memory."""
    if settings.workers is not None:
        return settings.workers
    files = (*settings.model_dir.glob("model.onnx*"), *settings.model_dir.glob("*.data"))
    return choose_workers(detect(), sum(path.stat().st_size for path in files))


def thread_count(settings: Settings) -> int:
    """Returns the threads of one operator: as told, else the worker's share of the cores."""
    if settings.intra_op_threads is not None:
        return settings.intra_op_threads
    return choose_threads(detect(), worker_count(settings))
