"""Start, failure, restart and end of the server process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

ONLY_MMS = pytest.mark.parametrize("kind", ["mms"], indirect=True, scope="module")
"""The model server and its workers are processes of their own there; test_asgi.py has the like of the other server."""


@pytest.fixture
def copy(model_dir, tmp_path):
    """A copy of the demo model that a test may damage."""
    return shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("optimized"))


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def last_line(server):
    return server.log_text.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda d: (d / "model.onnx").write_bytes((d / "model.onnx").read_bytes()[:50_000]), "model.onnx"),
        (lambda d: (d / "model.onnx").unlink(), "model.onnx"),
        (lambda d: (d / "hyperparameters.json").write_text("{"), "hyperparameters.json"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda d: (d / "feature_columns.txt").write_text("0,dialogue\n"), "feature_columns.txt"),
    ],
    ids=["torn graph", "no graph", "broken config", "no tokenizer", "contradiction"],
)
def test_a_model_that_cannot_be_loaded_ends_the_process(start, copy, damage, named):
    (copy / "model.pth").unlink(missing_ok=True)  # with it, a torn graph is served by PyTorch
    damage(copy)
    server = start(copy, wait=False, HF_HUB_OFFLINE="1")
    assert server.process.wait(timeout=30) == 1
    assert last_line(server).startswith("trimodal: ")
    assert named in last_line(server)
    assert "Traceback" not in server.log_text


def test_a_bad_setting_ends_the_process(start):
    server = start(wait=False, ONNX_INTRA_OP_THREADS="many")
    assert server.process.wait(timeout=30) == 1
    assert last_line(server) == "trimodal: ONNX_INTRA_OP_THREADS='many' must be a whole number from 1 to 1024."


def test_a_taken_port_ends_the_process(start, demo):
    server = start(wait=False, SAGEMAKER_BIND_TO_PORT=str(demo.port))
    assert server.process.wait(timeout=30) == 1
    assert str(demo.port) in last_line(server)


@pytest.mark.parametrize("kind", ["mms"], indirect=True, scope="module")
def test_the_last_port_that_the_model_server_takes(start, golden):
    """It took 32767 for invalid, and one start in 12,768 drew it."""
    assert start(SAGEMAKER_SAFE_PORT_RANGE="32766-32767").predict(golden[0]["record"]).status == 200

    refused = start(wait=False, SAGEMAKER_SAFE_PORT_RANGE="32767-32767")

    assert refused.process.wait(timeout=30) == 1
    assert last_line(refused) == "trimodal: SAGEMAKER_SAFE_PORT_RANGE=32767-32767 holds no free port up to 32766."


def test_sigterm_under_load_answers_every_request_in_flight(start, golden):
    server = start()
    body = json.dumps([item["record"] for item in golden[:8]])
    outcomes: list[object] = []

    def client():
        while True:
            try:
                answer = server.post(body)
            except ConnectionRefusedError:
                return  # the port is closed: nothing was sent
            except OSError as err:
                outcomes.append(repr(err))
                return
            outcomes.append(answer.status)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(outcomes) >= 16)
    assert server.terminate() == 0
    for thread in threads:
        thread.join()
    assert set(outcomes) == {200}
    assert [line["message"] for line in server.log_lines][-1] == "stopped"


def test_sigterm_ends_everything_that_was_started(start):
    server = start()
    pids = [pid for pid, _ in server.descendants()]
    assert pids
    assert server.terminate() == 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=5)


def test_sigterm_before_the_model_is_ready(start):
    server = start(wait=False)
    wait_for(server.descendants)
    assert server.terminate() == 0


@ONLY_MMS
def test_a_killed_worker_is_replaced(start, golden):
    server = start()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: server.get("/ping").status == 503)
    assert server.predict(golden[0]["record"]).scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)
    assert server.get("/ping").status == 200
    assert worker not in server.workers()
    assert server.terminate() == 0


@ONLY_MMS
def test_a_worker_killed_while_it_answers_costs_one_request(start, golden):
    server = start()
    (worker,) = server.workers()
    body = json.dumps([item["record"] for item in golden] * 40)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.post(body)))
    idle = sum(psutil.Process(worker).cpu_times())
    thread.start()
    wait_for(lambda: sum(psutil.Process(worker).cpu_times()) > idle + 0.1)
    os.kill(worker, signal.SIGKILL)
    thread.join()
    assert answers[0].status in (500, 503)
    assert answers[0].error["code"] in ("inference_failed", "unavailable")
    assert server.predict(golden[0]["record"]).status == 200
    assert server.terminate() == 0


@ONLY_MMS
def test_a_dead_model_server_ends_the_process(start):
    server = start()
    java = next(pid for pid, parent in server.descendants() if parent == server.process.pid)
    os.kill(java, signal.SIGKILL)
    assert server.process.wait(timeout=30) == 1
    assert "model server ended" in last_line(server)


@ONLY_MMS
def test_several_workers(start, golden):
    server = start(SAGEMAKER_MODEL_SERVER_WORKERS="2")
    assert server.get("/ping").json.items() >= {"status": "ready", "workers": 2, "level": 1}.items()
    assert len(server.workers()) == 2
    assert server.predict(golden[0]["record"]).status == 200
    assert server.terminate() == 0


def test_a_users_own_handlers(start, copy, golden):
    code = copy / "code"
    code.mkdir()
    (code / "helper.py").write_text("GREETING = 'own'\n")
    (code / "inference.py").write_text(
        "import json\n"
        "from helper import GREETING\n"
        "from sagemaker_inference.errors import GenericInferenceToolkitError\n"
        "def output_fn(predictions, accept, context):\n"
        "    if accept == 'x/teapot':\n"
        "        raise GenericInferenceToolkitError(418, 'short and stout')\n"
        "    if accept == 'x/bug':\n"
        "        raise KeyError('secret')\n"
        "    return json.dumps({GREETING: float(predictions.raw[0, 0])}), 'application/json'\n"
    )
    server = start(copy)
    body = json.dumps(golden[0]["record"])
    assert server.post(body).json == {"own": pytest.approx(golden[0]["probs"][1], abs=1e-5)}
    teapot = server.post(body, accept="x/teapot")
    assert (teapot.status, teapot.error["message"]) == (418, "short and stout")
    bug = server.post(body, accept="x/bug")
    assert bug.status == 500
    assert b"secret" not in bug.body
    assert server.terminate() == 0


def test_the_log(start, golden):
    server = start()
    server.get("/ping")
    server.predict({**golden[0]["record"], "order_id": "4711-0815"})
    assert server.terminate() == 0
    messages = [line["message"] for line in server.log_lines]
    assert messages.count("invocation") == 1
    assert not any("ping" in message.lower() for message in messages)
    assert "4711-0815" not in server.log_text
    serving = next(line for line in server.log_lines if line["message"] == "serving")
    assert serving["port"] == server.port

    quiet = start(LOG_LEVEL="ERROR")
    quiet.predict(golden[0]["record"])
    assert quiet.terminate() == 0
    assert quiet.log_lines == []


def test_scripts_serve_ends_with_its_process_group(kind, model_dir, tmp_path):
    script = model_dir.parents[2] / "scripts" / "serve"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("wb") as out:
        process = subprocess.Popen(
            [script],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "SAGEMAKER_BIND_TO_PORT": str(port), "MODEL_SERVER": kind},
        )
    try:
        log = tmp_path / "log"
        wait_for(lambda: '"serving"' in log.read_text(), seconds=120)
        assert "curl" in log.read_text()
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
