"""One study of a model from its directory to its findings: reads it, makes its variants, measures them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from trimodal.bench.analysis import Analysis
from trimodal.bench.asked import Request, check, shipped_texts
from trimodal.bench.candidates import REFERENCE, Bench
from trimodal.bench.cells import Plan, make_plan
from trimodal.bench.encoder_model import read_encoder
from trimodal.bench.engines import make_candidates
from trimodal.bench.findings import FROZEN_TOKENS, Findings
from trimodal.bench.models import Model
from trimodal.bench.progress import Progress
from trimodal.bench.roofline import Point, Roof, find_points, measure_roof
from trimodal.bench.trimodal_model import TrimodalModel, is_trimodal, read_trimodal
from trimodal.errors import SettingsError
from trimodal.loading.hardware import Hardware, choose_threads, detect, libraries

SMALL_BYTES = 64 << 20
"""Graphs under this size are timed in `SMALL_BUDGET` seconds, others in `LARGE_BUDGET`."""

SMALL_BUDGET, LARGE_BUDGET, QUICK_BUDGET = 70.0, 780.0, 15.0

STEPS = 15
"""That come before anything is measured."""


def analyse(request: Request, progress: Progress) -> Findings:
    """Reads a model, makes its variants and measures them.

    Raises:
        TrimodalError: the model cannot be read, or its FP32 export not measured.
    """
    check(request)
    started, load = time.monotonic(), os.getloadavg()[0]
    hardware = detect()
    threads = request.threads or choose_threads(hardware, 1)
    with tempfile.TemporaryDirectory(prefix="trimodal-optimize-") as name:
        progress.expect(STEPS)
        progress("reading the model")
        model = _read(request, Path(name))
        found = make_candidates(Bench(model, hardware, threads, Path(name), request.command), progress)
        plan = make_plan(model, request.batch_sizes, {FROZEN_TOKENS, *request.lengths}, quick=request.quick)
        progress("measuring the roof")
        roof = measure_roof(threads)
        analysis = Analysis(plan, _budget(request, model), progress, found.skipped)
        measured = analysis.run(found.found, hardware.memory)
        progress("measuring the roof again")
        roof = roof.higher(measure_roof(threads))
    stand_ins = _stand_ins(plan, {cell for one in measured for cell in one.times})
    findings = Findings(
        model=model.name,
        kind="encoder" if model.embeds else "trimodal" if isinstance(model, TrimodalModel) else "classifier",
        date=datetime.now(UTC).date().isoformat(),
        command=request.command,
        hardware=hardware,
        versions=libraries(),
        threads=threads,
        load=load,
        seconds=0.0,
        measured=measured,
        skipped=found.skipped,
        batch_sizes=sorted(set(request.batch_sizes)),
        traffics={traffic: mean(sum(model.lengths(item)) for item in items) for traffic, items in stand_ins.items()},
        roof=roof,
        points=(points := find_points(model, measured, stand_ins)),
        notes=[*_notes(request, hardware, model), *model.notes, *plan.notes, *analysis.notes, *_under(roof, points)],
        beside=request.beside,
    )
    return replace(findings, seconds=time.monotonic() - started)


def _read(request: Request, folder: Path) -> Model:
    if is_trimodal(request.folder):
        return read_trimodal(request.folder)
    texts = request.texts or shipped_texts()
    if len(texts) < 2:
        raise SettingsError("Two texts at least are needed to judge an encoder.")
    return read_encoder(request.folder, folder, texts, request.labels)


def _budget(request: Request, model: Model) -> float:
    if request.budget is not None:
        return request.budget
    if request.quick:
        return QUICK_BUDGET
    return SMALL_BUDGET if model.graph.stat().st_size < SMALL_BYTES else LARGE_BUDGET


def _stand_ins(plan: Plan, timed: set[tuple[str, int]]) -> dict[str, list[Any]]:
    """Returns the records of each traffic's smallest batches that were timed."""
    found: dict[str, list[Any]] = {}
    for cell in plan.cells:
        if (cell.traffic, cell.batch) in timed:
            found.setdefault(cell.traffic, [item for place in cell.places for item in plan.batches[place]])
    return found


def _under(roof: Roof, points: Sequence[Point]) -> list[str]:
    """Says where the roof was measured too low: nothing can be above it."""
    above = sorted({p.variant for p in points if p.gflops > (roof.int8 if "int8" in p.variant else roof.fp32)})
    if not above:
        return []
    return [
        f"The roof is too low, other processes held the cores when it was measured: above it are {', '.join(above)}."
    ]


def _notes(request: Request, hardware: Hardware, model: Model) -> list[str]:
    notes = [
        "Each variant runs in a process of its own; each batch goes through every one in turn, round after round.",
        "First calls of a shape are not counted. Ratios are of the mean over the batches of each one's median.",
        f"Outputs are compared with those of {REFERENCE}, {len(model.items)} records, each alone, and one batch.",
        "Realistic lengths: 101 tokens on average, median 80, longest 315, cut to what the model takes.",
        "No thread spins while it waits: it would take the core from whoever runs next.",
    ]
    if isinstance(model, TrimodalModel):
        notes.append("A batch of a trimodal model is cut into runs of similar length, as the container does it.")
    if request.quick:
        notes.append("--quick: few calls: a look, not a result.")
    if hardware.gpu is None:
        notes.append("GPU: not measured, there is none.")
    return notes
