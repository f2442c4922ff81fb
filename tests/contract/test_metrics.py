"""What a running container measures of itself, seen in all three places where it goes."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from moto.server import ThreadedMotoServer
from prometheus_client.parser import text_string_to_metric_families

from trimodal.metrics.table import METRICS

ENDPOINT = {"EndpointName": "returns", "VariantName": "B"}
GOOD, BAD = 180, 20


@pytest.fixture(scope="module")
def aws():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }  # fmt: skip
    server.stop()


@pytest.fixture
def namespace(kind, request):
    """One for each test and server: moto keeps everything."""
    return re.sub(r"[^a-zA-Z0-9-]", "_", f"{kind}-{request.node.name}")


@pytest.fixture
def measuring(start, aws, namespace):
    """Starts servers that publish everywhere, often."""

    def run(model_dir, **environ):
        names = {"METRICS_SINKS": "emf,cloudwatch,prometheus", "METRICS_INTERVAL_SECONDS": "1"}
        return start(
            model_dir, **names, ENDPOINT_NAME=ENDPOINT["EndpointName"], VARIANT_NAME="B", METRICS_NAMESPACE=namespace,
            **aws, **environ,
        )  # fmt: skip

    return run


def emf(server):
    """The log's metric lines, after the check that all of the log is JSON and they are of their form."""
    lines = [json.loads(line) for line in server.log_text.splitlines()]
    found = [line for line in lines if "_aws" in line]
    for line in found:
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        (dimensions,) = directive["Dimensions"]
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert line.keys() == {"_aws", *dimensions, *names}
        assert len(names) <= 100
        assert len(dimensions) <= 30
        assert len(json.dumps(line)) < 1_000_000
        assert all(len(line[name]["Values"]) <= 100 for name in names if isinstance(line[name], dict))
    return found


def joined(lines):
    """Sums of what stands under the endpoint's dimensions alone; of a distribution its counts, of a gauge its last."""
    sums = Counter()
    for line in lines:
        if line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [sorted(ENDPOINT)]:
            for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]:
                value = line[metric["Name"]]
                if METRICS[metric["Name"]].kind == "gauge":
                    sums[metric["Name"]] = value
                else:
                    sums[metric["Name"]] += sum(value["Counts"]) if isinstance(value, dict) else value
    return sums


def scraped(server):
    page = server.get("/metrics")
    assert page.status == 200
    families = text_string_to_metric_families(page.body.decode())
    return {sample.name: sample for family in families for sample in family.samples if "le" not in sample.labels}


def moto_sums(aws, namespace, name):
    client = boto3.client("cloudwatch", region_name="eu-west-1", endpoint_url=aws["AWS_ENDPOINT_URL"],
                          aws_access_key_id="test", aws_secret_access_key="test")  # fmt: skip
    now = datetime.now(UTC)
    points = client.get_metric_statistics(
        Namespace=namespace, MetricName=name, Dimensions=[{"Name": k, "Value": v} for k, v in ENDPOINT.items()],
        StartTime=now - timedelta(hours=1), EndTime=now + timedelta(hours=1), Period=7200,
        Statistics=["Sum", "SampleCount", "Maximum"],
    )["Datapoints"]  # fmt: skip
    return points[0] if points else {}


def test_every_request_is_counted_in_all_three_places(measuring, model_dir, golden, aws, namespace):
    server = measuring(model_dir)
    for place in range(GOOD):
        assert server.predict(golden[place % len(golden)]["record"]).status == 200
    for place in range(BAD):
        assert server.post("{" if place % 2 else "[]", "application/json").status == 400
    deadline = time.monotonic() + 60  # what a worker measured is sent with its answer, and read soon after
    while (page := scraped(server)).get("trimodal_records_total", [0, {}, 0])[2] < GOOD or (
        "trimodal_fallback_level" not in page  # which each publication tells
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.terminate() == 0

    sums = joined(emf(server))
    assert (sums["Requests"], sums["Latency"], sums["Errors"]) == (GOOD + BAD, GOOD + BAD, BAD)
    assert (sums["Records"], sums["Score"], sums["FallbackLevel"]) == (GOOD, GOOD, 1)
    assert sums["QueueTime"] == GOOD + BAD
    assert sums["EncoderCacheLookups"] >= 2 * GOOD
    assert sums["EncoderCacheHits"] > 0
    assert sums["ColdStartSeconds"] > 0
    assert sums["DroppedPoints"] == 0
    codes = Counter()
    for line in emf(server):
        if "Code" in line:
            codes[line["Code"]] += line["Errors"]
    assert codes == {"malformed_body": BAD}
    stages = {line["Stage"] for line in emf(server) if "Stage" in line}
    assert stages == {"decode", "tokenize", "inference", "encode"}

    assert page["trimodal_requests_total"].value == page["trimodal_latency_milliseconds_count"].value == GOOD + BAD
    assert page["trimodal_fallback_level"].value == 1
    assert moto_sums(aws, namespace, "Requests")["Sum"] == GOOD + BAD
    assert moto_sums(aws, namespace, "Score")["SampleCount"] == GOOD
    assert moto_sums(aws, namespace, "FallbackLevel")["Maximum"] == 1


FAULTS = {
    2: (
        "if 'trimodal.loading.optimize' in ' '.join(sys.orig_argv):\n"
        "    import trimodal.loading.build as m\n"
        "    def fail(*a, **k): raise ZeroDivisionError\n"
        "    m._stock = m.rebuild_encoder = fail\n"
    ),
    3: (
        "if 'trimodal.loading.optimize' in ' '.join(sys.orig_argv):\n"
        "    import trimodal.loading.load as m\n"
        "    from trimodal.errors import ArtifactError\n"
        "    right = m.open_model\n"
        "    def open_model(artifacts, pad, tuning=None):\n"
        "        if tuning is not None: raise ArtifactError('no such options')\n"
        "        return right(artifacts, pad)\n"
        "    m.open_model = open_model\n"
    ),
}


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_lower_level_shows_everywhere(measuring, model_dir, tmp_path, aws, *, namespace, level):
    path = tmp_path / "model"
    shutil.copytree(model_dir, path, ignore=shutil.ignore_patterns("optimized"))
    environ = {"OPTIMIZED_MODEL_DIR": str(tmp_path / "cache")}
    if level in FAULTS:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "sitecustomize.py").write_text(f"import sys\n{FAULTS[level]}")
        environ["PYTHONPATH"] = str(tmp_path / "code")
    else:
        (path / "model.onnx").write_bytes(b"torn")
    server = measuring(path, **environ)
    deadline = time.monotonic() + 60
    while scraped(server).get("trimodal_fallback_level") is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    page = scraped(server)
    assert server.terminate() == 0

    assert page["trimodal_fallback_level"].value == level
    lines = emf(server)
    assert joined(lines)["FallbackLevel"] == level
    failures = {line["Phase"]: line["Cause"] for line in lines if "Cause" in line}
    assert failures
    assert "/" not in "".join(failures.values())
    assert moto_sums(aws, namespace, "FallbackLevel")["Maximum"] >= level


def test_no_metrics_where_none_are_asked_for(start, model_dir, golden):
    server = start(model_dir, METRICS_SINKS="none")
    assert server.predict(golden[0]["record"]).status == 200

    assert server.get("/metrics").status == 404
    assert server.terminate() == 0
    assert "_aws" not in server.log_text


def test_a_cloudwatch_that_is_not_there_stops_nothing(start, model_dir, golden):
    server = start(
        model_dir, METRICS_SINKS="cloudwatch", METRICS_INTERVAL_SECONDS="1", AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="eu-west-1",
    )  # fmt: skip
    for place in range(20):
        assert server.predict(golden[place]["record"]).status == 200

    assert server.terminate() == 0
