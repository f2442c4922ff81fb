"""The variants of one model: what each is, where they are made, and which cannot be made here and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimodal.bench.models import Model
from trimodal.errors import TrimodalError
from trimodal.loading.hardware import Hardware

REFERENCE, PYTORCH, NAIVE = "onnx-fp32", "pytorch-fp32", "onnx-fp32-padded"
NO_BF16 = "this CPU has no bf16 products (avx512_bf16, amx_bf16), without which they are emulated, many times slower"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model.

    Attributes:
        name: unique.
        engine: what runs it.
        precision: of the products with weights; decides the tolerance.
        open: opens a scorer of records; picklable.
        bytes: size of its files.
        note: how it was made.
        only_mix: measured on realistic lengths alone, batch 1.
    """

    name: str
    engine: str
    precision: str
    open: Callable[[], Any]
    bytes: int
    note: str = ""
    only_mix: bool = False


@dataclass(slots=True)
class Candidates:
    """What can be measured here, and what cannot and why."""

    found: list[Candidate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Candidate]) -> None:
        """Adds a variant, or notes why it cannot be made."""
        try:
            self.found.append(make())
        except TrimodalError as err:
            self.skipped[name] = str(err)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where variants are made.

    Attributes:
        model: the model.
        hardware: the host.
        threads: of one operator.
        folder: an empty directory.
        command: how to repeat the measurement.
    """

    model: Model
    hardware: Hardware
    threads: int
    folder: Path
    command: str


def total_bytes(paths: Iterable[Path]) -> int:
    """Sums file sizes."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def graph_files(graph: Path) -> list[Path]:
    """Returns a graph's files: itself, and its weights beside it."""
    return [graph, *sorted(graph.parent.glob(f"{graph.name}.*"))]
