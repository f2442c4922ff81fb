from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trimodal.servers.workers import WorkerReport, failure, ready_workers, served


@pytest.fixture
def process():
    """A process that lives until the test ends it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def test_nobody_has_reported(tmp_path):
    assert (ready_workers(tmp_path), failure(tmp_path)) == (0, None)


def test_this_process_reports_ready(tmp_path):
    WorkerReport(tmp_path).ready({"level": 1})
    WorkerReport(tmp_path).ready({"level": 1})

    assert (ready_workers(tmp_path), failure(tmp_path)) == (1, None)
    assert [path.name for path in tmp_path.iterdir()] == [f"{os.getpid()}.ready"]


def test_the_lowest_rung_that_a_living_worker_serves(tmp_path, process):
    assert served(tmp_path) == {}

    WorkerReport(tmp_path).ready({"level": 1, "rung": "rebuild-fp32"})
    assert served(tmp_path) == {"level": 1, "rung": "rebuild-fp32"}

    (tmp_path / f"{process.pid}.ready").write_text('{"level": 3, "rung": "baseline"}')
    assert served(tmp_path)["level"] == 3

    process.kill()
    process.wait()
    assert served(tmp_path)["level"] == 1


def test_only_living_processes_count(tmp_path, process):
    WorkerReport(tmp_path).ready({})
    (tmp_path / f"{process.pid}.ready").touch()
    assert ready_workers(tmp_path) == 2

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is not reaped yet
    assert ready_workers(tmp_path) == 1

    process.wait()
    assert ready_workers(tmp_path) == 1


def test_a_name_of_a_process_may_hold_anything(tmp_path):
    program = "import ctypes; ctypes.CDLL(None).prctl(15, b') Z 1 (', 0, 0, 0); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as child:
        child.stdout.readline()
        (tmp_path / f"{child.pid}.ready").touch()
        try:
            assert ready_workers(tmp_path) == 1
        finally:
            child.kill()


def test_a_failure_is_told(tmp_path):
    WorkerReport(tmp_path).failed("model.onnx is missing — añade el modelo")

    assert failure(tmp_path) == "model.onnx is missing — añade el modelo"
    assert ready_workers(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_the_last_failure_counts(tmp_path):
    WorkerReport(tmp_path).failed("first")
    WorkerReport(tmp_path).failed("second")

    assert failure(tmp_path) == "second"


def test_without_a_listener_reports_go_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    WorkerReport(None).ready({})
    WorkerReport(None).failed("x")

    assert list(tmp_path.iterdir()) == []
