"""The optimization toolkit: one model in, every variant measured side by side, a table and a report out.

`TransformerOptimizationToolkit` is for notebooks, `run_optimize` for the command `trimodal optimize`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trimodal.bench.asked import Request, shipped_texts
from trimodal.bench.findings import Findings
from trimodal.bench.progress import Cancelled, Progress, ended_by_signals
from trimodal.bench.study import analyse
from trimodal.bench.tables import to_markdown
from trimodal.bench.trimodal_model import is_trimodal
from trimodal.errors import ArtifactError

if TYPE_CHECKING:
    from trimodal.bench.frames import Frame

DummyInput: TypeAlias = "Mapping[str, Any] | Sequence[Any]"

CANCELLED = 130
"""Exit status after Ctrl+C, as shells have it."""


class TransformerOptimizationToolkit:
    """Exports an encoder, makes its variants, and measures them.

    Args:
        model: a local Hugging Face directory, a trimodal model directory, or a `transformers` model in memory.
        tokenizer: `tokenizer.json` for a model in memory, or None for made-up token ids.
    """

    def __init__(self, model: Any, tokenizer: Path | None = None) -> None:
        self.findings: Findings | None = None
        if isinstance(model, str | os.PathLike):
            self.folder = Path(model)
            return
        if not hasattr(model, "save_pretrained"):
            raise ArtifactError("The toolkit takes a directory or a transformers model.")
        kept = tempfile.mkdtemp(prefix="trimodal-toolkit-")
        weakref.finalize(self, shutil.rmtree, kept, ignore_errors=True)
        self.folder = Path(kept) / (getattr(model.config, "model_type", None) or "model")
        model.save_pretrained(self.folder)
        if tokenizer is not None:
            shutil.copy(tokenizer, self.folder / "tokenizer.json")

    def export_onnx(self, dummy_input: DummyInput | None = None, out: Path | None = None) -> Path:
        """Exports the model with every axis dynamic, proven to give PyTorch's outputs.

        Args:
            dummy_input: what a tokenizer returns, or (ids, mask), to trace with: int64 tensors `[B, T]`; None for
                made-up ones. A trimodal directory makes up its own.
            out: the file to write; without, `model.onnx` in the working directory.

        Raises:
            TrimodalError: it cannot be exported, or gives other outputs.
        """
        target = Path(out) if out is not None else Path("model.onnx")
        if is_trimodal(self.folder):
            from trimodal.loading.pytorch import export_model

            export_model(self.folder, target)
        else:
            from trimodal.bench.huggingface import IDS, MASK, export_text_model, load_text_model

            if isinstance(dummy_input, Mapping):
                if not {IDS, MASK} <= dummy_input.keys():
                    raise ArtifactError(f"A dummy input holds {IDS} and {MASK}.")
                dummy_input = (dummy_input[IDS], dummy_input[MASK])
            export_text_model(load_text_model(self.folder), target, dummy_input=dummy_input)
        return target

    def run_full_analysis(
        self,
        texts: Sequence[str] | str | None = None,
        batch_sizes: Sequence[int] = (1, 16, 32),
        *,
        sequence_lengths: Sequence[int] = (32, 128, 512),
        labels: Sequence[int] | None = None,
        budget: float | None = None,
    ) -> Frame:
        """Measures every variant that this host can run.

        Args:
            texts: what an encoder is judged on, and what requests are made of; beside a single one the toolkit's own
                are taken. A trimodal directory is judged on its own golden records.
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

        if isinstance(texts, str):
            texts = [texts, *shipped_texts()]
        request = Request(self.folder, batch_sizes, sequence_lengths, texts, labels, budget=budget)
        with closing(Progress()) as progress:
            self.findings = analyse(request, progress)
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
    except Cancelled:
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
