"""The ladder as clients and operators see it: `/ping`, the scores, the exit status, the processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOST = ("workers", "declined", "versions")
"""What `/ping` tells of the host and not of the model."""

FAULT = "import trimodal.loading.build as m\nm._stock = m._simplified = m.rebuild_encoder = lambda *a, **k: 1 / 0"
SLOW = "import time\nimport trimodal.loading.build as m\nm.rebuild_encoder = lambda *a, **k: time.sleep(600)"


@pytest.fixture
def model(model_dir, tmp_path):
    """A copy of the demo model without an optimized one."""
    return shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("optimized"))


@pytest.fixture
def inject(tmp_path):
    """Writes lines that run in the optimizing process before it starts; returns the environment that brings them."""

    def install(lines):
        folder = tmp_path / "injected"
        folder.mkdir()
        program = "import sys\nif 'trimodal.loading.optimize' in sys.orig_argv:\n"
        (folder / "sitecustomize.py").write_text(program + "".join(f"    {line}\n" for line in lines.split("\n")))
        return {"PYTHONPATH": str(folder)}

    return install


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(pids):
    """Those of some processes that still run."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, stat in states.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


def optimizing(server):
    """The optimizing process of a server, as a list."""
    pids = [pid for pid, _ in server.descendants()]
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in pids}
    return [
        pid for pid, path in commands.items() if path.exists() and b"trimodal.loading.optimize" in path.read_bytes()
    ]


def assert_scores(server, golden):
    answer = server.predict(*(item["record"] for item in golden))
    assert answer.scores == pytest.approx([item["probs"][1] for item in golden], abs=1e-4)


def state(server):
    return {key: value for key, value in server.get("/ping").json.items() if key not in HOST}


def test_ping_tells_what_is_served(start, model, golden):
    server = start(model)

    assert state(server) == {
        "status": "ready", "level": 1, "rung": "rebuild-fp32", "precision": "fp32", "engine": "onnxruntime",
        "causes": {},
    }  # fmt: skip
    assert_scores(server, golden)
    assert server.terminate() == 0


def test_a_fault_lowers_the_level_and_the_service_is_up(start, model, golden, inject):
    server = start(model, **inject(FAULT))

    told = state(server)

    assert (told["status"], told["level"], told["rung"], told["precision"]) == ("ready", 2, "tuned", "fp32")
    (cause,) = told["causes"].values()
    assert "rebuild-fp32: ZeroDivisionError in build" in cause
    assert_scores(server, golden)
    assert server.terminate() == 0
    (warning,) = [line for line in server.log_lines if line["message"] == "lost: fusion"]
    assert (warning["level"], warning["fallback_level"], warning["cause"]) == ("WARNING", 2, cause)
    assert "Traceback" not in server.log_text


def test_a_damaged_optimized_model_is_made_again(start, model, golden):
    assert start(model).terminate() == 0
    (weights,) = (model / "optimized").glob("*/primary.onnx.data")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x55
    weights.write_bytes(content)

    server = start(model, STRICT_OPTIMIZATION="true")

    assert state(server)["rung"] == "rebuild-fp32"
    assert_scores(server, golden)
    assert server.terminate() == 0
    assert "an optimized model in the cache is damaged and not used" in server.log_text


def test_a_torn_graph_is_served_by_pytorch(start, model, golden):
    (model / "model.onnx").write_bytes((model / "model.onnx").read_bytes()[:50_000])

    server = start(model)

    told = state(server)
    assert (told["level"], told["rung"], told["engine"]) == (4, "pytorch", "torch")
    assert_scores(server, golden)
    assert server.terminate() == 0


def test_strict_makes_a_fault_a_failed_start(start, model, inject):
    server = start(model, wait=False, STRICT_OPTIMIZATION="true", **inject(FAULT))

    assert server.process.wait(timeout=60) == 1
    assert (
        server.log_text.strip()
        .splitlines()[-1]
        .startswith(
            "trimodal: STRICT_OPTIMIZATION=true, and something that was asked for is lost: fusion: rebuild-fp32: "
        )
    )
    assert "Traceback" not in server.log_text


def test_sigterm_ends_the_optimizing_process(start, model, inject):
    server = start(model, wait=False, **inject(SLOW))
    wait_for(lambda: optimizing(server))
    wait_for(lambda: "cold start: build" in server.log_text)
    pids = [server.process.pid, *(pid for pid, _ in server.descendants())]

    assert server.terminate() == 0

    assert alive(pids) == []
    assert not list((model / "optimized").glob(".draft-*"))
    assert "Traceback" not in server.log_text


def test_a_killed_server_takes_the_optimizing_process_along(start, model, inject):
    server = start(model, wait=False, **inject(SLOW))
    wait_for(lambda: optimizing(server))
    pids = optimizing(server)

    server.process.send_signal(signal.SIGKILL)
    server.process.wait()

    wait_for(lambda: not alive(pids), seconds=10)


HOLD = """
import sys, time
from pathlib import Path
from trimodal.loading.locks import locked
with locked(Path(sys.argv[1]), 0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_sigterm_while_another_container_optimizes(start, model):
    """The other one may take minutes, and after 30 seconds the container is killed."""
    assert start(model).terminate() == 0
    (lock,) = (model / "optimized").glob("[0-9a-f]*.lock")
    shutil.rmtree(lock.with_suffix(""))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "code")}
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], env=environ, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            server = start(model, wait=False)
            wait_for(lambda: str(lock) in "".join(_open_files(server)))

            assert server.terminate() == 0

            assert optimizing(server) == []
        finally:
            other.kill()


def _open_files(server):
    """Names of the files that a server's processes hold open."""
    for pid in [server.process.pid, *(pid for pid, _ in server.descendants())]:
        try:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                yield str(link.readlink())
        except OSError:
            continue
