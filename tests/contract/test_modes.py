"""The other ways in which SageMaker runs a container: serverless, asynchronous, in a pipeline of several."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from sagemaker_inference import encoder

MIB = 1024 * 1024

READ_ONLY = """
set -e
mount --bind /tmp /tmp
mount -o remount,ro,bind /
mount -o remount,ro,bind /dev/shm 2>/dev/null || true
for folder in / "$HOME" /dev/shm /var/tmp; do
  if touch "$folder/.probe" 2>/dev/null; then echo "$folder can be written to"; exit 99; fi
done
touch "/tmp/.probe-$$" && rm "/tmp/.probe-$$"
if [ -n "$GROUP" ]; then echo $$ >"$GROUP/cgroup.procs"; fi
exec "$@"
"""
"""Makes everything but /tmp read-only for what it starts, in a namespace of its own."""


@pytest.fixture(scope="module")
def records(golden):
    return [item["record"] for item in golden]


@pytest.fixture(scope="module")
def memory_group():
    """A control group of 1 GB."""
    group = make_group()
    if group is None:
        pytest.skip("no control group can be made here")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def make_group():
    """Makes a control group, of version 1 or 2; None where that is not allowed."""
    for folder, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(folder) / f"trimodal-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(1024 * MIB))
        except OSError:
            if group.is_dir():
                group.rmdir()
        else:
            return group
    return None


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def serverless(start, group, **environ):
    """Starts a server as serverless inference does: one worker, 1 GB, nothing but /tmp to write to."""
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh"]
    trial = {"GROUP": "", "HOME": "/"}
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], env=trial, check=False).returncode:
        pytest.skip("no file system can be made read-only here")
    return start(within=within, GROUP=str(group), SAGEMAKER_MODEL_SERVER_WORKERS="1", **environ)


def test_serverless(start, memory_group, records, golden):
    server = serverless(start, memory_group)
    assert str(server.process.pid) in (memory_group / "cgroup.procs").read_text().split()
    state = server.get("/ping").json
    assert (state["level"], state["causes"]) == (1, {})
    answers = [server.predict(*records).scores for _ in range(20)]
    expected = [item["probs"][1] for item in golden]
    assert all(scores == pytest.approx(expected, abs=1e-5) for scores in answers)
    large = "".join(f"{json.dumps({**record, 'padding': 'x' * 64_000})}\n" for record in records)
    assert len(large) > 4_000_000  # about what serverless inference takes at most
    assert server.post(large, "application/jsonlines").scores == pytest.approx(expected, abs=1e-5)
    events = (memory_group / "memory.events", memory_group / "memory.oom_control")
    (kills,) = [int(re.search(r"oom_kill (\d+)", path.read_text())[1]) for path in events if path.exists()]
    assert kills == 0
    assert server.terminate() == 0


def held(server):
    """The MiB that all processes of a server hold, shared pages split among those that share them."""
    total = 0
    for pid in [server.process.pid, *(pid for pid, _ in server.descendants())]:
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])
        except OSError:
            continue
    return total / 1024


def test_a_large_body_that_comes_slowly(demo, records):
    """Asynchronous inference: 20 MB of JSON lines, in pieces, while others ask too."""
    lines = [json.dumps({**records[n % len(records)], "padding": "x" * 9000}) + "\n" for n in range(1900)]
    pieces = ["".join(lines[n : n + 50]).encode() for n in range(0, len(lines), 50)]
    assert 19_000_000 < sum(map(len, pieces)) < 25 * MIB
    before, peak, done = held(demo), [0.0], threading.Event()

    def watch():
        while not done.wait(0.1):
            peak[0] = max(peak[0], held(demo))

    def send():
        for number, piece in enumerate(pieces):
            yield piece
            if number % 10 == 0:
                assert demo.predict(records[0]).status == 200

    watcher = threading.Thread(target=watch)
    watcher.start()
    headers = {"Content-Type": "application/jsonlines", "Accept": "application/jsonlines"}
    connection = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=60)
    connection.request("POST", "/invocations", send(), headers, encode_chunked=True)
    response = connection.getresponse()
    status, body = response.status, response.read()
    connection.close()
    done.set()
    watcher.join()

    assert status == 200, body
    expected = demo.post(json.dumps(records), accept="application/jsonlines").body.splitlines()
    assert body.splitlines() == [expected[n % len(expected)] for n in range(len(lines))]
    assert peak[0] - before < 400, "MiB more for 20 MB of records"


def test_the_output_of_the_container_before_is_our_input(demo, records, golden, model_dir):
    """A pipeline hands on what the SageMaker toolkit's encoder writes: rows without names, in the order of a table."""
    lines = (model_dir / "feature_columns.txt").read_text(encoding="utf-8").splitlines()
    columns = [line.partition(",")[2] for line in lines if not line.startswith("#")]
    table = np.array([[record[name] for name in columns] for record in records[:8]], dtype=object)
    expected = pytest.approx([item["probs"][1] for item in golden[:8]], abs=1e-5)

    assert demo.post(encoder.encode(table, "application/json"), "application/json").scores == expected

    texts = [columns.index(name) for name in ("dialogue", "shiptrack_event_history_by_order")]
    table[:, texts] = [[f'"{cell}"' for cell in row] for row in table[:, texts]]  # its CSV does not quote
    plain = table[[n for n in range(8) if None not in table[n]]]
    scores = demo.post(encoder.encode(plain, "text/csv"), "text/csv; charset=utf-8").scores
    assert scores == pytest.approx(
        [demo.predict(records[n]).scores[0] for n in range(8) if None not in table[n]], abs=1e-5
    )


def test_our_csv_output_is_the_next_containers_input(demo, records):
    answer = demo.post(json.dumps(records[:8]), accept="text/csv")
    assert answer.headers["content-type"] == "text/csv"
    assert np.loadtxt(answer.body.decode().splitlines(), delimiter=",").shape == (8, 3)


def listening(server):
    """Addresses and ports on which the server's processes listen."""
    sockets = set()
    for pid in [server.process.pid, *(pid for pid, _ in server.descendants())]:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(path.readlink()))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                address, _, port = local.rpartition(":")
                found.add((set(address) == {"0"}, int(port, 16)))
    return found


def test_the_containers_of_a_pipeline_share_the_ports(start, kind, records):
    """Each is told one public port, and where it may open others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = min(probe.getsockname()[1], 32000)
    server = start(SAGEMAKER_SAFE_PORT_RANGE=f"{first}-{first + 99}")
    assert server.predict(records[0]).status == 200
    public = {port for everywhere, port in listening(server) if everywhere}
    inside = {port for everywhere, port in listening(server) if not everywhere}
    assert public == {server.port}
    assert inside <= set(range(first, first + 100))
    assert len(inside) == (1 if kind == "mms" else 0)
    assert server.terminate() == 0
