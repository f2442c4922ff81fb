"""Measures what serving a model directory costs: start-up time, memory, and the time of one request.

    .venv/bin/python scripts/bench/footprint.py MODEL_DIR [MODEL_DIR …] [--starts 3] [--requests 50]

Starts the real server several times, sends the directory's golden records one after another, and prints a markdown
table of medians with their range. Memory is the proportional set size (PSS) of all processes of the server.
"""

import argparse
import http.client
import json
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TRIMODAL = Path(sys.executable).with_name("trimodal")


@dataclass
class Costs:
    """What several starts of one server took.

    Attributes:
        ready: seconds from start to the first 200 of `/ping`.
        memory: MiB of the whole process tree after the requests.
        peak: MiB, the largest seen while it started and answered.
        latency: milliseconds of each request, as the client sees it.
        inside: milliseconds of each request at the worker's own socket, without the front.
    """

    ready: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)


def descendants(root: int) -> list[int]:
    """Returns a process and all below it."""
    lines = subprocess.check_output(["ps", "-eo", "pid=,ppid="], text=True).splitlines()
    pairs = [(int(pid), int(parent)) for pid, parent in (line.split() for line in lines)]
    found = [root]
    for pid in found:
        found += [child for child, parent in pairs if parent == pid]
    return found


def memory(root: int) -> float:
    """Returns the MiB of a process tree, shared pages split among those that share them."""
    total = 0
    for pid in descendants(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        match = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
        total += int(match[1]) if match else 0
    return total / 1024


def processor_seconds(root: int) -> float:
    """Returns the seconds of processor time that the live processes of a tree have taken."""
    total = 0.0
    for pid in descendants(root):
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def inner_port(root: int) -> int:
    """Returns the port of the model server behind the front, from its command's configuration."""
    for pid in descendants(root):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"-f" in command:
            text = Path(command[command.index(b"-f") + 1].decode()).read_text()
            return int(re.findall(r"inference_address=.*:(\d+)", text)[-1])
    raise RuntimeError("no model server is running")


def post(connection: http.client.HTTPConnection, body: bytes) -> float:
    """Sends one request; returns its milliseconds."""
    started = time.perf_counter()
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}")
    return (time.perf_counter() - started) * 1000


def measure(model_dir: Path, requests: int, costs: Costs) -> None:
    """Starts the server once and adds what it took."""
    lines = (model_dir / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    bodies = [json.dumps(json.loads(line)["record"]).encode() for line in lines]
    port = free_port()
    environ = {**os.environ, "SAGEMAKER_BIND_TO_PORT": str(port), "LOG_LEVEL": "ERROR"}
    started = time.perf_counter()
    process = subprocess.Popen([TRIMODAL, "serve", model_dir], env=environ)
    try:
        peak = 0.0
        while True:
            peak = max(peak, memory(process.pid))
            try:
                with socket.create_connection(("127.0.0.1", port)):
                    break
            except ConnectionRefusedError:
                time.sleep(0.02)
        costs.ready.append(time.perf_counter() - started)
        front = http.client.HTTPConnection("127.0.0.1", port)
        behind = http.client.HTTPConnection("127.0.0.1", inner_port(process.pid))
        for number in range(requests):
            body = bodies[number % len(bodies)]
            costs.latency.append(post(front, body))
            costs.inside.append(post(behind, body))
        costs.memory.append(memory(process.pid))
        costs.peak.append(max(peak, costs.memory[-1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def spread(values: Sequence[float], digits: int) -> str:
    """Writes a median with its range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main() -> None:
    """Measures each directory and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dirs", nargs="+", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--requests", type=int, default=50)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| model | ready s | memory MiB | peak MiB | one request ms | of it the front ms |")
    print("|---|---|---|---|---|---|")
    for model_dir in options.model_dirs:
        costs = Costs()
        for _ in range(options.starts):
            measure(model_dir, options.requests, costs)
        front = [outer - inner for outer, inner in zip(costs.latency, costs.inside, strict=True)]
        cells = [spread(costs.ready, 1), spread(costs.memory, 0), spread(costs.peak, 0), spread(costs.latency, 1)]
        print("|", " | ".join([model_dir.name, *cells, f"{statistics.median(front):.2f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
