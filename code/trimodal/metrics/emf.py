"""CloudWatch's embedded metric format: lines of JSON in the container's log, from which CloudWatch makes metrics.

Source of the form and its limits: "Specification: Embedded metric format" in the CloudWatch user guide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from trimodal.metrics.aggregate import Series, Snapshot, combine
from trimodal.metrics.table import dimension_sets

MAX_METRICS, MAX_VALUES = 100, 100
"""Metrics of a line, and values of a metric in it."""

LINE_VALUES = 400
"""Values of a line, of all its metrics: container engines cut what is longer than 16 KiB."""


class EmfSink:
    """Writes each publication as JSON lines; a line holds the metrics of one set of dimensions."""

    def __init__(self, write: Callable[[str], None], namespace: str, container: Mapping[str, str]) -> None:
        """Makes the sink.

        Args:
            write: writes a line, whole, into the container's log.
            namespace: of the metrics.
            container: the container's dimensions, read anew for each publication.
        """
        self._write = write
        self._namespace = namespace
        self._container = container

    def publish(self, snapshot: Snapshot, at: float) -> None:
        """Writes what was measured."""
        for dimensions, part in _lines(snapshot, self._container):
            self._write(self._line(dimensions, part, at))

    def close(self, seconds: float) -> None:
        """Does nothing: every line is out."""

    def _line(self, dimensions: Mapping[str, str], part: Mapping[str, Series], at: float) -> str:
        directive = {
            "Namespace": self._namespace,
            "Dimensions": [sorted(dimensions)],
            "Metrics": [{"Name": name, "Unit": series.metric.unit} for name, series in part.items()],
        }
        line: dict[str, Any] = {"_aws": {"Timestamp": int(at * 1000), "CloudWatchMetrics": [directive]}, **dimensions}
        for name, series in part.items():
            line[name] = (
                {"Values": series.values, "Counts": series.counts}
                if series.metric.kind == "distribution"
                else series.values[0]
            )
        return json.dumps(line, separators=(",", ":"), allow_nan=False)


def by_dimensions(snapshot: Snapshot, container: Mapping[str, str]) -> list[tuple[dict[str, str], list[Series]]]:
    """Sorts series by the dimensions under which they are published; equal metrics of one set are joined."""
    placed = [
        (tuple(sorted(dimensions.items())), series.metric.name, series)
        for series in snapshot
        for dimensions in dimension_sets(series.metric, container, dict(series.own))
    ]
    placed.sort(key=itemgetter(0, 1))
    result = []
    for dimensions, group in groupby(placed, key=itemgetter(0)):
        named = [(name, [item[2] for item in items]) for name, items in groupby(group, key=itemgetter(1))]
        joined = [series[0] if len(series) == 1 else combine(series) for _, series in named]
        result.append((dict(dimensions), joined))
    return result


def _lines(snapshot: Snapshot, container: Mapping[str, str]) -> Iterator[tuple[dict[str, str], dict[str, Series]]]:
    """Cuts what is published into lines: of too many values the rest stands in further lines."""
    for dimensions, group in by_dimensions(snapshot, container):
        pieces = [cut(series, MAX_VALUES) for series in group]
        for place in range(max(map(len, pieces))):
            part: dict[str, Series] = {}
            for piece in (piece[place] for piece in pieces if place < len(piece)):
                values = sum(len(one.values) for one in part.values()) + len(piece.values)
                if part and (len(part) == MAX_METRICS or values > LINE_VALUES):
                    yield dimensions, part
                    part = {}
                part[piece.metric.name] = piece
            yield dimensions, part


def cut(series: Series, most: int) -> list[Series]:
    """Cuts a series into parts of at most `most` values."""
    return [
        Series(series.metric, series.own, series.values[start : start + most], series.counts[start : start + most])
        for start in range(0, len(series.values), most)
    ]
