"""What one run of the ladder has measured, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimodal.bench.targets import Target
from trimodal.bench.timing import Measured, Timing
from trimodal.bench.traffic import MIX, Traffic
from trimodal.bench.variants import NAIVE, PLAIN
from trimodal.errors import ArtifactError
from trimodal.loading.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Result:
    """One run.

    Attributes:
        model: name of the model directory.
        date: as the system tells it, ISO 8601.
        hardware: the host.
        versions: of the libraries.
        threads: of one operator.
        rounds: passes over the requests.
        traffics: what was timed.
        measured: the variants.
        skipped: variant to why it was not timed.
        auto: the variant that `MODEL_PRECISION=auto` serves, and what the cold start says to it.
        cache: on what, with the encoder cache and without, or None.
        targets: the targets.
        notes: how it was measured.
    """

    model: str
    date: str
    hardware: Hardware
    versions: Mapping[str, str]
    threads: int
    rounds: int
    traffics: Sequence[Traffic]
    measured: Sequence[Measured]
    skipped: Mapping[str, str]
    auto: tuple[str, str]
    cache: tuple[str, Timing, Timing] | None
    targets: Sequence[Target]
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; times in milliseconds of one request, or requests per second."""
        cache = None
        if self.cache is not None:
            name, warm, cold = self.cache
            cache = {"variant": name, "on": _timing(warm), "off": _timing(cold)}
        return {
            "model": self.model,
            "date": self.date,
            "machine": self.hardware.to_json(),
            "versions": dict(self.versions),
            "threads": self.threads,
            "rounds": self.rounds,
            "traffics": [traffic.to_json() for traffic in self.traffics],
            "variants": [_variant(one) for one in self.measured],
            "skipped": dict(self.skipped),
            "auto": {"variant": self.auto[0], "note": self.auto[1]},
            "cache": cache,
            "targets": [target.to_json() for target in self.targets],
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Returns the tables for people."""
        host = self.hardware
        features = " ".join(host.features) or "no known features"
        lines = [
            f"# {self.model}: the ladder, {self.date}",
            "",
            f"{host.processor or 'unknown processor'} ({features}), {host.cores} cores, {host.memory >> 20} MiB; "
            + ", ".join(f"{name} {version}" for name, version in self.versions.items())
            + f"; {self.threads} threads, {self.rounds} rounds, batch 1.",
            "",
            "Milliseconds of one request: mean over the requests of each one's median over the rounds (its extremes).",
            "",
            *self._times(),
            "",
            "Times as fast as the naive service and as plain ONNX Runtime:",
            "",
            *self._ratios(),
            "",
            f"`MODEL_PRECISION=auto` serves **{self.auto[0]}**: {self.auto[1]}",
            *self._cache_lines(),
            "",
            "| target | goal | measured | | compared, or why not |",
            "|---|---|---|---|---|",
            *map(_target, self.targets),
            "",
            *(f"- not timed: {name}: {why}" for name, why in self.skipped.items()),
            *(f"- WRONG: {one.variant.name}: {one.wrong}" for one in self.measured if one.wrong),
            *(f"- {note}" for note in self.notes),
            "",
        ]
        return "\n".join(lines)

    def _times(self) -> list[str]:
        names = [traffic.name for traffic in self.traffics]
        rows = [
            [
                one.variant.name,
                one.variant.kind,
                one.variant.precision,
                "WRONG" if one.wrong else "ok",
                f"{one.comparison.largest:.1e}",
                f"{one.comparison.mean:.1e}",
                f"{one.comparison.agreement:.1%}",
                f"{one.timed_largest:.1e}",
                *(f"{t.milliseconds:.1f} ({t.low:.1f}–{t.high:.1f})" for t in (one.times[name] for name in names)),
                f"{one.times[MIX].per_second:.1f}",
            ]
            for one in self.measured
        ]
        head = ("variant", "kind", "precision", "scores", "largest Δ", "mean Δ", "labels", "largest Δ, timed")
        return _table([*head, *names, "requests/s, mix"], rows)

    def _ratios(self) -> list[str]:
        names = [traffic.name for traffic in self.traffics]
        by_name = {one.variant.name: one for one in self.measured}
        served = by_name.get(self.auto[0])

        def cell(one: Measured, other: str, traffic: str) -> str:
            base = by_name.get(other)
            return "" if base is None else f"{base.times[traffic].milliseconds / one.times[traffic].milliseconds:.2f}"

        rows = [
            [
                one.variant.name + (" (WRONG)" if one.wrong else ""),
                *(f"{cell(one, NAIVE, name)} / {cell(one, PLAIN, name)}" for name in names),
                "" if served is None else cell(served, one.variant.name, MIX),
            ]
            for one in self.measured
        ]
        return _table(["variant", *(f"{name}: naive / plain" for name in names), "auto over it, mix"], rows)

    def _cache_lines(self) -> list[str]:
        if self.cache is None:
            return []
        name, warm, cold = self.cache
        text = (
            f"Encoder cache on `{name}`, half the shipment texts repeat: {warm.milliseconds:.1f} ms "
            f"({warm.low:.1f}–{warm.high:.1f}) with it, {cold.milliseconds:.1f} ({cold.low:.1f}–{cold.high:.1f}) "
            f"without: {cold.milliseconds / warm.milliseconds:.2f} times as fast."
        )
        return ["", text]

    def write(self, folder: Path) -> list[Path]:
        """Writes `ladder-<model>-<date>.json` and `.md`; returns the files.

        Raises:
            ArtifactError: they cannot be written.
        """
        texts = {"json": json.dumps(self.to_json(), indent=1) + "\n", "md": self.to_markdown()}
        files = [folder / f"ladder-{self.model}-{self.date}.{suffix}" for suffix in texts]
        try:
            for path, text in zip(files, texts.values(), strict=True):
                path.write_text(text, encoding="utf-8")
        except OSError as err:
            raise ArtifactError(f"The results cannot be written: {err.strerror}; choose another --out.") from err
        return files


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _target(target: Target) -> str:
    value = "" if target.value is None else f"{target.value:.2f} ×"
    goal = f"{'≥' if target.at_least else '≤'} {target.limit:g} ×"
    return f"| {target.name} | {goal} | {value} | {target.state} | {target.note} |"


def _timing(timing: Timing) -> dict[str, float]:
    plain = asdict(timing) | {"per_second": timing.per_second}
    return {name: round(value, 3) for name, value in plain.items()}


def _variant(one: Measured) -> dict[str, Any]:
    return {
        "name": one.variant.name,
        "kind": one.variant.kind,
        "precision": one.variant.precision,
        "engine": one.variant.engine,
        "scores": "WRONG" if one.wrong else "ok",
        "wrong": one.wrong,
        "comparison": one.comparison.to_json(),
        "largest_timed": one.timed_largest,
        "open_seconds": round(one.open_seconds, 2),
        "times": {name: _timing(timing) for name, timing in one.times.items()},
    }
