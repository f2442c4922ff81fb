"""Faults of what a running server stands on: processes, memory, clock, connections, file descriptors, CloudWatch."""

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress

import psutil
import pytest

DAY = 86_400

HANDLER = """
import time
def predict_fn(data, model):
    order = str(data.rows[0]["order_id"])
    if order == "hang":
        time.sleep(600)
    return model.predict(data)
"""

CLOCK = """
import time
from pathlib import Path
right, jump = time.time, Path({jump!r})
time.time = lambda: right() + float(jump.read_text())
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.fixture(scope="module")
def record(golden):
    return golden[0]["record"]


@pytest.fixture(scope="module")
def model(model_dir, tmp_path_factory):
    """A model directory whose handler hangs where a record's id says so."""
    copy = shutil.copytree(model_dir, tmp_path_factory.mktemp("faulty") / "model")
    (copy / "code").mkdir()
    (copy / "code" / "inference.py").write_text(HANDLER)
    return copy


@pytest.fixture
def injected(tmp_path):
    """Runs lines in every Python process of a server before it starts; returns the environment that brings them."""

    def install(lines):
        (tmp_path / "injected").mkdir()
        (tmp_path / "injected" / "sitecustomize.py").write_text(lines)
        return {"PYTHONPATH": str(tmp_path / "injected")}

    return install


@pytest.fixture(autouse=True, scope="module")
def _many_descriptors():
    """The servers of this module inherit what it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def pings(server):
    try:
        return server.get("/ping").status == 200
    except OSError:
        return False


def right(server, golden):
    answer = server.predict(golden[0]["record"])
    return answer.status == 200 and answer.scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)


def taker(server):
    """The process that takes connections: the serving one, or with multi-model-server the first."""
    for pid, _ in server.descendants():
        with suppress(psutil.Error):
            if "trimodal.servers.single" in psutil.Process(pid).cmdline():
                return pid
    return server.process.pid


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def request(body, path="/invocations"):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def status_of(connection):
    """Reads one answer; 0 where the connection is closed without one."""
    received = b""
    try:
        while b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            if not piece:
                return 0
            received += piece
        return int(received.split()[1])
    except ConnectionError:
        return 0


def test_killed_processes_are_replaced(start, golden):
    server = start()
    for _ in range(2):
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda before=before: not set(before) & set(server.workers()))
        wait_for(lambda: pings(server) and right(server, golden))
    assert server.terminate() == 0
    assert "Traceback" not in server.log_text


def test_inference_that_hangs_ends_in_a_new_process(start, model, golden, record):
    server = start(model, WATCHDOG_SECONDS="2", REQUEST_TIMEOUT_SECONDS="1", SAGEMAKER_MODEL_SERVER_WORKERS="1")
    before = server.workers()
    answer = server.predict({**record, "order_id": "hang"})
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    wait_for(lambda: not set(before) & set(server.workers()))
    wait_for(lambda: pings(server) and right(server, golden))
    assert server.terminate() == 0
    assert "in predict_fn" in server.log_text or "did not come back" in server.log_text


def test_the_clock_jumps(start, golden, injected, tmp_path):
    jump = tmp_path / "jump"
    jump.write_text("0")
    environ = {**injected(CLOCK.format(jump=str(jump))), "METRICS_INTERVAL_SECONDS": "1", "METRICS_SINKS": "emf"}
    server = start(**environ, WATCHDOG_SECONDS="5", REQUEST_TIMEOUT_SECONDS="5")
    processes = sorted(server.descendants())
    sent = 0
    for offset in (DAY, -DAY, 0):
        jump.write_text(str(offset))
        expected = time.time() + offset
        told = len(emf(server))
        while not any(abs(at - expected) < 3600 for at in emf(server)[told:]):
            assert right(server, golden)
            sent += 1
            time.sleep(0.1)
    assert sorted(server.descendants()) == processes
    assert server.terminate() == 0
    counts = [line["Requests"] for line in lines_of(server) if set(line) >= {"_aws", "Requests"}]
    assert sum(counts) == sent
    assert not [line for line in server.log_lines if line["level"] in ("ERROR", "WARNING")]


def lines_of(server):
    return [json.loads(line) for line in server.log_text.splitlines() if line.startswith("{") and line.endswith("}")]


def emf(server):
    """When each line of metrics says that it was measured, seconds since the epoch."""
    return [line["_aws"]["Timestamp"] / 1000 for line in lines_of(server) if "_aws" in line]


def test_a_stalled_cloudwatch_is_not_felt(start, golden):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf:  # takes connections, and never answers
        server = start(
            METRICS_SINKS="cloudwatch,emf", METRICS_INTERVAL_SECONDS="1", AWS_ACCESS_KEY_ID="test",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{deaf.getsockname()[1]}", AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="eu-west-1",
        )  # fmt: skip
        waiting, _ = deaf.accept()
        with waiting:
            for _ in range(20):
                assert right(server, golden)
            begun = time.monotonic()
            assert server.terminate() == 0
            assert time.monotonic() - begun < 15


def test_no_file_descriptor_is_left(start, golden):
    """Connections beyond the limit wait or are closed; those that are there, and all later ones, are answered."""
    server = start()
    serving = taker(server)
    with ExitStack() as stack:
        kept = stack.enter_context(connect(server))
        kept.sendall(request(json.dumps(golden[0]["record"]).encode()))
        assert status_of(kept) == 200
        limit = psutil.Process(serving).num_fds() + 20
        resource.prlimit(serving, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(100):
            stack.enter_context(connect(server))
        time.sleep(1)
        assert server.process.poll() is None
    wait_for(lambda: right_now(server, golden))
    assert taker(server) == serving
    time.sleep(1.1)  # asyncio tries again to accept a second after it could not
    assert server.terminate() == 0
    assert "Traceback" not in server.log_text
    assert len([line for line in server.log_lines if line["level"] == "ERROR"]) < 10


def right_now(server, golden):
    try:
        return right(server, golden)
    except OSError:
        return False


def test_a_thousand_connections_at_once(start, golden):
    server = start()
    body = request(json.dumps(golden[0]["record"]).encode())
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(1000)]
        assert right(server, golden)  # beside a thousand that say nothing
        for connection in connections:
            connection.sendall(body)
        statuses = Counter(status_of(connection) for connection in connections)
    assert statuses.keys() <= {200, 429, 503}
    assert statuses[200] >= 100
    assert right(server, golden)
    assert server.terminate() == 0
    assert "Traceback" not in server.log_text


def test_a_head_that_never_ends_is_cut_off(start, golden, injected):
    """The second of a connection too, and however slowly it comes."""
    server = start(**injected("import trimodal.servers.limits as m\nm.KEEP_ALIVE_SECONDS = 2\n"))
    head = request(b"")
    with ExitStack() as stack:
        first = [stack.enter_context(connect(server)) for _ in range(100)]
        second = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in second:
            connection.sendall(request(json.dumps(golden[0]["record"]).encode()))
            assert status_of(connection) == 200
        begun = time.monotonic()
        for place in range(30):
            for connection in (*first, *second):
                try:
                    connection.sendall(head[place : place + 1])
                except OSError:
                    continue
            time.sleep(0.1)
        for connection in (*first, *second):
            connection.settimeout(5)
            assert status_of(connection) in (0, 408)
        assert time.monotonic() - begun < 10
        assert right(server, golden)
    assert server.terminate() == 0
