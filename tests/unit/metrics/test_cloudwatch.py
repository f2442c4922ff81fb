"""CloudWatch over real HTTP: moto's server, and servers that stall, throttle, refuse, or are not there."""

from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto.server import ThreadedMotoServer

from trimodal.metrics import cloudwatch
from trimodal.metrics.aggregate import Aggregate
from trimodal.metrics.cloudwatch import MAX_WAITING, CloudWatchSink

CONTAINER = {"Model": "demo", "Precision": "fp32", "EndpointName": "returns", "VariantName": "All"}
ENDPOINT = [{"Name": "EndpointName", "Value": "returns"}, {"Name": "VariantName", "Value": "All"}]


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def moto(monkeypatch):
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield
    server.stop()


@pytest.fixture
def answering(monkeypatch):
    """Starts a server that answers every call with a status and an AWS error code, and counts the calls."""
    servers = []

    def start(status, code):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.server.calls += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                body = f'{{"__type": "{code}", "message": "no"}}'.encode()
                self.send_response(status)
                self.send_header("x-amzn-query-error", f"{code};Sender")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.calls = 0
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def snapshot(latencies=(5, 5, 7)):
    aggregate = Aggregate()
    for value in latencies:
        aggregate.record("Latency", value)
        aggregate.record("Requests")
    return aggregate.drain()


def dropped(aggregate):
    return sum(one.values[0] for one in aggregate.drain() if one.metric.name == "DroppedPoints")


@pytest.mark.usefixtures("moto")
def test_the_figures_arrive():
    latencies = [place / 3 + 1 for place in range(400)]  # more values than one metric of a call may have
    sink = CloudWatchSink("Returns", CONTAINER, Aggregate())
    now = time.time()
    sink.publish(snapshot(latencies), now)
    sink.close(30)

    client = boto3.client("cloudwatch")
    span = {"StartTime": datetime.fromtimestamp(now, UTC) - timedelta(hours=1), "Period": 7200}
    # moto joins every metric whose dimensions include those that are asked for
    detailed = [*ENDPOINT, {"Name": "Model", "Value": "demo"}, {"Name": "Precision", "Value": "fp32"}]
    for name, dimensions, expected in (("Latency", detailed, sum(latencies)), ("Requests", ENDPOINT, 400)):
        (point,) = client.get_metric_statistics(
            Namespace="Returns", MetricName=name, Dimensions=dimensions, Statistics=["Sum"],
            EndTime=datetime.fromtimestamp(now, UTC) + timedelta(hours=1), **span,
        )["Datapoints"]  # fmt: skip
        assert point["Sum"] == pytest.approx(expected, rel=0.005)
    metrics = client.list_metrics(Namespace="Returns", MetricName="Latency")["Metrics"]
    names = {tuple(sorted(item["Name"] for item in metric["Dimensions"])) for metric in metrics}
    assert names == {("EndpointName", "VariantName"), ("EndpointName", "Model", "Precision", "VariantName")}


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidClientTokenId"])
def test_who_may_not_is_told_once_and_never_asks_again(answering, code, caplog):
    server = answering(403, code)
    aggregate = Aggregate()
    sink = CloudWatchSink("Returns", CONTAINER, aggregate)
    sink.publish(snapshot(), time.time())
    eventually(lambda: sink._given_up)
    for _ in range(20):
        sink.publish(snapshot(), time.time())
    sink.close(30)

    assert server.calls == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "METRICS_SINKS" in caplog.text
    assert dropped(aggregate) > 0


def test_nobody_without_credentials(monkeypatch, tmp_path, caplog):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    sink = CloudWatchSink("Returns", CONTAINER, Aggregate())
    sink.publish(snapshot(), time.time())
    eventually(lambda: sink._given_up)
    sink.close(30)

    assert [record.cause for record in caplog.records] == ["NoCredentialsError"]


def test_throttling_costs_measurements_which_are_counted(answering, caplog, monkeypatch):
    monkeypatch.setattr(cloudwatch, "PATIENCE_SECONDS", 0.01)
    server = answering(400, "Throttling")
    aggregate = Aggregate()
    sink = CloudWatchSink("Returns", CONTAINER, aggregate)
    for _ in range(3):
        sink.publish(snapshot(), time.time())
    eventually(lambda: len(caplog.records) == 3)
    sink.close(30)

    assert server.calls >= 3
    assert not sink._given_up
    assert {record.cause for record in caplog.records} == {"Throttling"}
    assert dropped(aggregate) == 3 * 2 * 3 + 3  # each latency under two sets of dimensions, and one sum


@pytest.mark.parametrize("kind", ["stalled", "dead"])
def test_a_cloudwatch_that_does_not_answer_blocks_nothing(monkeypatch, kind):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, and never answers
        port = deaf.getsockname()[1]
        if kind == "dead":
            deaf.close()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        aggregate = Aggregate()
        sink = CloudWatchSink("Returns", CONTAINER, aggregate)
        for _ in range(200):  # each returns at once, whatever CloudWatch does
            sink.publish(snapshot(), time.time())
        assert len(sink._waiting) <= MAX_WAITING
        assert dropped(aggregate) >= (200 - MAX_WAITING - 2) * 7  # three latencies twice, and a sum
        sink.close(0.1)
    sink._thread.join(60)  # it goes on for what waits, as a daemon
    assert not sink._thread.is_alive()


def test_a_configuration_that_cannot_be_used_is_told(monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    sink = CloudWatchSink("Returns", CONTAINER, Aggregate())
    sink.publish(snapshot(), time.time())
    eventually(lambda: sink._given_up)
    sink.close(30)

    assert [record.cause for record in caplog.records] == ["ValueError"]


def test_a_call_holds_what_is_allowed():
    data = [{"Values": [1] * 150}] * 600
    assert cloudwatch._fitting(data) == 66  # 9,900 values
    assert cloudwatch._fitting([{"Values": [1]}] * 600) == 500
    assert cloudwatch._fitting(data[:1]) == 1
