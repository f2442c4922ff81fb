"""Weights in the order in which the CPU's kernels read them, packed once and mapped from a file ever after.

A kernel packs its weights when a graph is opened, into memory of its own. ONNX Runtime can write what it has packed
beside the weights and map it the next time: all that open the file share its pages. It still packs to see that the
outcome is the same, so the weights are in the file twice. The outcome depends on the library's version and on the
processor, and a cache entry is of one of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimodal.errors import OptimizationError
from trimodal.loading.built import Built
from trimodal.loading.opening import open_built
from trimodal.loading.plan import CPU
from trimodal.loading.sessions import Tuning
from trimodal.records import Features
from trimodal.serving.split import SplitRunner, TextEncoder

FOLDER = "packed"
"""Where packed files lie until they are proven."""


def packable(built: Built) -> bool:
    """Tells whether a model has encoders whose weights ONNX Runtime packs."""
    return built.engine == "onnxruntime" and built.providers == (CPU,) and bool(built.texts)


def pack(
    built: Built, folder: Path, tuning: Tuning, probes: Sequence[Features], pad_id: int = 0
) -> tuple[Built, SplitRunner]:
    """Replaces the encoders' files by packed ones that give the same outputs, to the bit, on any number of threads.

    Args:
        built: a model that is `packable`.
        folder: its directory; what is in it stays as it is where this fails.
        tuning: how its graphs are run.
        probes: records to prove it by.
        pad_id: token id that fills up a text.

    Returns:
        What the directory holds now, and that opened.

    Raises:
        OptimizationError: a graph cannot be opened or packed, or gives other outputs then.
        OSError: the disk is full.
    """
    into = folder / FOLDER
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    try:
        writing = replace(tuning, profile=False, pack_into=into)
        (expected,) = _outputs(_open(built, folder, writing, pad_id), probes)  # and closed, for its memory
        for path in folder.glob(f"{built.head}*"):
            (into / path.name).symlink_to(path)
        packed = replace(built, packed=True)
        runner = _open(packed, into, replace(tuning, crowded=True), pad_id)
        for outputs in _outputs(runner, probes):
            if not all(map(np.array_equal, expected, outputs)):
                raise OptimizationError("packed weights change the outputs of an encoder")
        for part in built.texts:
            for path in folder.glob(f"{part.file}*"):
                path.unlink()
            for path in into.glob(f"{part.file}*"):
                path.rename(folder / path.name)
    finally:
        shutil.rmtree(into, ignore_errors=True)
    return packed, runner


def _open(built: Built, folder: Path, tuning: Tuning, pad_id: int) -> SplitRunner:
    runner = open_built(built, folder, tuning, pad_id=pad_id)
    if not isinstance(runner, SplitRunner):
        raise OptimizationError("only encoders are packed")
    return runner


def _outputs(runner: SplitRunner, probes: Sequence[Features]) -> Iterator[list[np.ndarray[Any, Any]]]:
    """Yields what each set of encoders gives for each text."""
    for encoders in filter(None, (runner.encoders, runner.crowded)):
        yield [array for item in probes for array in _encode(encoders, item, runner.pad_id)]


def _encode(encoders: Sequence[TextEncoder], item: Features, pad_id: int) -> Iterator[np.ndarray[Any, Any]]:
    for encoder, text in zip(encoders, (item.primary, item.secondary), strict=True):
        for unit in encoder.units(text):
            for outputs in encoder.run([unit], pad_id):
                yield from outputs
