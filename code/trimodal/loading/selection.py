"""What the cold start has chosen, told by the main process to its workers in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "selection.json"


@dataclass(frozen=True, slots=True)
class Selection:
    """One level of the ladder.

    Attributes:
        level: 1 all that was asked, 2 `model.onnx` with tuned options, 3 `model.onnx` with the default session,
            4 PyTorch.
        rung: name of what runs.
        precision: of its products with weights.
        engine: what runs it.
        entry: directory of the optimized model, or None where `model.onnx` itself is run.
        causes: why something that was asked for is not there: phase or level to cause.
        declined: rungs that work and are slower here.
        report: the report on what was tried, in Markdown.
    """

    level: int
    rung: str = "tuned"
    precision: str = "fp32"
    engine: str = "onnxruntime"
    entry: Path | None = None
    causes: Mapping[str, str] = field(default_factory=dict)
    declined: Sequence[str] = ()
    report: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        plain = asdict(self)
        plain["entry"] = None if self.entry is None else str(self.entry)
        return plain

    def write(self, folder: Path) -> None:
        """Leaves the selection for the workers."""
        (folder / FILE).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Selection | None:
        """Returns what the main process chose, or None where it left nothing."""
        path = folder / FILE
        if not path.is_file():
            return None
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain["entry"] = None if plain["entry"] is None else Path(plain["entry"])
        return cls(**plain)
