"""Whom a container calls: nobody but itself and the sinks that were asked for, seen in the kernel's own calls.

Every process of a server is traced from its cold start to its end. Skipped where there is no strace; `scripts/smoke`
tries the image without a network everywhere.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
import sys
import time

import pytest
from moto.server import ThreadedMotoServer

STRACE = [
    "strace",
    "-DD",
    "-f",
    "-qq",
    "--seccomp-bpf",
    "-e",
    "signal=none",
    "-e",
    "trace=connect,sendto,sendmsg,sendmmsg",
]
ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"')
ITSELF = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))

pytestmark = pytest.mark.skipif(
    not shutil.which("strace")
    or subprocess.run([*STRACE, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs strace, and the right to trace",
)


def called(trace):
    """Pairs of address and port outside the container's own loopback that were sent to, of a trace by `STRACE`."""
    found = set()
    for port, text in ADDRESS.findall(trace.read_text(errors="replace")):
        address = ipaddress.ip_address(text)
        address = getattr(address, "ipv4_mapped", None) or address
        if address not in ITSELF:
            found.add((str(address), int(port)))
    return found


@pytest.fixture
def copy(model_dir, tmp_path):
    """A copy of the demo model without an optimized one, so that a start is a cold one."""
    return shutil.copytree(model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("optimized"))


@pytest.fixture
def traced(start, copy, tmp_path):
    """Starts a traced server of the copy: `traced(**environ)` returns it, its trace and its home directory."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()

    def run(**environ):
        return start(copy, within=[*STRACE, "-o", str(trace)], HOME=str(home), **environ), trace, home

    return run


def serve(server, golden):
    """Sends requests of every kind that a client sends, then ends the server."""
    record = golden[0]["record"]
    for item in golden[:20]:
        assert server.predict(item["record"]).status == 200
    assert server.post("{").status == 400
    assert server.post(json.dumps(record | {"dialogue": "[bom] https://192.0.2.7/ <img src='http://192.0.2.8'> [eom]"})
                       ).status == 200  # fmt: skip
    for path in ("/ping", "/execution-parameters"):
        assert server.get(path).status == 200
    assert server.terminate() == 0


PROGRAM = """
import socket
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", (address, 53))
    except OSError:
        pass  # no such network here: it was tried
with socket.socket() as one:
    one.connect_ex(("127.0.0.1", 9))
"""


def test_the_trace_sees_who_calls(tmp_path):
    trace = tmp_path / "trace"
    shell = f"{sys.executable} -c '{PROGRAM}' & wait"  # a child of a child
    subprocess.run([arg for arg in STRACE if arg != "-DD"] + ["-o", trace, "sh", "-c", shell], check=True)
    assert called(trace) == {("192.0.2.1", 53), ("2001:db8::1", 53)}


def test_a_server_calls_nobody_and_leaves_nothing_behind(traced, golden):
    server, trace, home = traced()

    assert server.get("/ping").json["level"] == 1
    serve(server, golden)

    assert trace.stat().st_size > 0
    assert called(trace) == set()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("kind", ["asgi"], indirect=True)
def test_the_pytorch_level_calls_nobody(traced, copy, golden):
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").write_bytes(b"torn")
    server, trace, home = traced()

    assert server.get("/ping").json["level"] == 4
    serve(server, golden)

    assert called(trace) == set()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("kind", ["asgi"], indirect=True)
def test_a_tokenizer_that_is_named_is_not_fetched(traced, copy):
    (copy / "tokenizer.json").unlink()
    server, trace, home = traced(wait=False)

    assert server.process.wait(timeout=60) == 1

    assert "add the fast tokenizer's tokenizer.json" in server.log_text
    assert called(trace) == set()
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["asgi"], indirect=True)
def test_cloudwatch_is_called_where_it_is_asked_for_and_nobody_else(traced, golden):
    aws = ThreadedMotoServer(ip_address="127.0.0.2", port=0, verbose=False)
    aws.start()
    try:
        host, port = aws.get_host_and_port()
        server, trace, _ = traced(
            METRICS_SINKS="emf,cloudwatch,prometheus", METRICS_INTERVAL_SECONDS="1", AWS_DEFAULT_REGION="eu-west-1",
            AWS_ENDPOINT_URL=f"http://{host}:{port}", AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test",
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while not called(trace):
            assert server.predict(golden[0]["record"]).status == 200
            assert time.monotonic() < deadline, "nothing was published"
            time.sleep(0.1)
        serve(server, golden)
    finally:
        aws.stop()

    assert called(trace) == {(host, port)} == {("127.0.0.2", port)}
