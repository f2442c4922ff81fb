"""What this container may use: cores and memory as its control group says, the processor's features, the GPU."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from trimodal.settings import Settings

MIB = 1024 * 1024

_X86 = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_ARM = ("asimd", "i8mm", "bf16")
FEATURES = frozenset((*_X86, *_ARM))
"""Names in /proc/cpuinfo of the instructions that decide which precision is fast."""

LIBRARIES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "numpy",
    "openvino",
    "torch",
    "transformers",
    "tokenizers",
)
"""Distributions whose version an optimized model depends on."""

_IMPLEMENTERS = {"0x41": "ARM", "0xc0": "Ampere"}  # main ID register, as arch/arm64/include/asm/cputype.h names them
_GPU_SECONDS = 5
_GPU_FIELDS = "name,memory.total,driver_version,compute_cap"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU.

    Attributes:
        name: product name.
        memory: bytes, 0 where the driver does not say.
        driver: version of the driver.
        capability: compute capability such as `9.0`.
    """

    name: str
    memory: int
    driver: str
    capability: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the plan works with.

    Attributes:
        cores: whole cores, at least 1; half a core counts as one.
        memory: bytes.
        processor: model name, empty when unknown.
        vendor: who made it (`GenuineIntel`, `AuthenticAMD`, `ARM`), empty when unknown.
        features: those of `FEATURES` that every core has, sorted.
        gpu: the first GPU, or None.
    """

    cores: int
    memory: int
    processor: str = ""
    vendor: str = ""
    features: tuple[str, ...] = ()
    gpu: Gpu | None = None

    @property
    def has_vnni(self) -> bool:
        """Whether products of 8-bit integers are summed in 32 bits by one instruction, fast and without saturation."""
        return not {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"}.isdisjoint(self.features)

    @property
    def has_bf16(self) -> bool:
        """Whether there are products of bfloat16 numbers."""
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(self.features)

    @property
    def has_amx(self) -> bool:
        """Whether there are matrix tiles (Advanced Matrix Extensions)."""
        return "amx_tile" in self.features

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def find_gpu(tool: str = "nvidia-smi") -> Gpu | None:
    """Asks the driver's tool for the first GPU; None when there is no tool or no usable answer within 5 seconds."""
    command = shutil.which(tool)
    if command is None:
        return None
    query = [command, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    fields = [field.strip() for field in answer.stdout.partition("\n")[0].split(",")]
    if len(fields) != len(_GPU_FIELDS.split(",")):
        return None
    name, memory, driver, capability = fields
    amount = memory.removesuffix("MiB").strip()
    return Gpu(name, int(amount) * MIB if amount.isdecimal() else 0, driver, capability)


def memory_use(root: Path = Path("/")) -> tuple[int | None, int]:
    """Reads what the container's processes hold, without the files that the kernel keeps for them while it can.

    Args:
        root: where `proc` and `sys` are.

    Returns:
        Bytes, or None where no control group tells; and how many processes the kernel has killed for memory.
    """
    used: list[int] = []
    kills = 0
    for folder in control_groups(root, "memory"):
        for total, cached in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
            if (amount := read_number(folder / total)) is not None:
                used.append(max(0, amount - read_field(folder / "memory.stat", cached)))
        kills = max(
            kills,
            read_field(folder / "memory.events", "oom_kill"),
            read_field(folder / "memory.oom_control", "oom_kill"),
        )
    return min(used, default=None), kills


def read_field(path: Path, name: str) -> int:
    """Returns a number of a file of `name number` lines; 0 where it is not there."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdecimal():
            return int(value)
    return 0


def no_gpu() -> None:
    """Stands in for `find_gpu` where only cores and memory matter: asking the driver can take seconds."""


def detect(root: Path = Path("/"), gpu: Callable[[], Gpu | None] = find_gpu) -> Hardware:
    """Reads affinity, the limits of the control group (version 2 or 1) and of those above it, and the machine's facts.

    Args:
        root: where `proc` and `sys` are.
        gpu: finds the GPU.
    """
    cores = [float(len(os.sched_getaffinity(0)))]
    for folder in control_groups(root, "cpu"):
        cores += [quota for quota in (_quota_v2(folder), _quota_v1(folder)) if quota is not None]
    memory = [machine_memory(root)]
    for folder in control_groups(root, "memory"):
        limits = (read_number(folder / "memory.max"), read_number(folder / "memory.limit_in_bytes"))
        memory += [limit for limit in limits if limit is not None]
    processor, vendor, features = _processor(root)
    return Hardware(max(1, math.ceil(min(cores))), min(memory), processor, vendor, features, gpu())


def libraries() -> dict[str, str]:
    """Returns the versions of the `LIBRARIES` that are installed, without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = version
    return found


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups and of all above them, in both versions' hierarchies.

    In its own namespace a container sees its group as the top one; without a namespace /proc/self/cgroup names the
    group below the top, and its limit counts as well. Folders that do not exist are harmless: they hold no limit.
    """
    top = root / "sys/fs/cgroup"
    mounts = {top: PurePosixPath("/"), top / "unified": PurePosixPath("/"), top / controller: PurePosixPath("/")}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts[top] = mounts[top / "unified"] = PurePosixPath(path)
        elif controller in controllers.split(","):
            mounts[top / controller] = mounts[top / controllers] = PurePosixPath(path)
    for mount, own in mounts.items():
        yield mount
        if own.is_absolute() and ".." not in own.parts:  # `..` leads out of the namespace, to what is not mounted
            yield from (mount.joinpath(*group.parts[1:]) for group in (own, *own.parents) if group.name)


def _quota_v2(folder: Path) -> float | None:
    parts = _read(folder / "cpu.max").split()
    if len(parts) != 2 or not parts[0].isdecimal() or not parts[1].isdecimal():
        return None
    quota, period = int(parts[0]), int(parts[1])
    return quota / period if quota and period else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def machine_memory(root: Path = Path("/"), line_name: str = "MemTotal") -> int:
    """Returns the bytes of a line of /proc/meminfo; of the whole machine where there is no such line."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith(f"{line_name}:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor(root: Path) -> tuple[str, str, tuple[str, ...]]:
    """Returns model name, vendor and the features that all cores share; x86 and ARM name these lines differently."""
    facts: dict[str, str] = {}
    features: frozenset[str] | None = None
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        facts.setdefault(key, value)
        if key in ("flags", "Features"):
            features = (FEATURES if features is None else features).intersection(value.split())
    implementer = facts.get("CPU implementer", "")
    vendor = facts.get("vendor_id") or _IMPLEMENTERS.get(implementer, implementer)
    name = facts.get("model name") or f"{vendor} {facts.get('CPU part', '')}".strip()
    return name, vendor, tuple(sorted(features or ()))


def read_number(path: Path) -> int | None:
    """Returns the number that is all of a file; None where it is not there, or says `max`."""
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def choose_workers(hardware: Hardware, model_bytes: int, cores: int = 2) -> int:
    """Chooses the worker processes: so many cores each, as many as memory holds, at least one.

    What starts them, a JVM or Ray, takes 400 MiB.
    """
    by_memory = (hardware.memory - 400 * MIB) // worker_memory(model_bytes)
    return max(1, min(hardware.cores // cores, by_memory))


def worker_memory(model_bytes: int) -> int:
    """Returns the bytes of a worker: about twice its model's file while it loads, and 200 MiB of libraries."""
    return 2 * model_bytes + 200 * MIB


def choose_threads(hardware: Hardware, workers: int) -> int:
    """Chooses the threads of one operator: the worker's share of the cores, at most 4."""
    return max(1, min(4, hardware.cores // workers))


def worker_count(settings: Settings) -> int:
    """Returns how many processes serve the model directory: as told, else one for each of several, else by size."""
    if settings.server == "asgi":
        return 1
    if settings.workers is not None:
        return settings.workers
    if settings.multi_model:
        return 1
    return choose_workers(detect(gpu=no_gpu), graph_size(settings.model_dir))


def crowded(settings: Settings, threads: int) -> bool:
    """Tells whether one process works on several requests at once, with more threads than one for a request alone."""
    return settings.server == "asgi" and settings.workers != 1 and threads > 1


def shares_weights(settings: Settings, threads: int) -> bool:
    """Tells whether an encoder is opened more than once: in several worker processes, or twice in one."""
    return crowded(settings, threads) or worker_count(settings) > 1


def graph_size(model_dir: Path) -> int:
    """Returns the bytes of the graph and its weights."""
    files = (*model_dir.glob("model.onnx*"), *model_dir.glob("*.data"))
    return sum(path.stat().st_size for path in files)


def thread_count(settings: Settings) -> int:
    """Returns the threads of one operator: as told, else the worker's share of the cores."""
    if settings.intra_op_threads is not None:
        return settings.intra_op_threads
    return choose_threads(detect(gpu=no_gpu), worker_count(settings))
