"""Compares the two servers under load: latency, throughput, memory, and what overload does.

    .venv/bin/python scripts/bench/serving.py MODEL_DIR [--seconds 10] [--rounds 3] [--overload 60] [--out DIR]
        [--set NAME=VALUE]… [--peers PYTHON]

Every request holds one record with texts of realistic lengths, and the encoder cache is off. First each server is
started alone, and its memory taken: the proportional set size of the whole process tree, the largest seen after two
clients have run. Then all servers are up at once and take turns, one of them under load at a time: closed loops of 1,
2, 8 and 32 clients, the same requests in the same order; so a busy machine slows all of them alike. Figures are medians
of the rounds with their range. Processor time is that of the server's processes. The clients run on the same machine:
compare servers, not machines. The bare pipeline answers the same bodies in a process of its own, without a server.
Peers (see peers.py) run with a Python that has `requirements/peers.txt`.
"""

import argparse
import datetime as dt
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from footprint import free_port, memory, processor_seconds
from load import Clients, Outcome, bodies
from trimodal.loading.hardware import detect, libraries, no_gpu
from trimodal.loading.load import load_pipeline
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import Settings

LOOPS = (1, 2, 8, 32)

SERVERS: Mapping[str, Mapping[str, str]] = {
    "mms, default": {"MODEL_SERVER": "mms"},
    "mms, one worker a core": {"MODEL_SERVER": "mms", "SAGEMAKER_MODEL_SERVER_WORKERS": str(os.cpu_count())},
    "asgi": {"MODEL_SERVER": "asgi"},
}
PEERS = ("fastapi-padded", "fastapi", "litserve")
BARE = "bare pipeline"

Results = dict[str, list[dict[str, Any]]]


@contextmanager
def serving(
    model_dir: Path, environ: Mapping[str, str], peer: tuple[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Starts a server, ours or a peer (name, Python); yields its process and port once the port is open."""
    port = free_port()
    own = {"SAGEMAKER_BIND_TO_PORT": str(port), "LOG_LEVEL": "ERROR", "ENCODER_CACHE_ENTRIES": "0"}
    command = [sys.executable, "-m", "trimodal.cli", "serve", str(model_dir)]
    if peer is not None:
        own["PYTHONPATH"] = str(Path(__file__).parents[2] / "code")
        command = [peer[1], str(Path(__file__).with_name("peers.py")), peer[0], str(model_dir), str(port)]
    process = subprocess.Popen(
        command, env={**os.environ, **own, **environ}, stdout=subprocess.DEVNULL, process_group=0 if peer else None
    )
    try:
        wait_for_port(process, port)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)
        if peer is not None:  # LitServe's workers outlive it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


_loaded: list[Pipeline] = []


def load_bare(model_dir: Path) -> None:
    """Loads the pipeline, in a process of its own."""
    settings = replace(Settings.from_environment(os.environ), model_dir=model_dir, encoder_cache=0)
    _loaded.append(load_pipeline(settings))


def bare(requests: Sequence[bytes], seconds: float, first: int) -> dict[str, Any]:
    """Answers requests one after another without a server, in the process that has loaded the pipeline."""
    (pipeline,) = _loaded
    outcome, begun = Outcome(), time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        place = (first + len(outcome.latency)) % len(requests)
        pipeline.answer(requests[place], "application/json", None)
        outcome.latency.append((time.perf_counter() - now) * 1000)
    outcome.seconds = time.perf_counter() - begun
    return outcome.to_json()


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until the server listens."""
    while process.poll() is None:
        probe = subprocess.run(["curl", "-so", "/dev/null", f"http://127.0.0.1:{port}/ping"], check=False)
        if probe.returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


@dataclass(frozen=True)
class Server:
    """A server that can be started: ours with an environment, or a peer (name, Python)."""

    environ: Mapping[str, str] = field(default_factory=dict)
    peer: tuple[str, str] | None = None


def memory_alone(model_dir: Path, server: Server, requests: list[bytes], seconds: float) -> int:
    """Starts a server alone, lets two clients run, and returns the MiB of its processes, the larger of two looks."""
    with serving(model_dir, server.environ, server.peer) as (pid, port):
        clients, seen = Clients(port, requests), []
        for _ in range(2):
            clients.closed(2, seconds)
            seen.append(round(memory(pid)))
    return max(seen)


def in_turn(
    model_dir: Path, servers: Mapping[str, Server], requests: list[bytes], seconds: float, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Has all servers up, and loads them in turn; returns the loops of each round."""
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), load_bare, (model_dir,)))
        pool.submit(bare, requests, 2.0, 0).result()
        up = {}
        for name, server in servers.items():
            pid, port = stack.enter_context(serving(model_dir, server.environ, server.peer))
            up[name] = pid, Clients(port, requests)
            up[name][1].closed(2, 2.0)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in (BARE, *up)}
        for number in range(rounds):
            first = 61 * number
            found[BARE].append({"1": pool.submit(bare, requests, seconds, first).result()})
            for name in up:
                found[name].append({})
            for count in LOOPS:
                for name, (pid, clients) in up.items():
                    spent = processor_seconds(pid)
                    outcome = clients.closed(count, seconds, first)
                    spent = (processor_seconds(pid) - spent) / max(1, len(outcome.latency))
                    one = {**outcome.to_json(), "processor_ms": round(spent * 1000, 2)}
                    found[name][-1][str(count)] = one
                    print(number, name, count, json.dumps(one), file=sys.stderr, flush=True)
    return found


def under_load(model_dir: Path, requests: list[bytes], saturation: float, seconds: float) -> dict[str, Any]:
    """Offers 70 % of what saturates the ASGI server, then three times as much, then looks whether it recovers."""
    with serving(model_dir, SERVERS["asgi"]) as (pid, port):
        clients = Clients(port, requests)
        clients.closed(2, 2.0)
        before = clients.closed(1, 3.0).to_json()
        steady = clients.open(0.7 * saturation, max(10.0, seconds / 4), steady=True).to_json()
        usual = clients.open(0.7 * saturation, max(10.0, seconds / 4)).to_json()
        memory_before = memory(pid)
        overload = clients.open(3 * saturation, seconds).to_json()
        memory_after = memory(pid)
        time.sleep(5)
        after = clients.closed(1, 3.0).to_json()
    return {
        "saturation": saturation,
        "alone_before": before,
        "at_70_percent": usual,
        "at_70_percent_steady": steady,
        "overload_seconds": seconds,
        "overload": overload,
        "memory_mib": [round(memory_before), round(memory_after)],
        "alone_5_s_after": after,
    }


def median_of(rounds: list[dict[str, Any]], loop: int, key: str) -> float:
    """Returns the median of the rounds."""
    return float(statistics.median(one[str(loop)][key] for one in rounds))


def spread_of(rounds: list[dict[str, Any]], loop: int, key: str) -> str:
    """Returns median, least and most of the rounds."""
    values = [one[str(loop)][key] for one in rounds]
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def to_markdown(
    facts: Mapping[str, Any], sizes: Mapping[str, int], results: Results, load: Mapping[str, Any] | None
) -> str:
    """Writes the tables."""
    loops = " | ".join(f"{loop} client{'s' * (loop > 1)}" for loop in LOOPS)
    head = f"| server | memory, MiB | processor ms a request, 8 clients | {loops} |"
    host = f"{facts['processor']}, {facts['cores']} cores; {facts['versions']}"
    how = f"{facts['rounds']} rounds of {facts['seconds']} s for each server and loop, in turn"
    how += f"; load of the machine before it {facts['load']}"
    asked = "".join(f"; {name}={value}" for name, value in facts["set"].items())
    lines = [f"# {facts['model']}: servers, {facts['date']}", "", f"{host}; {how}{asked}.", ""]
    lines += ["Requests a second, median (least–most); medians of p50 / p95 / p99 in milliseconds.", ""]
    lines += [head, "|---" * (len(LOOPS) + 3) + "|"]
    for name, rounds in results.items():
        cells = [_cell(rounds, loop) if str(loop) in rounds[0] else "" for loop in LOOPS]
        spent = f"{median_of(rounds, 8, 'processor_ms'):.1f}" if name != BARE else ""
        lines.append(f"| {name} | {sizes.get(name, '')} | {spent} | {' | '.join(cells)} |")
    if load is not None:
        lines += ["", *load_lines(load)]
    return "\n".join(lines) + "\n"


def _cell(rounds: list[dict[str, Any]], loop: int) -> str:
    times = " / ".join(f"{median_of(rounds, loop, key):.1f}" for key in ("p50", "p95", "p99"))
    return f"{spread_of(rounds, loop, 'requests_per_second')}; {times}"


def load_lines(load: Mapping[str, Any]) -> list[str]:
    """Writes what overload did."""
    usual, steady, overload = load["at_70_percent"], load["at_70_percent_steady"], load["overload"]
    seconds, before, after = load["overload_seconds"], load["alone_before"], load["alone_5_s_after"]
    rate, sizes = f"{load['saturation']:.1f} requests/s", load["memory_mib"]
    return [
        f"asgi at 70 % of {rate}: p50 {steady['p50']} ms, p99 {steady['p99']} ms where requests come steadily;",
        f"p50 {usual['p50']} ms, p99 {usual['p99']} ms where they come at random moments.",
        f"At three times that rate for {seconds:.0f} s: statuses {overload['statuses']} (0 is a broken connection),",
        f"{overload['requests_per_second']} answered 200 a second, memory {sizes[0]} to {sizes[1]} MiB.",
        f"One client alone: p50 {before['p50']} ms before, {after['p50']} ms from 5 s after it.",
    ]


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--overload", type=float, default=0.0, help="seconds of overload; 0 for none")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for our own servers")
    parser.add_argument("--peers", metavar="PYTHON", help="also measure the peers, with this Python")
    parser.add_argument("--name", help="of the results' files; the model directory's name unless given")
    parser.add_argument("--out", type=Path, help="also write JSON and Markdown there")
    options = parser.parse_args()
    environ = dict(pair.split("=", 1) for pair in options.set)
    os.environ.update(environ)
    hardware, date = detect(gpu=no_gpu), dt.datetime.now(dt.UTC).date().isoformat()
    facts = {
        "model": options.name or options.model_dir.resolve().name,
        "set": environ,
        "date": date,
        "processor": hardware.processor or platform.machine(),
        "cores": hardware.cores,
        "versions": ", ".join(f"{name} {version}" for name, version in libraries().items() if name == "onnxruntime"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load": round(os.getloadavg()[0], 1),
    }
    requests = bodies(options.model_dir, 256)
    servers = {name: Server(own) for name, own in SERVERS.items()}
    servers |= {name: Server(peer=(name, options.peers)) for name in (PEERS if options.peers else ())}
    sizes = {name: memory_alone(options.model_dir, server, requests, 5.0) for name, server in servers.items()}
    print(json.dumps(sizes), file=sys.stderr, flush=True)
    results: Results = in_turn(options.model_dir, servers, requests, options.seconds, options.rounds)
    load = None
    if options.overload:
        saturation = max(median_of(results["asgi"], loop, "requests_per_second") for loop in LOOPS)
        load = under_load(options.model_dir, requests, saturation, options.overload)
    text = to_markdown(facts, sizes, results, load)
    print(text)
    if options.out is not None:
        name = f"serving-{facts['model']}-{date}"
        plain = {**facts, "memory_mib": sizes, "servers": results, "load": load}
        (options.out / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
