"""The optimization toolkit: one model in, every variant measured side by side, a table and a report out.

`TransformerOptimizationToolkit` is for notebooks, `run_optimize` for the command `trimodal optimize`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from trimodal.bench.analysis import Analysis, Plan, make_plan
from trimodal.bench.engines import REFERENCE, Bench, make_candidates
from trimodal.bench.findings import FROZEN_TOKENS, Findings
from trimodal.bench.models import EncoderModel, Model, TrimodalModel, is_trimodal, read_encoder, read_trimodal
from trimodal.bench.progress import Progress, ended_by_signals
from trimodal.bench.roofline import find_points, measure_roof
from trimodal.bench.tables import to_markdown
from trimodal.errors import ArtifactError, SettingsError
from trimodal.loading.hardware import Hardware, choose_threads, detect, libraries

if TYPE_CHECKING:
    from trimodal.bench.frames import Frame

SMALL_BYTES = 64 << 20
"""Graphs under this size are timed in `SMALL_BUDGET` seconds, others in `LARGE_BUDGET`."""

SMALL_BUDGET, LARGE_BUDGET, QUICK_BUDGET = 70.0, 600.0, 15.0

CANCELLED = 130
"""Exit status after Ctrl+C, as shells have it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        folder: a trimodal model directory, or a Hugging Face one.
        batch_sizes: records of a call.
        lengths: fixed text lengths, in tokens.
        texts: what an encoder is judged on, or None for texts that come with the toolkit.
        labels: the texts' classes, or None.
        threads: of one operator, or None for as many as the container would take.
        budget: seconds for timing, or None by the model's size.
        quick: a look, not a result.
        command: that repeats it.
        beside: others' figures of PyTorch against ONNX.
    """

    folder: Path
    batch_sizes: Sequence[int] = (1, 16, 32)
    lengths: Sequence[int] = (32, 128, 512)
    texts: Sequence[str] | None = None
    labels: Sequence[int] | None = None
    threads: int | None = None
    budget: float | None = None
    quick: bool = False
    command: str = ""
    beside: Mapping[str, Any] | None = None


class TransformerOptimizationToolkit:
    """Exports an encoder, makes its variants, and measures them.

    Args:
        model: a local Hugging Face directory, a trimodal model directory, or a `transformers` model in memory.
        tokenizer: `tokenizer.json` for a model in memory, or None for made-up token ids.
    """

    def __init__(self, model: Any, tokenizer: Path | None = None) -> None:
        self._kept: tempfile.TemporaryDirectory[str] | None = None
        self.findings: Findings | None = None
        if isinstance(model, str | os.PathLike):
            self.folder = Path(model)
            return
        if not hasattr(model, "save_pretrained"):
            raise ArtifactError("The toolkit takes a directory or a transformers model.")
        self._kept = tempfile.TemporaryDirectory(prefix="trimodal-toolkit-")
        self.folder = Path(self._kept.name) / (getattr(model.config, "model_type", None) or "model")
        model.save_pretrained(self.folder)
        if tokenizer is not None:
            shutil.copy(tokenizer, self.folder / "tokenizer.json")

    def export_onnx(self, dummy_input: Any = None, out: Path | None = None) -> Path:
        """Exports the model with every axis dynamic, proven to give PyTorch's outputs.

        Args:
            dummy_input: (ids, mask) to trace with, int64 tensors `[B, T]`, or None for made-up ones; a trimodal
                directory makes up its own.
            out: the file to write; without, `model.onnx` in the working directory.

        Raises:
            TrimodalError: it cannot be exported, or gives other outputs.
        """
        target = Path(out) if out is not None else Path("model.onnx")
        if is_trimodal(self.folder):
            from trimodal.loading.pytorch import export_model

            export_model(self.folder, target)
        else:
            from trimodal.bench.huggingface import export_text_model, load_text_model

            export_text_model(load_text_model(self.folder), target, dummy_input=dummy_input)
        return target

    def run_full_analysis(
        self,
        texts: Sequence[str] | None = None,
        batch_sizes: Sequence[int] = (1, 16, 32),
        *,
        sequence_lengths: Sequence[int] = (32, 128, 512),
        labels: Sequence[int] | None = None,
        budget: float | None = None,
    ) -> Frame:
        """Measures every variant that this host can run.

        Args:
            texts: what an encoder is judged on, and what requests are made of; a trimodal directory is judged on its
                own golden records.
            batch_sizes: records of a call.
            sequence_lengths: fixed text lengths, in tokens, beside realistic ones.
            labels: the texts' classes, for F1.
            budget: seconds for timing.

        Returns:
            One row for each variant, traffic and batch size; see `Findings.rows`. What was not measured, and why, is
            in its `attrs["skipped"]`.

        Raises:
            TrimodalError: the model cannot be read, or its FP32 export not measured.
        """
        from trimodal.bench.frames import to_frame

        request = Request(self.folder, batch_sizes, sequence_lengths, texts, labels, budget=budget)
        self.findings = analyse(request, Progress())
        return to_frame(self.findings)


def run_optimize(request: Request, out: Path | None) -> int:
    """Analyses, prints the tables, and writes the results where asked.

    Returns:
        0: measured; 130: cancelled, nothing written.

    Raises:
        TrimodalError: nothing can be measured; the message says what to fix.
    """
    progress = Progress()
    try:
        with ended_by_signals():
            findings = analyse(request, progress)
            progress.close()
            sys.stdout.write(to_markdown(findings))
            for path in write_report(findings, out) if out is not None else ():
                sys.stderr.write(f"trimodal optimize: wrote {path}\n")
    except KeyboardInterrupt:
        progress.close()
        sys.stderr.write("trimodal optimize: cancelled; nothing is left behind\n")
        return CANCELLED
    return 0


def write_report(findings: Findings, out: Path) -> list[Path]:
    """Writes JSON, Markdown, HTML and PNGs; returns the files."""
    files: dict[str, str | bytes] = {"md": to_markdown(findings)}
    try:
        from trimodal.bench.pictures import draw, to_bytes
    except ImportError:
        sys.stderr.write("trimodal optimize: no pictures: matplotlib is not installed (requirements/bench.in)\n")
        return findings.write(out, files)
    from trimodal.bench.report_html import to_html

    figures = draw(findings)
    files["html"] = to_html(findings, {name: to_bytes(figure, "svg") for name, figure in figures.items()})
    files |= {f"-{name}.png": to_bytes(figure, "png") for name, figure in figures.items()}
    return findings.write(out, files)


def analyse(request: Request, progress: Progress) -> Findings:
    """Reads a model, makes its variants and measures them.

    Raises:
        TrimodalError: the model cannot be read, or its FP32 export not measured.
    """
    _check(request)
    started, load = time.monotonic(), os.getloadavg()[0]
    hardware = detect()
    threads = request.threads or choose_threads(hardware, 1)
    with tempfile.TemporaryDirectory(prefix="trimodal-optimize-") as name:
        folder = Path(name)
        progress.expect(40)
        progress("reading the model")
        model = _read(request, folder)
        found = make_candidates(Bench(model, hardware, threads, folder, request.command), progress)
        lengths = sorted({FROZEN_TOKENS, *request.lengths})
        plan = make_plan(model, request.batch_sizes, lengths, quick=request.quick)
        progress.expect(len(plan.cells) + len(found.found) - 28)
        analysis = Analysis(plan, _budget(request, model), progress, found.skipped)
        progress("measuring the roof")
        roof = measure_roof(threads)
        measured = analysis.run(found.found, hardware.memory)
    findings = Findings(
        model=model.name,
        kind="trimodal" if isinstance(model, TrimodalModel) else "encoder" if model.embeds else "classifier",
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
        traffics=_traffics(plan, measured_cells={cell for one in measured for cell in one.times}),
        roof=roof,
        notes=[*_notes(request, hardware, model), *model.notes, *plan.notes, *analysis.notes],
        beside=request.beside,
    )
    findings.points = find_points(model, measured, _stand_ins(plan))
    return replace(findings, seconds=time.monotonic() - started)


def _check(request: Request) -> None:
    if not request.batch_sizes or min(request.batch_sizes) < 1:
        raise SettingsError("--batch-sizes must be at least 1.")
    if any(length < 3 for length in request.lengths):
        raise SettingsError("--sequence-lengths must be at least 3 tokens: a text has two special ones.")
    if request.labels is not None and len(request.labels) != len(request.texts or ()):
        raise SettingsError("There must be one label for each text.")
    if not request.folder.is_dir():
        raise ArtifactError(f"The model directory {request.folder} does not exist.")


def _read(request: Request, folder: Path) -> TrimodalModel | EncoderModel:
    if is_trimodal(request.folder):
        return read_trimodal(request.folder)
    texts = request.texts or shipped_texts()
    if len(texts) < 2:
        raise SettingsError("Two texts at least are needed to judge an encoder.")
    return read_encoder(request.folder, folder, texts, request.labels)


def shipped_texts() -> list[str]:
    """Returns the texts that come with the toolkit."""
    return (resources.files("trimodal.bench") / "texts.txt").read_text(encoding="utf-8").splitlines()


def _budget(request: Request, model: Model) -> float:
    if request.budget is not None:
        return request.budget
    if request.quick:
        return QUICK_BUDGET
    return SMALL_BUDGET if model.graph.stat().st_size < SMALL_BYTES else LARGE_BUDGET


def _traffics(plan: Plan, measured_cells: set[tuple[str, int]]) -> dict[str, float]:
    """Returns the timed traffics with the tokens of a record, both texts together."""
    timed = dict.fromkeys(cell.traffic for cell in plan.cells if (cell.traffic, cell.batch) in measured_cells)
    return {
        name: mean(sum(plan.model.lengths(item)) for item in items)
        for name, items in _stand_ins(plan).items()
        if name in timed
    }


def _stand_ins(plan: Plan) -> dict[str, list[Any]]:
    """Returns the records of each traffic's smallest batches."""
    found: dict[str, list[Any]] = {}
    for cell in plan.cells:
        found.setdefault(cell.traffic, [item for place in cell.places for item in plan.batches[place]])
    return found


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


def read_texts(path: Path) -> tuple[list[str], list[int] | None]:
    """Reads texts: one a line, or JSON lines with `text` and, on all or none, an integer `label`.

    Raises:
        ArtifactError: the file cannot be read, or is not of its form.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines or not lines[0].lstrip().startswith("{"):
            return lines, None
        records = [json.loads(line) for line in lines]
        texts = [str(record["text"]) for record in records]
        labels = [int(record["label"]) for record in records if "label" in record]
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise ArtifactError(f"{path.name} holds neither lines of text nor JSON lines with “text”.") from err
    return texts, labels if len(labels) == len(texts) else None


def read_beside(path: Path) -> Mapping[str, Any]:
    """Reads others' figures.

    Raises:
        ArtifactError: the file is not of its form.
    """
    try:
        given: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [(int(row["batch"]), float(row["pytorch_ms"]), float(row["onnx_ms"])) for row in given["rows"]]
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise ArtifactError(f"{path.name} does not hold figures: rows of batch, pytorch_ms and onnx_ms.") from err
    if not rows:
        raise ArtifactError(f"{path.name} holds no rows.")
    return given


def command_line(folder: Path, batch_sizes: Sequence[int], lengths: Sequence[int]) -> str:
    """Returns the command that repeats a run, the directory by its name alone."""
    words = ["trimodal", "optimize", folder.resolve().name, "--batch-sizes", *map(str, batch_sizes),
             "--sequence-lengths", *map(str, lengths)]  # fmt: skip
    return shlex.join(words)
