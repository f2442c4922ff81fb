"""Compares the two servers under load: latency, throughput, memory, and what overload does.

    .venv/bin/python scripts/bench/serving.py MODEL_DIR [--seconds 10] [--rounds 2] [--overload 60] [--out DIR]
        [--set NAME=VALUE]… [--peers PYTHON]

Every request holds one record with texts of realistic lengths, and the encoder cache is off. Each round starts each
server anew and runs closed loops of 1, 2, 8 and 32 clients; the figures are those of the median round. The clients run
on the same machine as the server: compare servers, not machines. Memory is the proportional set size of the whole
process tree, the largest seen after two clients have run. The bare pipeline answers the same bodies in a process of its
own, without a server. Peers (see peers.py) run with a Python that has `requirements/peers.txt`.
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
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from footprint import free_port, memory
from load import Clients, Outcome, bodies
from trimodal.loading.hardware import detect, libraries, no_gpu
from trimodal.loading.load import load_pipeline
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


def bare(model_dir: Path, requests: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Answers requests one after another without a server."""
    settings = replace(Settings.from_environment(os.environ), model_dir=model_dir, encoder_cache=0)
    pipeline = load_pipeline(settings)
    outcome, begun = Outcome(), time.perf_counter()
    for body in requests[:32]:
        pipeline.answer(body, "application/json", None)
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        pipeline.answer(requests[len(outcome.latency) % len(requests)], "application/json", None)
        outcome.latency.append((time.perf_counter() - now) * 1000)
    outcome.seconds = time.perf_counter() - begun
    return outcome.to_json()


def bare_round(model_dir: Path, requests: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Runs `bare` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {"1": pool.submit(bare, model_dir, requests, seconds).result()}


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until the server listens."""
    while process.poll() is None:
        probe = subprocess.run(["curl", "-so", "/dev/null", f"http://127.0.0.1:{port}/ping"], check=False)
        if probe.returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


def one_round(
    model_dir: Path,
    environ: Mapping[str, str],
    requests: list[bytes],
    seconds: float,
    peer: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Starts one server and runs all loops."""
    with serving(model_dir, environ, peer) as (pid, port):
        clients = Clients(port, requests)
        clients.closed(2, min(seconds, 2.0))
        found: dict[str, Any] = {"memory_mib": round(memory(pid))}
        for count in LOOPS:
            found[str(count)] = clients.closed(count, seconds).to_json()
            if count == 2:
                found["memory_mib"] = max(found["memory_mib"], round(memory(pid)))
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
    """Returns the median round's figure."""
    return float(statistics.median(one[str(loop)][key] for one in rounds))


def to_markdown(facts: Mapping[str, Any], results: Results, load: Mapping[str, Any] | None) -> str:
    """Writes the tables."""
    head = "| server | memory, MiB | " + " | ".join(f"{loop} client{'s' * (loop > 1)}" for loop in LOOPS) + " |"
    host = f"{facts['processor']}, {facts['cores']} cores; {facts['versions']}"
    how = f"{facts['rounds']} rounds of {facts['seconds']} s each; load of the machine before it {facts['load']}"
    asked = "".join(f"; {name}={value}" for name, value in facts["set"].items())
    lines = [f"# {facts['model']}: servers, {facts['date']}", "", f"{host}; {how}{asked}.", ""]
    lines += ["Requests a second; p50 / p95 / p99 in milliseconds.", "", head, "|---" * (len(LOOPS) + 2) + "|"]
    for name, rounds in results.items():
        cells = [_cell(rounds, loop) if str(loop) in rounds[0] else "" for loop in LOOPS]
        size = f"{statistics.median(one['memory_mib'] for one in rounds):.0f}" if name != BARE else ""
        lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
    if load is not None:
        lines += ["", *load_lines(load)]
    return "\n".join(lines) + "\n"


def _cell(rounds: list[dict[str, Any]], loop: int) -> str:
    times = " / ".join(f"{median_of(rounds, loop, key):.1f}" for key in ("p50", "p95", "p99"))
    return f"{median_of(rounds, loop, 'requests_per_second'):.1f}; {times}"


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
    parser.add_argument("--rounds", type=int, default=2, help="starts of each server")
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
    results: Results = {name: [] for name in (BARE, *SERVERS, *(PEERS if options.peers else ()))}
    for _ in range(options.rounds):
        for name, rounds in results.items():
            if name == BARE:
                rounds.append(bare_round(options.model_dir, requests, options.seconds))
            else:
                peer = (name, options.peers) if name in PEERS else None
                own = SERVERS.get(name, {})
                rounds.append(one_round(options.model_dir, own, requests, options.seconds, peer))
            print(name, json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    load = None
    if options.overload:
        saturation = max(median_of(results["asgi"], loop, "requests_per_second") for loop in LOOPS)
        load = under_load(options.model_dir, requests, saturation, options.overload)
    text = to_markdown(facts, results, load)
    print(text)
    if options.out is not None:
        name = f"serving-{facts['model']}-{date}"
        plain = {**facts, "servers": results, "load": load}
        (options.out / f"{name}.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
