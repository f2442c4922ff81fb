from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.prometheus import PrometheusPage
from trimodal.metrics.table import METRICS

CONTAINER = {"Model": 'de"mo\n', "Precision": "fp32"}


def families(page):
    body, media = page.render()
    assert media.startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def test_totals_grow_and_are_not_drained():
    page = PrometheusPage(CONTAINER)
    aggregate = Aggregate(page)
    for value in (0.5, 3, 3, 70_000):
        aggregate.record("Latency", value)
        aggregate.drain()
        aggregate.record("Requests")
    aggregate.record("Errors", Code="invalid_record")
    aggregate.record("FallbackLevel", 2)
    aggregate.record("FallbackLevel", 1)

    found = families(page)
    latency = {tuple(s.labels.items())[-1] if "le" in s.labels else s.name: s.value
               for s in found["trimodal_latency_milliseconds"].samples}  # fmt: skip
    buckets = {s.labels["le"]: s.value for s in found["trimodal_latency_milliseconds"].samples if "le" in s.labels}
    assert latency["trimodal_latency_milliseconds_count"] == 4
    assert latency["trimodal_latency_milliseconds_sum"] == 70_006.5
    assert (buckets["1.0"], buckets["5.0"], buckets["60000.0"], buckets["+Inf"]) == (1, 3, 3, 4)
    (level,) = found["trimodal_fallback_level"].samples
    assert level.value == 1
    assert level.labels == {"model": 'de"mo\n', "precision": "fp32"}
    (errors,) = found["trimodal_errors"].samples
    assert (errors.value, errors.labels["code"]) == (1, "invalid_record")


def test_every_metric_of_the_table_can_be_shown():
    page = PrometheusPage(CONTAINER)
    aggregate = Aggregate(page)
    for name, metric in METRICS.items():
        aggregate.record(name, 1, **dict.fromkeys(metric.dimensions, "x"))

    assert len(families(page)) == len(METRICS) - 1  # what was dropped is no measurement of its own


def test_nothing_measured_is_an_empty_page():
    assert families(PrometheusPage(CONTAINER)) == {}


def test_pages_of_several_models_are_one():
    page, other = PrometheusPage(CONTAINER), PrometheusPage({"Model": "other", "Precision": "int8"})
    Aggregate(page).record("Requests")
    for name in ("Requests", "Records"):
        Aggregate(other).record(name, 2)

    body, _ = page.render([other])
    assert body.count(b"# TYPE trimodal_requests_total counter") == 1
    found = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert found.keys() == {"trimodal_requests", "trimodal_records"}
    totals = {sample.labels["model"]: sample.value for sample in found["trimodal_requests"].samples}
    assert totals == {CONTAINER["Model"]: 1, "other": 2}
