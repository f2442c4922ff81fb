"""What one analysis has found, as rows, JSON, Markdown, and an entry of a log that keeps what did not help, too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimodal.bench.analysis import Measured, best
from trimodal.bench.candidates import NAIVE, PYTORCH, REFERENCE
from trimodal.bench.roofline import Point, Roof
from trimodal.bench.traffic import MIX
from trimodal.errors import ArtifactError
from trimodal.loading.hardware import Hardware

FROZEN_TOKENS = 13
"""Length of the one input on which earlier tables of PyTorch against ONNX were measured."""

SLOW = 1.02
"""Times the reference's time from which a variant did not help."""


@dataclass(slots=True)
class Findings:
    """One analysis.

    Attributes:
        model: name of the directory.
        kind: what it is.
        date: ISO 8601.
        command: that repeats it.
        hardware: the host.
        versions: of the libraries.
        threads: of one operator.
        load: other processes' load before the start.
        seconds: what everything took.
        measured: the variants.
        skipped: variant to why it was not measured.
        batch_sizes: that were asked for.
        traffics: `mix` and `S=…`, each with its mean tokens a record.
        roof: of this host.
        points: variants under it.
        notes: how it was measured.
        beside: others' figures of the same table, or None.
    """

    model: str
    kind: str
    date: str
    command: str
    hardware: Hardware
    versions: Mapping[str, str]
    threads: int
    load: float
    seconds: float
    measured: list[Measured]
    skipped: Mapping[str, str]
    batch_sizes: Sequence[int]
    traffics: Mapping[str, float]
    roof: Roof | None
    points: Sequence[Point] = ()
    notes: list[str] = field(default_factory=list)
    beside: Mapping[str, Any] | None = None

    @property
    def baseline(self) -> str:
        """What speed-ups are counted from: PyTorch, else the export as it is."""
        names = [one.candidate.name for one in self.measured]
        return PYTORCH if PYTORCH in names else REFERENCE

    def one(self, name: str) -> Measured | None:
        """Returns a variant by its name."""
        return next((one for one in self.measured if one.candidate.name == name), None)

    def speedup(self, one: Measured, traffic: str, batch: int) -> float | None:
        """Returns how many times as fast as the baseline a variant is."""
        base = self.one(self.baseline)
        cell = (traffic, batch)
        if base is None or cell not in base.times or cell not in one.times:
            return None
        return base.times[cell].typical / one.times[cell].typical

    def rows(self) -> list[dict[str, Any]]:
        """Returns one flat row for each variant, traffic and batch size."""
        reference = self.one(REFERENCE)
        result = []
        for one in self.measured:
            fixed = {
                "variant": one.candidate.name,
                "engine": one.candidate.engine,
                "precision": one.candidate.precision,
                "size_mb": one.candidate.bytes / 1e6,
                "size_ratio": one.candidate.bytes / reference.candidate.bytes if reference else None,
                "load_seconds": one.load_seconds,
                "peak_memory_mib": one.peak_mib,
                **{f"accuracy_{key}": value for key, value in one.accuracy.to_json().items() if key != "wrong"},
                "scores": "WRONG" if one.accuracy.wrong else "ok",
                "wrong": one.accuracy.wrong,
            }
            for (traffic, batch), times in one.times.items():
                timed = {"traffic": traffic, "batch_size": batch, **_milliseconds(asdict(times))}
                rate = {"throughput": 1000 * batch / times.typical, "speedup": self.speedup(one, traffic, batch)}
                result.append(fixed | timed | rate)
        return result

    def not_helped(self) -> list[str]:
        """Says which variants gained nothing, or must not be used."""
        lines = []
        reference = self.one(REFERENCE)
        for one in self.measured:
            if one.accuracy.wrong:
                lines.append(f"{one.candidate.name}: outputs are refused: {one.accuracy.wrong}")
            slower = [
                f"{traffic} batch {batch} ({times.typical / reference.times[traffic, batch].typical:.2f} ×)"
                for (traffic, batch), times in one.times.items()
                if reference and times.typical > SLOW * reference.times[traffic, batch].typical
            ]
            if slower and one.candidate.name != REFERENCE:
                lines.append(f"{one.candidate.name}: slower than {REFERENCE}: {', '.join(slower)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; times in milliseconds of a call, throughput in records a second."""
        return {
            "model": self.model,
            "kind": self.kind,
            "date": self.date,
            "command": self.command,
            "machine": self.hardware.to_json(),
            "versions": dict(self.versions),
            "threads": self.threads,
            "load_before": round(self.load, 2),
            "seconds": round(self.seconds, 1),
            "tokens_per_record": dict(self.traffics),
            "baseline": self.baseline,
            "rows": [{key: _plain(value) for key, value in row.items()} for row in self.rows()],
            "how_made": {one.candidate.name: one.candidate.note for one in self.measured},
            "skipped": dict(self.skipped),
            "did_not_help": self.not_helped(),
            "roof": self.roof and self.roof.to_json(),
            "roofline": [asdict(point) for point in self.points],
            "beside": self.beside,
            "notes": list(self.notes),
        }

    def fastest(self) -> Measured | None:
        """Returns the fastest variant with right outputs for one record of realistic length."""
        return best(self.measured, MIX, min(self.batch_sizes))

    def log_entry(self) -> str:
        """Returns an entry of the log: the best, and what did not help."""
        winner = self.fastest()
        lines = [f"## {self.date} {self.model}: {self.hardware.processor or 'unknown'}, {self.threads} threads", ""]
        if winner is not None:
            gain = self.speedup(winner, MIX, min(self.batch_sizes))
            over = "" if gain is None else f", {gain:.2f} times as fast as {self.baseline}"
            lines.append(f"- fastest with right outputs, realistic lengths, alone: {winner.candidate.name}{over}")
        lines += [f"- did not help: {line}" for line in self.not_helped()]
        lines += [f"- not measured: {name}: {why.partition('; on a machine')[0]}" for name, why in self.skipped.items()]
        return "\n".join([*lines, ""])

    def write(self, folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
        """Writes the JSON and other files, named by suffix, and appends to `toolkit-log.md`; returns their paths.

        Raises:
            ArtifactError: they cannot be written.
        """
        named = {"json": json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", **files}
        log = folder / "toolkit-log.md"
        written = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for suffix, content in named.items():
                joint = "" if suffix.startswith("-") else "."
                path = folder / f"toolkit-{self.model}-{self.date}{joint}{suffix}"
                path.write_bytes(content.encode() if isinstance(content, str) else content)
                written.append(path)
            with log.open("a", encoding="utf-8") as file:
                file.write(self.log_entry() + "\n")
        except OSError as err:
            raise ArtifactError(f"The results cannot be written: {err.strerror}; choose another --out.") from err
        return [*written, log]


def _milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    counts = ("calls", "rounds")
    return {name if name in counts else f"{name}_ms": value for name, value in times.items()}


def _plain(value: Any) -> Any:
    """Rounds numbers; JSON has no infinity."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) != float("inf") else None
    return value


def padded_share(findings: Findings) -> float | None:
    """Returns how many times as long the padded call takes, or None."""
    naive, plain = findings.one(NAIVE), findings.one(REFERENCE)
    if naive is None or plain is None or (MIX, 1) not in naive.times:
        return None
    return naive.times[MIX, 1].typical / plain.times[MIX, 1].typical
