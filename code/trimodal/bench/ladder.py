"""`trimodal bench ladder`: how fast each rung is on this host, beside the naive service and the model's peers."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median

from trimodal.bench.results import Result
from trimodal.bench.targets import EXACT, Judge
from trimodal.bench.timing import CONSTANT_REQUESTS, Bench, Timing, group_size, tell, time_cache
from trimodal.bench.traffic import MIX, Traffic, fixed, realistic, repeating, saved_tokens
from trimodal.bench.variants import PLAIN, TUNED, Variants, make_variants
from trimodal.errors import ArtifactError, SettingsError
from trimodal.loading.hardware import detect, libraries, no_gpu, thread_count
from trimodal.loading.prepare import prepare
from trimodal.loading.samples import Samples
from trimodal.records import Features
from trimodal.serving.split import SplitRunner
from trimodal.settings import Settings

REQUESTS, QUICK_REQUESTS = 24, 6
"""Requests of the realistic mix."""

FIXED_REQUESTS, QUICK_FIXED_REQUESTS = 3, 1
"""Requests of each fixed length."""

QUICK_SAMPLES = 8
"""Records that decide whether scores are right, where a look is enough."""


def run_ladder(settings: Settings, *, rounds: int, out: Path | None, lengths: Sequence[int], quick: bool) -> int:
    """Times every variant of a model directory, prints the tables, and writes them where asked.

    Args:
        settings: the container's settings; engine and precision do not choose among the rungs here.
        rounds: passes over the requests.
        out: directory to write JSON and Markdown to, or None.
        lengths: fixed text lengths in tokens.
        quick: few requests and records: a look, not a result.

    Returns:
        0: everything that can be measured here was measured, targets met or not.

    Raises:
        TrimodalError: nothing can be measured; the message says what to fix.
    """
    if rounds < 1:
        raise SettingsError(f"--rounds {rounds} must be at least 1.")
    if any(length < 3 for length in lengths):
        raise SettingsError("--lengths must be at least 3 tokens: a text has two special ones.")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ArtifactError(f"The results cannot be written: {err.strerror}; choose another --out.") from err
    with tempfile.TemporaryDirectory(prefix="trimodal-bench-") as folder:
        result = measure(settings, Path(folder), rounds=rounds, lengths=lengths, quick=quick)
    sys.stdout.write(result.to_markdown())
    if out is not None:
        for path in result.write(out):
            tell(f"wrote {path.name}")
    return 0


def measure(settings: Settings, folder: Path, *, rounds: int, lengths: Sequence[int], quick: bool) -> Result:
    """Measures a model directory; what is built goes into `folder`.

    Raises:
        TrimodalError: nothing can be measured.
    """
    load = os.getloadavg()[0]
    hardware, threads = detect(gpu=no_gpu), thread_count(settings)
    tell("building the rungs")
    variants = make_variants(settings, hardware, threads, folder)
    auto, auto_note = _auto(settings, threads, folder)
    traffics, notes = _traffics(variants, lengths, quick=quick)
    notes.append(f"Other processes' load before the start: {load:.1f} of {hardware.cores} cores.")
    if quick:
        notes.append("--quick: few requests and records; a look, not a result.")
    size = group_size(variants.facts.bytes, len(variants.found), hardware.memory)
    bench = Bench(_samples(variants, quick=quick), traffics, rounds, variants.skipped)
    measured = bench.run(variants.found, size)
    names = [traffic.name for traffic in traffics]
    max_tokens = variants.subject.artifacts.config.max_tokens
    judge = Judge(measured, variants.skipped, auto, names, max_tokens)
    cache, cache_note = _cache(judge, traffics[0], rounds)
    return Result(
        model=settings.model_dir.resolve().name,
        date=datetime.now(UTC).date().isoformat(),
        hardware=hardware,
        versions=libraries(),
        threads=threads,
        rounds=rounds,
        traffics=traffics,
        measured=measured,
        skipped=variants.skipped,
        auto=(auto, auto_note),
        cache=cache,
        targets=judge.targets(cache and cache[1:], cache_note),
        notes=[*notes, *_notes(variants, bench, size)],
    )


def _auto(settings: Settings, threads: int, folder: Path) -> tuple[str, str]:
    """Asks the cold start what it would serve: (variant, what it says)."""
    tell("asking the cold start what MODEL_PRECISION=auto serves")
    kept = folder / "auto"
    kept.mkdir()
    selection = prepare(replace(settings, precision="auto", strict=False, optimized_dir=kept), threads)
    name = {"tuned": TUNED, "baseline": PLAIN}.get(selection.rung, selection.rung)
    lost = "; ".join(f"{phase}: {cause}" for phase, cause in selection.causes.items())
    return name, f"level {selection.level}" + (f", lost {lost}" if lost else "")


def _samples(variants: Variants, *, quick: bool) -> Samples:
    samples = variants.subject.samples
    if not quick:
        return samples
    few = slice(0, QUICK_SAMPLES)
    return Samples(samples.features[few], labels=None if samples.labels is None else samples.labels[few])


def _traffics(variants: Variants, lengths: Sequence[int], *, quick: bool) -> tuple[list[Traffic], list[str]]:
    """Returns the traffics that are timed, the mix first, and what is left out and why."""
    subject = variants.subject
    most = subject.artifacts.config.max_tokens
    words: Sequence[Features] = subject.samples.features
    traffics = [realistic(words, QUICK_REQUESTS if quick else REQUESTS, most)]
    count = QUICK_FIXED_REQUESTS if quick else FIXED_REQUESTS
    traffics += [fixed(words, count, length) for length in lengths if length <= most]
    left_out = [f"not timed: S={length}: the model takes at most {most} tokens" for length in lengths if length > most]
    return traffics, left_out


def _cache(judge: Judge, mix: Traffic, rounds: int) -> tuple[tuple[str, Timing, Timing] | None, str]:
    """Times the encoder cache on the fastest exact rung that has one; returns its times and what was compared."""
    exact = [one for one in judge.measured if EXACT.fits(one) and one.wrong is None]
    for one in sorted(exact, key=lambda one: one.times[MIX].milliseconds):
        runner = one.variant.open()
        if isinstance(runner, SplitRunner):
            traffic = repeating(mix)
            tell(f"timing the encoder cache: {one.variant.name}")
            warm, cold = time_cache(runner, traffic, rounds)
            note = f"{one.variant.name}; counted in tokens it could be {saved_tokens(traffic):.2f} ×"
            return (one.variant.name, warm, cold), note
    return None, "no exact rung that is split into encoders passes verification here"


def _notes(variants: Variants, bench: Bench, size: int) -> list[str]:
    """Says how it was measured."""
    groups = -(-(len(variants.found) - 1) // size)
    scores = (
        f"Scores are compared with those of {PLAIN} on {len(bench.samples.features)} records, by the tolerance of the "
        "precision, as the cold start does; a variant that is WRONG meets no target."
    )
    spinning = (
        "No session spins while it waits, neither naive nor plain, though a default session would: a thread that "
        "spins takes the core from whoever is timed next."
    )
    padding = (
        f"The naive service pads every text, so each request costs the same: timed on {CONSTANT_REQUESTS} of a kind."
    )
    together = "All variants were open at once, each request through each of them in turn."
    if groups > 1:
        together = (
            f"Memory: {groups} groups of at most {size} variants, {PLAIN} beside each; the times of a group are "
            f"scaled by what {PLAIN} took in it."
        )
    traffics = [
        f"{traffic.name}: {len(traffic.requests)} requests, {_lengths(traffic)}"
        + (f"; {traffic.note}" if traffic.note else "")
        for traffic in bench.traffics
    ]
    return [scores, spinning, padding, together, *traffics]


def _lengths(traffic: Traffic) -> str:
    return ", ".join(
        f"text {side} of {mean(sizes):.0f} tokens on average (median {median(sizes):.0f}, longest {max(sizes)})"
        for side, sizes in enumerate(traffic.lengths, start=1)
    )
