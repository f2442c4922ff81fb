"""What is asked of `trimodal optimize`, read and checked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from trimodal.errors import ArtifactError, SettingsError


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


def check(request: Request) -> None:
    """Checks what can be checked before a model is read.

    Raises:
        TrimodalError: a value cannot be used; the message says which.
    """
    if not request.batch_sizes or min(request.batch_sizes) < 1:
        raise SettingsError("--batch-sizes must be at least 1.")
    if any(length < 3 for length in request.lengths):
        raise SettingsError("--sequence-lengths must be at least 3 tokens: a text has two special ones.")
    if request.labels is not None and len(request.labels) != len(request.texts or ()):
        raise SettingsError("There must be one label for each text.")
    if not request.folder.is_dir():
        raise ArtifactError(f"The model directory {request.folder} does not exist.")


def shipped_texts() -> list[str]:
    """Returns the texts that come with the toolkit."""
    return (resources.files("trimodal.bench") / "texts.txt").read_text(encoding="utf-8").splitlines()


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
