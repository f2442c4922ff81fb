"""The pictures of one analysis; the only module that imports matplotlib.

A variant has the same colour and mark in each; see `trimodal.bench.looks`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trimodal.bench.analysis import Measured, best, throughput
from trimodal.bench.candidates import NAIVE, REFERENCE
from trimodal.bench.findings import Findings
from trimodal.bench.looks import look
from trimodal.bench.traffic import MIX

_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
"""Behind numbers that a line may cross."""

_INK = "#1a1a1a"
_SETTINGS = {
    "font.size": 10, "font.family": "DejaVu Sans", "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": _INK, "axes.labelcolor": _INK, "text.color": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#d9d9d9", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "figure.facecolor": "white", "svg.hashsalt": "trimodal", "legend.frameon": False, "legend.fontsize": 9,
}  # fmt: skip

Draw = Callable[[Findings], Figure]


def draw(findings: Findings) -> dict[str, Figure]:
    """Draws every picture for which there is data, by name."""
    pictures: dict[str, Draw] = {
        "speedup": _speedup,
        "throughput": _throughput,
        "latency": _latency,
        "memory": _memory,
        "frontier": _frontier,
        "waterfall": _waterfall,
    }
    with _style():
        figures = {name: function(findings) for name, function in pictures.items()}
        if findings.roof is not None and findings.points:
            figures["roofline"] = _roofline(findings)
    return figures


def to_bytes(figure: Figure, kind: str) -> bytes:
    """Returns a picture as `png` or `svg`."""
    file = io.BytesIO()
    with _style():
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=110, metadata=metadata, bbox_inches="tight")
    return file.getvalue()


def _style() -> AbstractContextManager[None]:
    settings: Any = _SETTINGS
    return mpl.rc_context(settings)


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _label(one: Measured) -> str:
    return one.candidate.name + (" (WRONG)" if one.accuracy.wrong else "")


def _timed(findings: Findings, traffic: str, batch: int) -> list[Measured]:
    """Returns the variants that were timed, slowest first."""
    cell = (traffic, batch)
    found = [one for one in findings.measured if cell in one.times]
    return sorted(found, key=lambda one: -one.times[cell].typical)


def _smallest(findings: Findings) -> int:
    return min(findings.batch_sizes)


def _speedup(findings: Findings) -> Figure:
    """Bars for each batch size: times as fast as the baseline."""
    sizes = [n for n in findings.batch_sizes if _timed(findings, MIX, n)]
    ones = [m for m in _timed(findings, MIX, sizes[0]) if m.candidate.name != NAIVE]
    figure = Figure(figsize=(3.2 * len(sizes) + 2.2, 0.32 * len(ones) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{findings.model}: times as fast as {findings.baseline}, realistic lengths", x=0.01, ha="left", weight="bold"
    )
    for axes, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
        values = [findings.speedup(one, MIX, size) or 0.0 for one in ones]
        bars = axes.barh([_label(m) for m in ones], values, color=[look(m.candidate.name)[0] for m in ones])
        for bar, one in zip(bars, ones, strict=True):
            bar.set_hatch("///" if one.accuracy.wrong else "")
        axes.bar_label(
            bars, [f"{value:.2f}" if value else "not timed" for value in values], padding=3, fontsize=9, bbox=_PAPER
        )
        axes.axvline(1, color=_INK, linewidth=1, linestyle="--")
        axes.set_xlim(0, 1.2 * max(values, default=1))
        axes.set_xlabel(f"speed-up, batch {size}")
        axes.grid(axis="y", visible=False)
    return figure


def _throughput(findings: Findings) -> Figure:
    """Lines over the batch size."""
    figure, axes = _figure(8.5, 5, f"{findings.model}: throughput over batch size, realistic lengths")
    for one in findings.measured:
        pairs = [(n, throughput(one, MIX, n)) for n in findings.batch_sizes]
        points = [(n, rate) for n, rate in pairs if rate is not None]
        if one.candidate.name != NAIVE and points:
            colour, mark = look(one.candidate.name)
            dash = ":" if one.accuracy.wrong else "-"
            axes.plot(*zip(*points, strict=True), dash, color=colour, marker=mark, label=_label(one), linewidth=1.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(findings.batch_sizes), [str(n) for n in findings.batch_sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size (records of a call)")
    axes.set_ylabel("records per second")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _latency(findings: Findings) -> Figure:
    """Median with p95 and p99, one record."""
    size = _smallest(findings)
    ones = _timed(findings, MIX, size)
    figure, axes = _figure(8.5, 0.36 * len(ones) + 1.6, f"{findings.model}: latency of a call, batch {size}")
    times = [one.times[MIX, size] for one in ones]
    names = [f"{_label(one)}  {t.p50:.1f}" for one, t in zip(ones, times, strict=True)]
    axes.barh(names, [t.p50 for t in times], color=[look(one.candidate.name)[0] for one in ones])
    axes.plot([t.p95 for t in times], names, "|", color=_INK, markersize=12, markeredgewidth=2, label="p95")
    axes.plot([t.p99 for t in times], names, "o", color=_INK, markersize=5, fillstyle="none", label="p99")
    axes.set_xlim(0, 1.05 * max(t.p99 for t in times))
    axes.set_xlabel("milliseconds of a call, realistic lengths (bar and number: p50)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.grid(axis="y", visible=False)
    return figure


def _memory(findings: Findings) -> Figure:
    """Peak memory of the process and size of the files."""
    ones = sorted(findings.measured, key=lambda one: -one.peak_mib)
    figure, axes = _figure(8.5, 0.42 * len(ones) + 1.6, f"{findings.model}: memory and size on disk")
    places = range(len(ones))
    colours = [look(one.candidate.name)[0] for one in ones]
    sizes = [one.candidate.bytes / (1 << 20) for one in ones]
    peak = axes.barh([p + 0.2 for p in places], [one.peak_mib for one in ones], 0.4, color=colours)
    disk = axes.barh([p - 0.2 for p in places], sizes, 0.4, color="white", edgecolor=colours, hatch="////")
    axes.bar_label(peak, [f"{one.peak_mib:.0f} peak" for one in ones], padding=3, fontsize=9)
    axes.bar_label(disk, [f"{size:.1f} on disk" for size in sizes], padding=3, fontsize=9)
    axes.set_yticks(list(places), [_label(one) for one in ones])
    axes.margins(x=0.15)
    axes.set_xlabel("MiB (filled: most memory of the variant's process, libraries included; hatched: its files)")
    axes.grid(axis="y", visible=False)
    return figure


def _frontier(findings: Findings) -> Figure:
    """Latency against throughput; what no other beats is joined by a line."""
    figure, axes = _figure(8.5, 5.2, f"{findings.model}: latency against throughput, realistic lengths")
    points = []
    for one in findings.measured:
        colour, mark = look(one.candidate.name)
        sizes = [size for size in findings.batch_sizes if (MIX, size) in one.times]
        own = [(one.times[MIX, size].p50, throughput(one, MIX, size) or 0.0, size) for size in sizes]
        fill: Any = "none" if one.accuracy.wrong else "full"
        place = [point[0] for point in own], [point[1] for point in own]
        axes.plot(*place, mark, color=colour, fillstyle=fill, markersize=9, label=_label(one))
        points += [] if one.accuracy.wrong else own
    edge = _edge(points)
    axes.plot([p[0] for p in edge], [p[1] for p in edge], color=_INK, linewidth=1, zorder=1, label="not beaten")
    for size, (latency, rate) in {size: (latency, rate) for latency, rate, size in edge}.items():
        axes.annotate(
            f"batch {size}", (latency, rate), (-9, 6), textcoords="offset points", ha="right", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.14, y=0.14)
    axes.set_xlabel("p50 of a call, milliseconds (logarithmic); a mark for each batch size")
    axes.set_ylabel("records per second")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _edge(points: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Returns the points than which none is both quicker and of more throughput."""
    edge: list[tuple[float, float, int]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not edge or point[1] > edge[-1][1]:
            edge.append(point)
    return edge


def _waterfall(findings: Findings) -> Figure:
    """From the padded graph to the fastest with right outputs, step by step, one record."""
    size = _smallest(findings)
    steps = waterfall_steps(findings, size)
    figure, axes = _figure(8.5, 4.2, f"{findings.model}: where a call's time goes, batch {size}, realistic lengths")
    before: float | None = None
    for place, (_, name, value) in enumerate(steps):
        axes.bar(place, value, 0.62, color=look(name)[0])
        text = f"{value:.1f} ms"
        if before is not None:
            axes.bar(place, before - value, 0.62, bottom=value, color="white", edgecolor="#777777", linestyle="--")
            text += f"\n{value / before - 1:+.0%}"
        top = max(value, before or 0.0)
        axes.annotate(text, (place, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
        before = value
    axes.set_xticks(range(len(steps)), [label for label, _, _ in steps])
    axes.set_ylabel("milliseconds of a call")
    axes.margins(y=0.2)
    axes.grid(axis="x", visible=False)
    return figure


def waterfall_steps(findings: Findings, size: int) -> list[tuple[str, str, float]]:
    """Returns (label, variant, milliseconds): padded, exact length, fastest in fp32, fastest of all."""
    cell = (MIX, size)
    right = [m for m in findings.measured if m.accuracy.wrong is None and m.candidate.precision == "fp32"]
    chosen = [
        ("every text\npadded", findings.one(NAIVE)),
        ("exact lengths", findings.one(REFERENCE)),
        ("fastest fp32", best(right, *cell)),
        ("fastest with\nright outputs", best(findings.measured, *cell)),
    ]
    steps: dict[str, tuple[str, str, float]] = {}
    for label, one in chosen:
        if one is not None and cell in one.times:
            name = one.candidate.name
            steps.setdefault(name, (f"{label}\n{name}", name, one.times[cell].typical))
    return list(steps.values())


def _roofline(findings: Findings) -> Figure:
    """Variants under the measured roof."""
    figure, axes = _figure(8.5, 5.2, f"{findings.model}: under the roof of this host")
    roof = findings.roof
    if roof is None:
        return figure
    sizes = {min(findings.batch_sizes), max(findings.batch_sizes)}
    points = sorted((p for p in findings.points if p.traffic == MIX and p.batch in sizes), key=lambda p: p.batch)
    intensities = [point.intensity for point in points] or [1.0]
    low, high = min(1.0, *intensities) / 1.5, max(intensities) * 3
    for peak, label, dash in ((roof.fp32, "fp32 product", "-"), (roof.int8, "int8 product", "--")):
        ridge = peak / roof.bandwidth
        axes.plot([low, ridge, high], [low * roof.bandwidth, peak, peak], dash, color=_INK, linewidth=1.3,
                  label=f"{label}: {peak:.0f}·10⁹/s")  # fmt: skip
    seen: set[str] = set()
    for point in points:
        colour, mark = look(point.variant)
        label = "_" if point.variant in seen else point.variant
        fill: Any = "none" if point.batch == points[0].batch else "full"
        axes.plot(point.intensity, point.gflops, mark, color=colour, markersize=8, label=label, fillstyle=fill)
        seen.add(point.variant)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.plot([], [], " ", label=f"slope: memory, {roof.bandwidth:.1f} GB/s")
    axes.set_xlabel("operations per byte of weights and activations (hollow: smallest batch, filled: largest)")
    axes.set_ylabel("10⁹ operations per second")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
