"""All measurements since the start, in the text that a Prometheus server reads."""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from trimodal.metrics.aggregate import Own
from trimodal.metrics.table import METRICS, Metric

_SUFFIXES = {"Milliseconds": "_milliseconds", "Seconds": "", "Bytes": "_bytes", "Percent": "_percent"}

_LATENCY = (1, 2.5, 5, 10, 25, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2500, 5000, 10_000, 30_000, 60_000)
_SHARE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_SIZE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_BOUNDS = {"Milliseconds": _LATENCY, "None": _SHARE, "Count": _SIZE}


@dataclass(slots=True)
class _Total:
    total: float = 0.0
    buckets: list[int] = field(default_factory=list)


class PrometheusPage:
    """Keeps totals and shows them; may be used from several threads."""

    def __init__(self, container: Mapping[str, str]) -> None:
        """Makes an empty page.

        Args:
            container: the container's dimensions, which become labels; read anew for each page.
        """
        self._container = container
        self._lock = threading.Lock()
        self._totals: dict[tuple[str, Own], _Total] = {}

    def add(self, name: str, value: float, count: int, own: Own) -> None:
        """Takes `count` equal measurements of a metric of the table."""
        metric = METRICS[name]
        with self._lock:
            total = self._totals.setdefault((name, own), _Total())
            if metric.kind == "gauge":
                total.total = value
                return
            total.total += value * count
            if metric.kind == "distribution":
                bounds = _BOUNDS[metric.unit]
                total.buckets = total.buckets or [0] * (len(bounds) + 1)
                total.buckets[bisect_left(bounds, value)] += count

    def render(self, others: Iterable[PrometheusPage] = ()) -> tuple[bytes, str]:
        """Returns the page, with what other pages of the container show, and its media type."""
        registry = CollectorRegistry()
        registry.register(_Joined([self, *others]))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Family]:
        """Yields what the page shows."""
        with self._lock:
            totals = {key: _Total(one.total, list(one.buckets)) for key, one in self._totals.items()}
        labels = dict(self._container)
        for name in dict.fromkeys(name for name, _ in totals):
            rows = {own: total for (which, own), total in totals.items() if which == name}
            yield _family(METRICS[name], labels, rows)


@dataclass(slots=True, eq=False)  # a registry wants to hash it
class _Joined:
    """Several pages as one: a metric must not begin twice."""

    pages: Sequence[PrometheusPage]

    def collect(self) -> Iterator[Family]:
        """Yields what the pages show; called by `prometheus_client`."""
        families: dict[str, Family] = {}
        for family in (family for page in self.pages for family in page.collect()):
            if (known := families.setdefault(family.name, family)) is not family:
                known.samples += family.samples
        yield from families.values()


def _family(metric: Metric, container: Mapping[str, str], rows: Mapping[Own, _Total]) -> Family:
    names = [_snake(name) for name in (*container, *sorted(metric.dimensions))]
    title = f"trimodal_{_snake(metric.name)}{_SUFFIXES.get(metric.unit, '')}"
    values = {(*container.values(), *(value for _, value in own)): total for own, total in rows.items()}
    if metric.kind == "counter":
        counter = CounterMetricFamily(title, metric.help, labels=names)
        for labels, total in values.items():
            counter.add_metric(labels, total.total)
        return counter
    if metric.kind == "gauge":
        gauge = GaugeMetricFamily(title, metric.help, labels=names)
        for labels, total in values.items():
            gauge.add_metric(labels, total.total)
        return gauge
    histogram = HistogramMetricFamily(title, metric.help, labels=names)
    for labels, total in values.items():
        histogram.add_metric(labels, _cumulative(metric, total), total.total)
    return histogram


def _cumulative(metric: Metric, total: _Total) -> list[tuple[str, float]]:
    seen = 0
    result = []
    for bound, count in zip((*map(float, _BOUNDS[metric.unit]), "+Inf"), total.buckets, strict=True):
        seen += count
        result.append((str(bound), float(seen)))
    return result


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
