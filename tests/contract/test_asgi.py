"""What only MODEL_SERVER=asgi does: overload, clients that go away, its own death, and more paths."""

import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time

import pytest

pytestmark = pytest.mark.parametrize("kind", ["asgi"], indirect=True, scope="module")

SLEEPY = """
import os, time
def predict_fn(data, model):
    text = str(data.rows[0]["order_id"])
    if text.startswith("sleep"):
        time.sleep(float(text.removeprefix("sleep")))
    if text == "segfault":
        os.kill(os.getpid(), 11)
    if text == "exit":
        raise SystemExit
    return model.predict(data)
"""


@pytest.fixture(scope="module")
def sleepy(model_dir, tmp_path_factory):
    """A model directory whose handler sleeps, crashes or exits where a record's id says so."""
    copy = tmp_path_factory.mktemp("sleepy") / "model"
    shutil.copytree(model_dir, copy, ignore=shutil.ignore_patterns("optimized"))
    (copy / "code").mkdir()
    (copy / "code" / "inference.py").write_text(SLEEPY)
    return copy


@pytest.fixture(scope="module")
def record(golden):
    return golden[0]["record"]


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def pings(server):
    try:
        return server.get("/ping").status == 200
    except OSError:
        return False


def request_bytes(body, *headers):
    lines = ["POST /invocations HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def in_background(server, record, order_id, outcomes):
    """Sends a request whose answer goes to a list."""

    def send():
        try:
            outcomes.append(server.predict({**record, "order_id": order_id}).status)
        except OSError as err:
            outcomes.append(repr(err))

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_health_is_ping(demo):
    assert demo.get("/health").json == demo.get("/ping").json
    assert demo.get("/ping").json["versions"]["onnxruntime"]


def test_typed_answers(demo, golden, record):
    answer = demo.request("POST", "/predict", json.dumps(record))
    (row,) = answer.json["predictions"]
    assert row["legacy-score"] == pytest.approx(golden[0]["probs"][1], abs=1e-5)
    assert row["order_id"] == record["order_id"]
    assert row["output-label"] == f"class-{golden[0]['probs'][1] > 0.5:d}"
    assert demo.request("POST", "/predict", "{").status == 400


def test_the_document_has_the_models_own_fields(demo, record):
    document = demo.get("/openapi.json").json
    schema = document["components"]["schemas"]["Record"]
    assert set(record) - {"label"} <= set(schema["properties"])
    assert "dialogue" in schema["required"]
    assert {"/ping", "/invocations", "/predict", "/execution-parameters"} <= set(document["paths"])
    page = demo.get("/docs")
    assert page.status == 200
    assert b"http" not in page.body
    assert demo.get("/docs/swagger-ui-bundle.js").status == 200


def test_packed_bodies(demo, record, golden):
    body = json.dumps(record).encode()
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = demo.request("POST", "/invocations", gzip.compress(body), headers)
    assert answer.scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)
    assert demo.request("POST", "/invocations", body, headers).status == 400
    assert demo.request("POST", "/invocations", gzip.compress(body)[:-9], headers).status == 400
    assert demo.request("POST", "/invocations", body, headers | {"Content-Encoding": "br"}).status == 415
    bomb = gzip.compress(b" " * 60_000_000)
    assert demo.request("POST", "/invocations", bomb, headers).status == 413


def test_a_client_that_waits_for_100_continue(demo, record):
    body = json.dumps(record).encode()
    with connect(demo) as connection:
        connection.sendall(request_bytes(b"", "Expect: 100-continue", f"Content-Length: {len(body)}"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_large_body_is_refused_before_it_is_sent(demo):
    with connect(demo) as connection:
        connection.sendall(request_bytes(b"", "Expect: 100-continue", "Content-Length: 2000000000"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_chunked_bodies_and_their_limit(demo, record):
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=60)
    body = json.dumps(record).encode()
    for _ in range(2):  # the connection is kept
        connection.request("POST", "/invocations", iter([body[:100], body[100:]]), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
    connection.request("POST", "/invocations", iter([b" " * 1_000_000] * 30), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_the_work_of_a_client_that_has_gone_is_dropped(start, golden):
    server = start(SAGEMAKER_MODEL_SERVER_WORKERS="1")
    body = json.dumps([item["record"] for item in golden] * 200).encode()
    with connect(server) as connection:
        connection.sendall(request_bytes(body, f"Content-Length: {len(body)}"))
        time.sleep(0.3)
    wait_for(lambda: 499 in statuses(server))
    assert server.predict(golden[0]["record"]).status == 200
    assert server.terminate() == 0


def statuses(server):
    return [line["status"] for line in server.log_lines if line["message"] == "invocation"]


def test_too_many_requests_are_told_when_to_try_again(start, sleepy, record):
    server = start(sleepy, SAGEMAKER_MODEL_SERVER_WORKERS="1", MAX_QUEUE_SIZE="1")
    outcomes = []
    threads = [in_background(server, record, "sleep1.5", outcomes) for _ in range(4)]
    wait_for(lambda: len(outcomes) >= 2)
    assert outcomes[:2] == [429, 429]
    assert server.get("/ping").status == 200
    answer = server.predict(record)
    assert answer.status == 429
    assert "try again in" in answer.error["message"]
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [200, 200, 429, 429]
    wait_for(lambda: sum(line.get("requests", 1) for line in server.log_lines if line.get("status") == 429) == 3)
    assert server.predict(record).status == 200
    assert server.terminate() == 0


def test_no_answer_in_time(start, sleepy, record):
    server = start(sleepy, REQUEST_TIMEOUT_SECONDS="1")
    answer = server.predict({**record, "order_id": "sleep2"})
    assert (answer.status, answer.error["code"]) == (504, "timeout")
    assert server.predict(record).status == 200
    assert server.terminate() == 0


def test_a_handler_that_exits_costs_one_request(start, sleepy, record):
    server = start(sleepy)
    assert server.predict({**record, "order_id": "exit"}).status == 500
    assert server.predict(record).status == 200
    assert server.terminate() == 0


def test_a_crash_costs_the_requests_in_flight(start, sleepy, record):
    server = start(sleepy)
    with pytest.raises(OSError, match=r"."):
        server.predict({**record, "order_id": "segfault"})
    wait_for(lambda: pings(server))
    assert server.predict(record).status == 200
    assert server.terminate() == 0
    (line,) = [line for line in server.log_lines if "serving process ended" in line["message"]]
    assert "SIGSEGV" in line["message"]
    assert "last stage" in line["message"]


def test_a_stuck_thread_ends_in_a_restart(start, sleepy, record):
    server = start(sleepy, WATCHDOG_SECONDS="1", REQUEST_TIMEOUT_SECONDS="1")
    before = server.workers()
    outcomes = []
    in_background(server, record, "sleep100", outcomes).join()
    wait_for(lambda: pings(server) and server.workers() not in ([], before))
    assert server.predict(record).status == 200
    assert server.terminate() == 0
    assert "an inference thread did not come back" in server.log_text


def test_a_stopped_process_ends_in_a_restart(start, record):
    server = start(WATCHDOG_SECONDS="1")
    (before,) = server.workers()
    os.kill(before, signal.SIGSTOP)
    wait_for(lambda: server.workers() not in ([], [before]))
    wait_for(lambda: pings(server))
    assert server.predict(record).status == 200
    assert server.terminate() == 0
    assert "the event loop stood still" in server.log_text


def test_the_process_ends_with_its_supervisor(start):
    server = start()
    (child,) = server.workers()
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not pings(server))
    wait_for(lambda: not os.path.exists(f"/proc/{child}"))  # noqa: PTH110


def test_draining_answers_what_is_in_flight_and_nothing_new(start, sleepy, record):
    server = start(sleepy)
    outcomes = []
    thread = in_background(server, record, "sleep2", outcomes)
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    kept.request("GET", "/ping")
    assert kept.getresponse().read()
    time.sleep(0.3)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    kept.request("GET", "/ping")
    response = kept.getresponse()
    assert (response.status, response.getheader("connection")) == (503, "close")
    assert json.loads(response.read())["status"] == "draining"
    thread.join()
    assert outcomes == [200]
    assert server.process.wait(timeout=30) == 0


def test_a_request_of_one_record_overtakes_one_of_thousands(start, golden, record):
    server = start(SAGEMAKER_MODEL_SERVER_WORKERS="1", ENCODER_CACHE_ENTRIES="0")
    many = [{**item["record"], "dialogue": f"[bom] {n} {item['record']['dialogue']} [eom]"}
            for n in range(40) for item in golden]  # fmt: skip
    done = []
    thread = threading.Thread(target=lambda: done.append(server.predict(*many).status))
    thread.start()
    time.sleep(0.5)
    assert server.predict(record).status == 200
    assert done == []
    thread.join()
    assert done == [200]
    assert server.terminate() == 0
