"""Faults of the host at the start of a server: disks, users, memory and processors that are less than needed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

MIB = 1024 * 1024
NOBODY = 65534

GREEDY = """
def predict_fn(data, model):
    grown = []
    while str(data.rows[0]["order_id"]) == "memory":
        grown.append(bytearray(b"x" * 10_000_000))
    return model.predict(data)
"""

LIMITS = {"cpu.cfs_quota_us": "50000"}, {"memory.limit_in_bytes": str(1024 * MIB)}
V1 = {"/sys/fs/cgroup/cpu": LIMITS[0], "/sys/fs/cgroup/memory": LIMITS[1]}
V2 = {"/sys/fs/cgroup": {"cpu.max": "50000 100000", "memory.max": str(1024 * MIB)}}
GROUPS = V1 if Path("/sys/fs/cgroup/memory").is_dir() else V2
"""Control groups of half a processor and 1 GB, of version 1 or 2."""

NO_TEMPORARY = "import tempfile\ntempfile._candidate_tempdir_list = lambda: ['/nowhere/tmp']\n"

FILL = """
import os, sys
from pathlib import Path
disk, log, full_from = {disk!r}, {log!r}, {full_from!r}

def fill():
    with open(disk + "/filler", "ab", 0) as filler:
        for size in (1 << 20, 1 << 12):
            try:
                while filler.write(bytes(size)) == size:
                    pass
            except OSError:
                pass

def name(path):
    def plain(part):
        random = len(part) in (8, 64) or part.startswith("trimodal-") or any(map(str.isdigit, part))
        return "#" if random else part
    return "/".join(map(plain, path[len(disk) + 1:].split("/")))

def watch(event, arguments):
    if event != "open" or not isinstance(arguments[0], str) or not arguments[0].startswith(disk + "/"):
        return
    path, mode, flags = arguments
    if not flags & (os.O_WRONLY | os.O_RDWR) or path.endswith("/filler"):
        return
    here = name(path)
    if here == full_from:
        fill()
    with open(log, "a") as file:
        file.write(here + "\\n")

sys.addaudithook(watch)
"""
"""Notes which files below a disk are opened to be written, and fills the disk as one of them is."""


@pytest.fixture
def injected(tmp_path):
    """Runs lines in every Python process of a server before it starts; returns the environment that brings them."""

    def install(lines):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        (folder / "sitecustomize.py").write_text(lines)
        return {"PYTHONPATH": str(folder)}

    return install


@pytest.fixture
def model(model_dir, tmp_path):
    """A copy of the demo model without an optimized one."""
    return shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("optimized"))


@pytest.fixture
def disk():
    """A file system of 12 MB, of a short path: sockets are made in it."""
    place = Path(tempfile.mkdtemp(prefix="d"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)
    place.rmdir()


def assert_scores(server, golden):
    answer = server.predict(*(item["record"] for item in golden))
    assert answer.scores == pytest.approx([item["probs"][1] for item in golden], abs=1e-4)


def outcome(server, golden):
    """Waits until a server serves, and rightly, or has said in one line why it cannot; returns its level, or None."""
    try:
        server.wait_until_ready()
    except AssertionError:
        assert server.process.returncode == 1
        last = server.log_text.strip().splitlines()[-1]
        assert last.startswith("trimodal: No space is left"), server.log_text[-3000:]
        return None
    assert_scores(server, golden)
    level = server.get("/ping").json.get("level")
    assert server.terminate() == 0
    return level


def test_the_disk_is_full_at_any_stage_of_the_cold_start(start, model, disk, *, injected, golden, kind):
    """The only one there is, for the cache and for temporary files, filled as one file after the other is made."""
    log = disk.parent / "opened"

    def run(full_from):
        log.write_text("")
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (disk / "tmp").mkdir()
        lines = FILL.format(disk=str(disk), log=str(log), full_from=full_from)
        server = start(
            model, wait=False, OPTIMIZED_MODEL_DIR=str(disk / "cache"), TMPDIR=str(disk / "tmp"), **injected(lines)
        )
        level = outcome(server, golden)
        assert "Traceback" not in server.log_text, (full_from, server.log_text)
        return level

    assert run(None) == 1
    stages = list(dict.fromkeys(log.read_text().splitlines()))
    assert {"cache/#/task.json", "cache/#/journal.jsonl", "cache/#/manifest.json"} <= set(stages)
    levels = {stage: run(stage) for stage in stages if kind == "asgi" or stage.startswith("tmp/")}
    assert set(levels.values()) <= {1, 2, None}, levels
    assert run(None) == 1  # once there is room, what was lost is made


def test_a_full_disk_stops_no_profiling(start, model, disk, golden, kind):
    """ONNX Runtime writes its profile at the end, where there is no room for it."""
    (disk / "tmp").mkdir()
    server = start(
        model, TMPDIR=str(disk / "tmp"), ENABLE_ONNX_PROFILING="true", OPTIMIZED_MODEL_DIR=str(disk / "cache")
    )
    with (disk / "filler").open("ab", 0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    assert shutil.disk_usage(disk).free == 0
    for _ in range(20):
        assert_scores(server, golden)
    assert server.terminate() == 0
    assert "Traceback" not in server.log_text
    told = [line["message"] for line in server.log_lines if "profile" in line["message"]]
    assert (kind == "mms") == (told == [])  # its workers are ended without a last word
    assert all("is not whole; mount a larger volume" in message for message in told)


def test_no_directory_for_temporary_files(start, model, injected):
    server = start(model, wait=False, **injected(NO_TEMPORARY))

    assert server.process.wait(timeout=30) == 1
    assert server.log_text.strip() == "trimodal: No writable directory for temporary files; mount a tmpfs on /tmp."


@pytest.mark.parametrize(("length", "works"), [(70, True), (71, False)])
def test_a_long_path_of_the_temporary_directory(start, model, length, works):
    """The kernel takes no socket whose path is longer than 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short, "x" * (length - len(short) - 1))
        folder.mkdir()
        server = start(model, wait=works, TMPDIR=str(folder))

        if not works:
            assert server.process.wait(timeout=30) == 1
            told = "trimodal: TMPDIR is too long for the sockets in it; set it to at most 70 bytes."
            assert server.log_text.strip() == told
            return
        assert server.get("/ping").status == 200
        assert server.terminate() == 0


@pytest.fixture
def plain():
    """A command whose processes may not write what belongs to another user, as those of root may."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to another user")
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("root cannot become less here")
    return command


def test_a_cache_of_another_user(start, model, tmp_path, plain, golden):
    """What it holds is served; where it holds nothing, nothing is optimized, and the cause says what to do."""
    cache = tmp_path / "cache"
    cache.mkdir()

    def served():
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", cache], check=True)
        server = start(model, within=plain, OPTIMIZED_MODEL_DIR=str(cache))
        assert_scores(server, golden)
        state = server.get("/ping").json
        assert server.terminate() == 0
        assert "Traceback" not in server.log_text
        return state

    state = served()
    assert (state["level"], state["rung"]) == (2, "tuned")
    assert state["causes"]["optimization"].endswith("is not writable; mount it writable or set OPTIMIZED_MODEL_DIR.")

    assert start(model, OPTIMIZED_MODEL_DIR=str(cache)).terminate() == 0  # somebody fills it
    assert (served()["level"], len(list(cache.glob("*/manifest.json")))) == (1, 1)


def test_a_temporary_cache_that_another_user_has_made(start, model, tmp_path, plain, golden):
    """Names of temporary directories can be guessed; who makes one first must not decide what is served."""
    (model / "optimized").touch()  # there is no place beside the model
    planted = tmp_path / f"trimodal-cache-{os.geteuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    os.chown(planted, NOBODY, NOBODY)
    server = start(model, within=plain, TMPDIR=str(tmp_path))
    assert_scores(server, golden)
    state = server.get("/ping").json
    assert state["level"] == 2
    assert "holds another user's" in state["causes"]["optimization"]
    assert list(planted.iterdir()) == []
    assert server.terminate() == 0


@pytest.fixture
def small_host():
    """Makes what it starts run in a control group of half a processor and 1 GB; yields the command."""
    groups = []
    try:
        for folder, limits in GROUPS.items():
            group = Path(folder) / f"trimodal-test-{os.getpid()}"
            group.mkdir()
            groups.append(group)
            for name, value in limits.items():
                (group / name).write_text(value)
    except OSError:
        for group in groups:
            group.rmdir()
        pytest.skip("no control group can be made here")
    enter = "".join(f"echo $$ >{group}/cgroup.procs\n" for group in groups)
    yield ["sh", "-c", f'set -e\n{enter}exec "$@"', "sh"]
    for group in groups:
        while pids := (group / "cgroup.procs").read_text().split():  # of a test that failed
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)
        group.rmdir()


def test_half_a_processor_and_one_gigabyte(start, model, small_host, golden, kind):
    server = start(model, within=small_host)
    state = server.get("/ping").json
    assert (state["level"], state["workers"]) == (1, 1)
    if kind == "mms":  # each takes its share of what the control group leaves, not of the host
        assert any("-Xmx128m" in psutil.Process(pid).cmdline() for pid, _ in server.descendants())
    else:
        assert [line["concurrency"] for line in server.log_lines if line["message"] == "serving"] == [1]
    answers, threads = [], []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: answers.append(server.predict(golden[0]["record"]).scores)))
        threads[-1].start()
    begun = time.monotonic()
    assert server.get("/ping").status == 200
    assert time.monotonic() - begun < 2  # SageMaker's patience
    for thread in threads:
        thread.join()
    assert answers == [pytest.approx([golden[0]["probs"][1]], abs=1e-5)] * 8
    assert_scores(server, golden)
    assert server.terminate() == 0


def test_a_process_killed_for_memory_is_replaced(start, model, small_host, golden):
    """By the kernel, in a container of 1 GB, for a handler that takes all it can get."""
    (model / "code").mkdir()
    (model / "code" / "inference.py").write_text(GREEDY)
    server = start(model, within=small_host)
    before = server.workers()
    with contextlib.suppress(OSError):
        assert server.predict({**golden[0]["record"], "order_id": "memory"}).status in (500, 503)
    deadline = time.monotonic() + 60
    while set(before) & set(server.workers()) or not serving(server):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert_scores(server, golden)
    assert server.terminate() == 0
    assert "Traceback" not in server.log_text
    assert sum(line.get("OutOfMemory", 0) for line in metrics(server)) >= 1


def serving(server):
    try:
        return server.get("/ping").status == 200
    except OSError:
        return False


def metrics(server):
    return [json.loads(line) for line in server.log_text.splitlines() if line.startswith('{"_aws"')]
