"""Times variants side by side: every request goes through each of them in turn, round after round."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from trimodal.bench.traffic import Traffic
from trimodal.bench.variants import PLAIN, Scorer, Variant
from trimodal.errors import OptimizationError, TrimodalError
from trimodal.loading.compare import TOLERANCES, Comparison, compare
from trimodal.loading.samples import Samples
from trimodal.records import Features, FloatArray
from trimodal.serving.memory import EncoderCache
from trimodal.serving.split import SplitRunner

logger = logging.getLogger(__name__)

CONSTANT_REQUESTS = 2
"""Requests of each kind on which a variant is timed whose every request costs the same."""

SMALL_GROUP = 3
"""Variants beside `plain` that are open at once where all of them would take too much memory."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one kind of requests took.

    Attributes:
        milliseconds: of one request: the mean over the requests of each one's median over the rounds.
        low: of the fastest round.
        high: of the slowest round.
    """

    milliseconds: float
    low: float
    high: float

    @property
    def per_second(self) -> float:
        """Requests a second, one after another."""
        return 1000 / self.milliseconds

    def scaled(self, factor: float) -> Timing:
        """Returns it multiplied."""
        return Timing(self.milliseconds * factor, self.low * factor, self.high * factor)


@dataclass(slots=True)
class Measured:
    """One variant with what was measured.

    Attributes:
        variant: it.
        comparison: its scores of the samples against those of `plain`.
        timed_largest: largest difference of a probability on the timed requests.
        wrong: why its scores are wrong, or None.
        open_seconds: how long opening took.
        times: traffic to what it took.
    """

    variant: Variant
    comparison: Comparison
    timed_largest: float
    wrong: str | None
    open_seconds: float
    times: dict[str, Timing] = field(default_factory=dict)


@dataclass(slots=True)
class Bench:
    """Times variants against `plain`, which is open beside each group of them.

    Attributes:
        samples: records that decide whether scores are right.
        traffics: requests that are timed.
        rounds: passes over the requests.
        skipped: variant to why it was not timed; grows.
    """

    samples: Samples
    traffics: Sequence[Traffic]
    rounds: int
    skipped: dict[str, str]
    reference: list[FloatArray] = field(default_factory=list)

    def run(self, variants: Sequence[Variant], group_size: int) -> list[Measured]:
        """Times the variants, `plain` with each group of so many others.

        Where there are several groups, each one's times are scaled by the time that `plain` took beside it.

        Raises:
            OptimizationError: `plain` is not among them, or cannot be opened or run.
        """
        plain = next((variant for variant in variants if variant.name == PLAIN), None)
        if plain is None:
            raise OptimizationError("the plain session is not among the variants; there is nothing to compare with")
        others = [variant for variant in variants if variant is not plain]
        groups = [self._group([plain, *group]) for group in _cut(others, group_size)]
        beside = {
            traffic.name: [group[0].times[traffic.name].milliseconds for group in groups] for traffic in self.traffics
        }
        yardstick = {name: median(times) for name, times in beside.items()}
        result = groups[0][:1]
        for place, group in enumerate(groups):
            for one in group if place == 0 else group[1:]:
                one.times = {
                    name: timing.scaled(yardstick[name] / beside[name][place]) for name, timing in one.times.items()
                }
            result += group[1:]
        return result

    def _group(self, variants: Sequence[Variant]) -> list[Measured]:
        runners: list[tuple[Measured, Scorer]] = []
        for variant in variants:
            tell(f"opening and verifying {variant.name}")
            try:
                runners.append(self._open(variant))
            except TrimodalError as err:
                if variant.name == PLAIN:
                    raise OptimizationError(f"the plain session cannot be measured: {err}") from err
                self.skipped[variant.name] = str(err)
            except Exception as err:  # a peer's library raises what it likes; the others are measured all the same
                if variant.name == PLAIN:
                    raise
                logger.warning("a variant failed", extra={"variant": variant.name, "cause": type(err).__name__})
                self.skipped[variant.name] = f"{type(err).__name__} while it was opened or run"
        for traffic in self.traffics:
            tell(f"timing {traffic.name}: {', '.join(one.variant.name for one, _ in runners)}")
            for (one, _), timing in zip(runners, self._time(traffic, runners), strict=True):
                one.times[traffic.name] = timing
        measured = [one for one, _ in runners]
        del runners
        gc.collect()
        return measured

    def _open(self, variant: Variant) -> tuple[Measured, Scorer]:
        """Opens a variant, runs everything that will be timed once, and compares its scores."""
        started = time.perf_counter()
        runner = variant.open()
        opened = time.perf_counter() - started
        batches = [self.samples.features, *(self._timed(variant, traffic) for traffic in self.traffics)]
        scores = [np.concatenate([runner.run([item]) for item in batch]) for batch in batches]
        if variant.name == PLAIN:
            self.reference = scores
        comparison = compare(scores[0], self.reference[0], variant.precision, self.samples.labels)
        pairs = [(own, right[: len(own)]) for own, right in zip(scores[1:], self.reference[1:], strict=True)]
        largest, timed = _timed_difference(pairs, variant.precision)
        return Measured(variant, comparison, largest, comparison.refusal or timed, opened), runner

    def _timed(self, variant: Variant, traffic: Traffic) -> Sequence[Features]:
        return traffic.requests[:CONSTANT_REQUESTS] if variant.constant else traffic.requests

    def _time(self, traffic: Traffic, runners: Sequence[tuple[Measured, Scorer]]) -> list[Timing]:
        seconds = np.full((len(runners), self.rounds, len(traffic.requests)), np.nan)
        for turn in range(self.rounds):
            for index, item in enumerate(traffic.requests):
                for which, (one, runner) in enumerate(runners):
                    if index < len(self._timed(one.variant, traffic)):
                        started = time.perf_counter()
                        runner.run([item])
                        seconds[which, turn, index] = time.perf_counter() - started
        return [summarize(own[:, ~np.isnan(own[0])]) for own in seconds]


def summarize(seconds: NDArray[np.float64]) -> Timing:
    """Sums up seconds, float64 `[rounds, requests]`."""
    rounds = seconds.mean(axis=1) * 1000
    return Timing(float(np.median(seconds, axis=0).mean() * 1000), float(rounds.min()), float(rounds.max()))


def _timed_difference(pairs: Sequence[tuple[FloatArray, FloatArray]], precision: str) -> tuple[float, str | None]:
    """Returns the largest difference on the timed requests, and why it is too large or None.

    Their labels do not count: few and made up, they are no measure of agreement; the samples are.
    """
    if any(own.shape != right.shape or not np.isfinite(own).all() for own, right in pairs):
        return float("inf"), "scores of timed requests are missing or not finite"
    largest = max((float(np.abs(own - right).max()) for own, right in pairs), default=0.0)
    limit = TOLERANCES[precision].largest
    wrong = f"on the timed requests a probability differs by {largest:.2g}, more than {limit:g}"
    return largest, wrong if largest > limit else None


def time_cache(runner: SplitRunner, traffic: Traffic, rounds: int) -> tuple[Timing, Timing]:
    """Times the encoder cache on requests whose texts come again: (with it, without).

    Each round begins with an empty cache, and both share the sessions.
    """
    seconds = np.zeros((2, rounds, len(traffic.requests)))
    for turn in range(rounds + 1):
        pair = (replace(runner, cache=EncoderCache(1024)), replace(runner, cache=EncoderCache(0)))
        for index, item in enumerate(traffic.requests):
            for which, one in enumerate(pair):
                started = time.perf_counter()
                one.run([item])
                seconds[which, turn - 1, index] = time.perf_counter() - started  # the first turn warms up
    return summarize(seconds[0]), summarize(seconds[1])


def _cut(variants: Sequence[Variant], size: int) -> Iterator[Sequence[Variant]]:
    yield from (variants[start : start + size] for start in range(0, max(len(variants), 1), size))


def group_size(model_bytes: int, variants: int, memory: int) -> int:
    """Chooses how many variants are open beside `plain`: all where they fit into half the memory and 12 GiB.

    A session holds about two and a half times its graph's bytes, packed weights and buffers included.
    """
    room = min(12 << 30, memory // 2)
    return max(1, variants) if (variants + 1) * 5 * model_bytes // 2 <= room else SMALL_GROUP


def tell(text: str) -> None:
    """Says on stderr what is being done."""
    sys.stderr.write(f"trimodal bench: {text}\n")
    sys.stderr.flush()
