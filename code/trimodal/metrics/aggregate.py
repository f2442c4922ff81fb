"""Adds up measurements until they are published, in bounded memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trimodal.metrics.table import METRICS, Kind, Metric

MAX_SERIES = 64
"""Combinations of a metric's own dimensions; others are dropped and counted."""

DIGITS = 3
"""Significant digits that a value of a distribution keeps: at most half a percent of it is lost."""

SMALLEST, LARGEST = 1e-6, 1e9
"""Values of a distribution are moved into this range; smaller ones are 0. It bounds how many there are."""

Own = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """What was measured of one metric under one combination of its own dimensions.

    Attributes:
        metric: the metric.
        own: its own dimensions, sorted by name.
        values: of a distribution its distinct values, ascending; else the one sum or last value.
        counts: how often each was measured.
    """

    metric: Metric
    own: Own
    values: tuple[float, ...]
    counts: tuple[int, ...]


Snapshot = Sequence[Series]


class Adder(Protocol):
    """Takes measurements that are good."""

    def add(self, name: str, value: float, count: int, own: Own) -> None:
        """Takes `count` equal measurements."""


@dataclass(slots=True)
class _Bucket:
    kind: Kind
    counts: dict[float, int] = field(default_factory=dict)
    value: float = 0.0


class Aggregate:
    """Takes measurements of one interval; may be used from several threads; see `Recorder`."""

    def __init__(self, mirror: Adder | None = None) -> None:
        """Starts empty.

        Args:
            mirror: is given every measurement too, for totals since the start; or None.
        """
        self._mirror = mirror
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, Own], _Bucket] = {}
        self._series: dict[str, int] = {}
        self._dropped = 0

    def record(self, name: str, value: float = 1.0, /, **dimensions: str) -> None:
        """Takes one measurement; what cannot be taken is counted in `DroppedPoints`."""
        self.add(name, value, 1, tuple(sorted(dimensions.items())) if dimensions else ())

    def add(self, name: str, value: float, count: int, own: Own) -> None:
        """Takes `count` equal measurements."""
        with self._lock:
            bucket = self._buckets.get((name, own)) or self._new_bucket(name, own)
            if bucket is None or not math.isfinite(value):
                self._dropped += int(value) * count if name == "DroppedPoints" else count
                return
            if bucket.kind == "distribution":
                rounded = round_value(value)
                bucket.counts[rounded] = bucket.counts.get(rounded, 0) + count
            elif bucket.kind == "counter":
                bucket.value += value * count
            else:
                bucket.value = value
        if self._mirror is not None:
            self._mirror.add(name, value, count, own)

    def drop(self, count: int) -> None:
        """Counts measurements that were lost elsewhere."""
        with self._lock:
            self._dropped += count

    def drain(self) -> list[Series]:
        """Returns what was measured since the last call; gauges stay as they are."""
        with self._lock:
            buckets = self._buckets
            self._buckets = {key: _Bucket("gauge", value=b.value) for key, b in buckets.items() if b.kind == "gauge"}
            self._series = {}
            for name, _ in self._buckets:
                self._series[name] = self._series.get(name, 0) + 1
            dropped, self._dropped = self._dropped, 0
        series = [_to_series(METRICS[name], own, bucket) for (name, own), bucket in buckets.items()]
        if dropped:
            series.append(Series(METRICS["DroppedPoints"], (), (float(dropped),), (1,)))
        return series

    def _new_bucket(self, name: str, own: Own) -> _Bucket | None:
        """Makes room for a metric of the table under its own dimensions; None where there is none for it."""
        metric = METRICS.get(name)
        if metric is None or {key for key, _ in own} != set(metric.dimensions) or name == "DroppedPoints":
            return None
        if self._series.get(name, 0) == MAX_SERIES:
            return None
        self._series[name] = self._series.get(name, 0) + 1
        bucket = self._buckets[name, own] = _Bucket(metric.kind)
        return bucket


def round_value(value: float) -> float:
    """Rounds to `DIGITS` significant digits, within `LARGEST`; below `SMALLEST` it is 0."""
    size = abs(value)
    if size < SMALLEST:
        return 0.0
    if size >= LARGEST:
        return math.copysign(LARGEST, value)
    return round(value, DIGITS - 1 - math.floor(math.log10(size)))


def combine(series: Sequence[Series]) -> Series:
    """Joins series of one metric into one without own dimensions; of gauges the largest is kept."""
    metric = series[0].metric
    if metric.kind == "distribution":
        counts: dict[float, int] = {}
        for one in series:
            for value, count in zip(one.values, one.counts, strict=True):
                counts[value] = counts.get(value, 0) + count
        return _to_series(metric, (), _Bucket("distribution", counts))
    join: Callable[[Sequence[float]], float] = sum if metric.kind == "counter" else max
    return Series(metric, (), (float(join([one.values[0] for one in series])),), (1,))


def _to_series(metric: Metric, own: Own, bucket: _Bucket) -> Series:
    if metric.kind == "distribution":
        values = tuple(sorted(bucket.counts))
        return Series(metric, own, values, tuple(bucket.counts[value] for value in values))
    return Series(metric, own, (float(bucket.value),), (1,))
