from __future__ import annotations

from pathlib import Path

import pytest

from trimodal.metrics.table import METRICS, dimension_sets, markdown

README = Path(__file__).parents[3] / "README.md"
UNITS = {"Milliseconds", "Seconds", "Bytes", "Percent", "Count", "None"}
ENDPOINT = {"EndpointName": "returns", "VariantName": "B"}
MODEL = {"Model": "demo", "Precision": "int8"}


def test_the_readme_has_the_table():
    assert markdown() in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", METRICS.values(), ids=str)
def test_a_metric_is_described(metric):
    assert metric.unit in UNITS
    assert metric.help
    assert "\n" not in metric.help
    assert len(metric.dimensions) <= 2


def test_alarms_can_name_everything_but_the_stages():
    for metric in METRICS.values():
        own = dict.fromkeys(metric.dimensions, "x")
        sets = dimension_sets(metric, ENDPOINT | MODEL, own)
        assert (ENDPOINT in sets) == (metric.name != "StageLatency")
        assert (ENDPOINT | own in sets) == (bool(own) or metric.name != "StageLatency")
        assert (ENDPOINT | MODEL in sets) == metric.detailed
        assert dimension_sets(metric, MODEL, own) == [MODEL | own]
