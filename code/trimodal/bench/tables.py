"""The tables of one analysis, for Markdown and for HTML alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimodal.bench.analysis import Measured, best
from trimodal.bench.candidates import NAIVE, REFERENCE
from trimodal.bench.findings import FROZEN_TOKENS, Findings, padded_share
from trimodal.bench.traffic import MIX


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        title: above it.
        head: names of the columns.
        rows: as many cells each.
        note: below it, or empty.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def make_tables(findings: Findings) -> list[Table]:
    """Returns every table, the answer first."""
    tables = [_answer(findings), _judged(findings), _batches(findings)]
    if findings.beside:
        tables.append(_beside(findings))
    tables += [_times(findings, traffic) for traffic in findings.traffics]
    return tables


def _answer(findings: Findings) -> Table:
    """PyTorch against ONNX at each batch size: what earlier tables show, at realistic lengths and at theirs."""
    rows = []
    traffics = [name for name in (MIX, f"S={FROZEN_TOKENS}") if name in findings.traffics]
    base, plain = findings.one(findings.baseline), findings.one(REFERENCE)
    for traffic in traffics:
        for batch in findings.batch_sizes:
            cell = (traffic, batch)
            winner = best(findings.measured, *cell)
            if winner is None or plain is None or base is None or cell not in base.times:
                continue
            left, right, own = (one.times[cell].typical for one in (base, plain, winner))
            f1 = winner.accuracy.f1
            row = [_traffic(traffic), str(batch), f"{left:.1f}", f"{right:.1f}", f"{left / right:.2f} ×",
                   winner.candidate.name, f"{own:.1f}", f"{left / own:.2f} ×", f"{1000 * batch / own:.1f}",
                   f"{winner.accuracy.agreement:.1%}", "" if f1 is None else f"{f1:.3f}"]  # fmt: skip
            rows.append(row)
    head = ("lengths", "batch", f"{findings.baseline} ms", f"{REFERENCE} ms", "ratio", "fastest with right outputs",
            "its ms", "its ratio", "its records/s", "labels kept", "F1")  # fmt: skip
    note = (
        f"Milliseconds of a whole call. Tables that show larger ratios are often made with one input frozen to "
        f"{FROZEN_TOKENS} tokens, where PyTorch's own overhead outweighs the computing; so both are shown. Over real "
        "lengths computing dominates, and every engine multiplies the same matrices."
    )
    return Table("PyTorch against ONNX", head, rows, note)


def _judged(findings: Findings) -> Table:
    rows = [_judged_row(findings, one) for one in findings.measured]
    head = ("variant", "precision", "outputs", "largest Δ", "labels kept", "cosine: mean", "least", "F1", "size MB",
            "of FP32", "load s", "peak MiB")  # fmt: skip
    note = (
        f"Against {REFERENCE}, each record alone. F1 of the reference: "
        f"{_number(next((m.accuracy.f1_reference for m in findings.measured), None), '.3f') or 'no labels'}. "
        "Peak: all memory of the variant's own process, libraries included. Load: until ready, its imports included."
    )
    return Table("Right, small, and quick to load?", head, rows, note)


def _judged_row(findings: Findings, one: Measured) -> list[str]:
    accuracy, reference = one.accuracy, findings.one(REFERENCE)
    ratio = one.candidate.bytes / reference.candidate.bytes if reference else None
    return [
        one.candidate.name, one.candidate.precision, f"WRONG: {accuracy.wrong}" if accuracy.wrong else "ok",
        f"{accuracy.max_diff:.1e}", f"{accuracy.agreement:.1%}", f"{accuracy.cosine_mean:.5f}",
        f"{accuracy.cosine_min:.5f}", _number(accuracy.f1, ".3f"), f"{one.candidate.bytes / 1e6:.1f}",
        "" if ratio is None else f"{ratio:.1%}", f"{one.load_seconds:.2f}", f"{one.peak_mib:.0f}",
    ]  # fmt: skip


def _batches(findings: Findings) -> Table:
    """Records a second by batch size, at realistic lengths."""
    sizes = [size for size in findings.batch_sizes if any((MIX, size) in one.times for one in findings.measured)]
    rows = []
    for one in findings.measured:
        cells = []
        for size in sizes:
            times, gain = one.times.get((MIX, size)), findings.speedup(one, MIX, size)
            cells.append("" if times is None else f"{1000 * size / times.typical:.1f}" + _gain(gain))
        rows.append([_name(one), *cells])
    share = padded_share(findings)
    note = "" if share is None else f"{NAIVE}: the same graph with every text padded takes {share:.1f} times as long."
    return Table(
        "Records a second, realistic lengths", ["variant", *(f"batch {size}" for size in sizes)], rows,
        f"In brackets: times as fast as {findings.baseline}. {note}",
    )  # fmt: skip


def _times(findings: Findings, traffic: str) -> Table:
    rows = []
    for one in findings.measured:
        for batch in findings.batch_sizes:
            t = one.times.get((traffic, batch))
            if t is not None:
                spread = f"{t.low:.1f}–{t.high:.1f}"
                numbers = [f"{value:.1f}" for value in (t.p50, t.p95, t.p99, t.mean, t.std)]
                rate, gain = f"{1000 * batch / t.typical:.1f}", _number(findings.speedup(one, traffic, batch), ".2f")
                rows.append([_name(one), str(batch), *numbers, spread, f"{t.calls}", rate, gain])
    head = ("variant", "batch", "p50 ms", "p95", "p99", "mean", "std", "rounds' means", "calls", "records/s",
            f"× {findings.baseline}")  # fmt: skip
    return Table(f"Times: {_traffic(traffic)}, {findings.traffics[traffic]:.0f} tokens a record", head, rows)


def _beside(findings: Findings) -> Table:
    """Others' figures of the same table beside ours."""
    given = findings.beside or {}
    traffics = [f"S={FROZEN_TOKENS}", MIX]
    rows = []
    for theirs in given.get("rows", []):
        batch = int(theirs["batch"])
        cells = [_pair(theirs["pytorch_ms"], theirs["onnx_ms"])]
        for traffic in traffics:
            base = _typical(findings.one(findings.baseline), traffic, batch)
            winner = best(findings.measured, traffic, batch)
            cells += [_pair(base, _typical(one, traffic, batch)) for one in (findings.one(REFERENCE), winner)]
        rows.append([str(batch), *cells])
    names = (REFERENCE, "fastest with right outputs")
    ours = [f"{name}, {_traffic(traffic)}" for traffic in traffics for name in names]
    head = ("batch", str(given.get("source", "theirs")), *ours)
    return Table(
        "Beside others' figures", head, rows,
        f"Milliseconds of {findings.baseline} / of the other = ratio. {given.get('note', '')}",
    )  # fmt: skip


def _typical(one: Measured | None, traffic: str, batch: int) -> float | None:
    times = None if one is None else one.times.get((traffic, batch))
    return None if times is None else times.typical


def _pair(left: float | None, right: float | None) -> str:
    return "" if not left or not right else f"{left:.1f} / {right:.1f} = {left / right:.2f} ×"


def _traffic(name: str) -> str:
    return "realistic" if name == MIX else f"{name} fixed"


def _name(one: Measured) -> str:
    return one.candidate.name + (" (WRONG)" if one.accuracy.wrong else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _gain(value: float | None) -> str:
    return "" if value is None else f" ({value:.2f} ×)"


def host_lines(findings: Findings) -> list[str]:
    """Says on what it was measured."""
    host = findings.hardware
    features = " ".join(host.features) or "no known features"
    versions = ", ".join(f"{name} {version}" for name, version in findings.versions.items())
    lines = [
        f"Host: {host.processor or 'unknown processor'} ({features}), {host.cores} cores, {host.memory >> 20} MiB.",
        f"{findings.threads} threads; load before the start {findings.load:.1f} of {host.cores} cores.",
        f"Versions: {versions}.",
        f"Measured {findings.date} in {findings.seconds:.0f} s by `{findings.command}`.",
    ]
    if findings.roof is not None:
        roof = findings.roof
        products = f"{roof.fp32:.0f} GFLOP/s in fp32, {roof.int8:.0f} GOP/s in int8"
        lines.append(f"Roof, measured: {products}, {roof.bandwidth:.1f} GB/s from memory.")
    return lines


def to_markdown(findings: Findings) -> str:
    """Returns everything but the pictures."""
    lines = [f"# {findings.model}: the toolkit, {findings.date}", "", *_spaced(host_lines(findings))]
    for table in make_tables(findings):
        rule = ["---"] * len(table.head)
        lines += [f"## {table.title}", "", *("| " + " | ".join(row) + " |" for row in (table.head, rule, *table.rows))]
        lines += ["", *([table.note, ""] if table.note else [])]
    lines += ["## What did not help", "", *(f"- {line}" for line in findings.not_helped()), ""]
    lines += ["## Not measured", "", *(f"- {name}: {why}" for name, why in findings.skipped.items()), ""]
    lines += ["## How it was measured", "", *(f"- {note}" for note in findings.notes), ""]
    return "\n".join(lines)


def _spaced(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in (line, "")]
