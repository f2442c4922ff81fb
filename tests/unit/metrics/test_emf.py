from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.emf import EmfSink
from trimodal.metrics.table import METRICS

ENDPOINT = {"Model": "demo", "Precision": "fp32", "EndpointName": "returns", "VariantName": "All"}
PLAIN = {"Model": "demo", "Precision": "fp32"}

points = st.lists(
    st.tuples(st.sampled_from(sorted(METRICS)), st.floats(0, 1e7), st.sampled_from(["a", "b", 'ü\n"{'])), max_size=60
)


def written(aggregate, container=ENDPOINT):
    lines = []
    EmfSink(lines.append, "Returns", container).publish(aggregate.drain(), 1_700_000_000.5)
    return [check(line) for line in lines]


def check(line):
    """Asserts the specification of the embedded metric format; returns the line as an object."""
    assert len(line.encode()) <= 16_384  # container engines cut longer lines; CloudWatch takes a megabyte
    assert "\n" not in line
    document = json.loads(line)
    assert document["_aws"]["Timestamp"] == 1_700_000_000_500
    (directive,) = document["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Returns"
    (dimensions,) = directive["Dimensions"]
    assert len(dimensions) <= 30
    assert all(isinstance(document[name], str) and 0 < len(document[name]) <= 1024 for name in dimensions)
    assert 0 < len(directive["Metrics"]) <= 100
    for metric in directive["Metrics"]:
        value = document[metric["Name"]]
        assert metric["Unit"] == METRICS[metric["Name"]].unit
        if isinstance(value, dict):
            assert 0 < len(value["Values"]) == len(value["Counts"]) <= 100
        else:
            assert isinstance(value, float)
    assert document.keys() == {"_aws", *dimensions, *(metric["Name"] for metric in directive["Metrics"])}
    return document


def names(document):
    return [metric["Name"] for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]]


@given(points, st.sampled_from([ENDPOINT, PLAIN]))
def test_every_line_is_of_the_form_and_nothing_is_lost(points, container):
    aggregate, expected = Aggregate(), Counter()
    for name, value, own in points:
        metric = METRICS[name]
        aggregate.record(name, value, **dict.fromkeys(metric.dimensions, own))
        if metric.kind == "distribution" and (metric.joined or container is PLAIN):
            expected[name] += 1
    found = Counter()
    for document in written(aggregate, container):
        dimensions = document["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0]
        for name in names(document):
            wanted = {"EndpointName", "VariantName"} if container is ENDPOINT else {*PLAIN, *METRICS[name].dimensions}
            if METRICS[name].kind == "distribution" and set(dimensions) == wanted:
                found[name] += sum(document[name]["Counts"])

    assert found == expected


def test_many_values_take_many_lines():
    aggregate = Aggregate()
    for value in range(100_000):
        aggregate.record("Latency", value / 7)
    documents = [document for document in written(aggregate) if "Model" not in document]

    assert len(documents) > 5
    assert sum(sum(document["Latency"]["Counts"]) for document in documents) == 100_000


def test_alarms_find_their_metrics_under_the_endpoint_alone():
    aggregate = Aggregate()
    aggregate.record("Errors", Code="422")
    aggregate.record("Errors", Code="500")
    aggregate.record("StageLatency", 3, Stage="decode")
    documents = {tuple(d["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0]): d for d in written(aggregate)}

    assert documents[("EndpointName", "VariantName")]["Errors"] == 2
    assert {d["Code"]: d["Errors"] for d in written(_errors()) if "Code" in d} == {"422": 1, "500": 1}
    assert documents[("EndpointName", "Stage", "VariantName")]["StageLatency"] == {"Values": [3], "Counts": [1]}


def _errors():
    aggregate = Aggregate()
    for code in ("422", "500"):
        aggregate.record("Errors", Code=code)
    return aggregate
