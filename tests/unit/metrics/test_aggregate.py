from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.metrics.aggregate import LARGEST, MAX_SERIES, Aggregate, combine, round_value

numbers = st.floats(1e-5, 1e8)


def only(aggregate, name="Latency"):
    (series,) = [series for series in aggregate.drain() if series.metric.name == name]
    return series


@given(st.lists(numbers, min_size=1, max_size=300))
def test_nothing_is_lost_and_percentiles_stay(values):
    aggregate = Aggregate()
    for value in values:
        aggregate.record("Latency", value)
    series = only(aggregate)

    assert sum(series.counts) == len(values)
    assert list(series.values) == sorted(set(series.values))
    back = np.repeat(series.values, series.counts)
    for quantile in (0.5, 0.95, 0.99):
        exact = np.quantile(values, quantile, method="inverted_cdf")
        assert np.quantile(back, quantile, method="inverted_cdf") == pytest.approx(exact, rel=0.0051)
    assert aggregate.drain() == []


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_value_keeps_three_digits(value):
    rounded = round_value(value)

    assert abs(rounded) <= LARGEST
    if 1e-6 <= abs(value) < LARGEST:
        assert rounded == pytest.approx(value, rel=0.0051)
        assert math.copysign(1, rounded) == math.copysign(1, value)


def test_counters_add_up_and_gauges_stay():
    aggregate = Aggregate()
    for value in (1, 2, 3.5):
        aggregate.record("Records", value)
        aggregate.record("FallbackLevel", value)

    first = {series.metric.name: series.values for series in aggregate.drain()}
    second = {series.metric.name: series.values for series in aggregate.drain()}

    assert first == {"Records": (6.5,), "FallbackLevel": (3.5,)}
    assert second == {"FallbackLevel": (3.5,)}


@pytest.mark.parametrize(
    ("name", "value", "dimensions"),
    [
        ("Nothing", 1, {}), ("Latency", math.nan, {}), ("Latency", math.inf, {}), ("Latency", 1, {"Stage": "x"}),
        ("StageLatency", 1, {}), ("StageLatency", 1, {"Stage": "x", "Code": "1"}),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_counted(name, value, dimensions):
    aggregate = Aggregate()
    aggregate.record(name, value, **dimensions)

    assert only(aggregate, "DroppedPoints").values == (1,)


def test_dimensions_are_bounded():
    aggregate = Aggregate()
    for code in range(MAX_SERIES + 10):
        aggregate.record("Errors", Code=str(code))
    series = aggregate.drain()

    assert len(series) == MAX_SERIES + 1
    assert series[-1].values == (10,)
    aggregate.record("Errors", Code="later")  # the next interval has room again
    assert [one.own for one in aggregate.drain()] == [(("Code", "later"),)]


def test_threads_lose_nothing():
    aggregate = Aggregate()

    def work():
        for value in range(2000):
            aggregate.record("Latency", value)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        seen += sum(sum(series.counts) for series in aggregate.drain())
    assert seen + sum(sum(series.counts) for series in aggregate.drain()) == 16_000


def test_series_of_one_metric_are_joined():
    aggregate = Aggregate()
    for stage, value in (("decode", 1), ("encode", 1), ("encode", 2)):
        aggregate.record("StageLatency", value, Stage=stage)
    joined = combine(aggregate.drain())

    assert (joined.own, joined.values, joined.counts) == ((), (1, 2), (2, 1))
