"""Serves a model under mixed good and bad traffic for a long time and checks every answer.

    scripts/soak [MODEL_DIR] [--server mms|asgi] [--minutes 30] [--clients 6] [--requests N] [--kills N] [--out FILE]

Good requests (JSON, JSON lines, CSV, parquet; one to twelve records) must give the scores of the model's golden
records, and exactly those that the first answer gave. Bad ones must get the one status that they deserve, and rude ones
(half a body, a connection dropped at any moment) must leave no trace. With --kills the process that serves is killed
so many times, evenly spread: then a request may also be refused or broken off, but never answered wrongly.

Prints one JSON document; exits 1 where an answer was wrong or unexpected, where memory grew by more than 2 % or 2 MiB
(medians of the second and of the last quarter), or where file descriptors or threads were left behind.
"""

import argparse
import asyncio
import contextlib
import csv
import datetime as dt
import io
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
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pyarrow as pa
from pyarrow import parquet

DEMO = Path(__file__).parent / "models" / "demo"
TOLERANCE = 1e-5
CSV_TOLERANCE = 6e-5
GROWTH = 0.02
GROWTH_MIB = 2.0
JSON, LINES, CSV, PARQUET = "application/json", "application/jsonlines", "text/csv", "application/x-parquet"
BROKEN = 0
"""Stands for the status of a request whose connection was refused or broken."""


@dataclass
class Seen:
    """What the clients and the process tree have shown.

    Attributes:
        statuses: how often each kind of request got each status; 0 is a broken connection.
        records: answered records whose scores were checked.
        wrong: what should not have happened, the first hundred.
        latency: (seconds since the start, milliseconds) of each good request.
        sizes: (seconds since the start, MiB, file descriptors, threads) of the process tree.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    records: int = 0
    wrong: list[str] = field(default_factory=list)
    latency: list[tuple[float, float]] = field(default_factory=list)
    sizes: list[tuple[float, float, int, int]] = field(default_factory=list)

    def complain(self, text: str) -> None:
        """Notes what should not have happened."""
        if len(self.wrong) < 100:
            self.wrong.append(text)


class Golden:
    """The model's recorded records, as request bodies, and what answers must hold."""

    def __init__(self, model_dir: Path) -> None:
        lines = (model_dir / "golden.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        self.records: list[dict[str, Any]] = [entry["record"] for entry in entries]
        self.scores = [float(entry["probs"][-1]) for entry in entries]
        names = (model_dir / "feature_columns.txt").read_text(encoding="utf-8").splitlines()
        self.columns = [line.split(",", 1)[1].strip() for line in names if line.strip() and line[0] != "#"]
        self.first: dict[int, Any] = {}

    def body(self, media: str, chosen: Sequence[int]) -> bytes:
        """Writes records in a format."""
        records = [self.records[number] for number in chosen]
        if media == JSON:
            return json.dumps(records[0] if len(records) == 1 else records).encode()
        if media == LINES:
            return "\n".join(map(json.dumps, records)).encode()
        if media == CSV:
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerow(self.columns)
            writer.writerows([["" if r.get(c) is None else r[c] for c in self.columns] for r in records])
            return text.getvalue().encode()
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(records), buffer)
        return buffer.getvalue()

    def check(self, chosen: Sequence[int], accept: str, content: bytes) -> str | None:
        """Returns what is wrong with an answer, or None."""
        if accept == CSV:
            rows = list(csv.reader(io.StringIO(content.decode())))
            scores, tolerance = [float(row[0]) for row in rows], CSV_TOLERANCE
        else:
            text = content.decode()
            found = json.loads(text)["predictions"] if accept == JSON else list(map(json.loads, text.splitlines()))
            scores, tolerance = [float(one["legacy-score"]) for one in found], TOLERANCE
            for number, one in zip(chosen, found, strict=False):
                if self.first.setdefault(number, one) != one:
                    return f"record {number}: {one} instead of {self.first[number]} as at first"
        if len(scores) != len(chosen):
            return f"{len(scores)} scores for {len(chosen)} records"
        for number, score in zip(chosen, scores, strict=True):
            if not math.isclose(score, self.scores[number], abs_tol=tolerance):
                return f"record {number}: {score} instead of {self.scores[number]}"
        return None


def bad_requests(golden: Golden) -> list[tuple[str, bytes, Mapping[str, str], int]]:
    """Returns requests (path, body, headers, status) that must be refused with that status."""
    record = golden.body(JSON, [0])
    holey = json.dumps({key: value for key, value in golden.records[0].items() if key != golden.columns[0]}).encode()
    as_json = {"Content-Type": JSON}
    return [
        ("/invocations", b"", as_json, 400),
        ("/invocations", b"{" * 50, as_json, 400),
        ("/invocations", b"[" * 100_000, as_json, 400),
        ("/invocations", b"\xff\xfe\x00", as_json, 400),
        ("/invocations", b"PAR1 no parquet PAR1", {"Content-Type": PARQUET}, 400),
        ("/invocations", holey, as_json, 422),
        ("/invocations", record, {"Content-Type": "application/xml"}, 415),
        ("/invocations", record, {**as_json, "Accept": "image/png"}, 406),
        ("/elsewhere", record, as_json, 404),
    ]


class Server:
    """The server under test."""

    def __init__(self, model_dir: Path, kind: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        own = {"MODEL_SERVER": kind, "SAGEMAKER_BIND_TO_PORT": str(self.port), "LOG_LEVEL": "WARNING"}
        command = [sys.executable, "-m", "trimodal.cli", "serve", str(model_dir)]
        self.process = psutil.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        """Waits until it answers."""
        async with aiohttp.ClientSession() as client:
            for _ in range(1800):
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(self.url + "/ping") as answer:
                        if answer.status == 200:
                            return
                if self.process.poll() is not None:
                    break
                await asyncio.sleep(0.1)
        raise SystemExit("the server did not start; see its log above")

    def tree(self) -> list[psutil.Process]:
        """Returns its processes."""
        return [self.process, *self.process.children(recursive=True)]

    def sizes(self) -> tuple[float, int, int]:
        """Returns MiB (shared pages split), file descriptors, and threads of the whole tree."""
        memory = descriptors = threads = 0
        for one in self.tree():
            with contextlib.suppress(psutil.Error):
                memory += one.memory_full_info().pss
                descriptors += one.num_fds()
                threads += one.num_threads()
        return memory / 2**20, descriptors, threads

    def kill_worker(self) -> None:
        """Kills a process that holds the model."""
        workers = [one for one in self.tree() if {"trimodal.servers.single", "--sock-name"} & set(one.cmdline())]
        if workers:
            random.choice(workers).kill()  # noqa: S311  no secret

    def stop(self) -> int:
        """Ends it; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return int(self.process.wait(40))


class Traffic:
    """Clients that go on until told to stop."""

    def __init__(self, server: Server, golden: Golden, *, may_break: bool) -> None:
        self.server = server
        self.golden = golden
        self.may_break = may_break
        self.seen = Seen()
        self.bad = bad_requests(golden)
        self.sent = 0
        self.stopped = False
        self.begun = time.monotonic()

    async def client(self, seed: int) -> None:
        """Sends requests of every kind, one after another."""
        rng = random.Random(seed)  # noqa: S311  no secret
        timeout = aiohttp.ClientTimeout(total=90)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            while not self.stopped:
                self.sent += 1
                kind = rng.random()
                try:
                    if kind < 0.8:
                        await self.good(client, rng)
                    elif kind < 0.95:
                        await self.refused(client, rng)
                    else:
                        await self.rude(rng)
                except (aiohttp.ClientError, OSError, TimeoutError) as err:
                    self.seen.statuses["good" if kind < 0.8 else "bad", BROKEN] += 1
                    if not self.may_break:
                        self.seen.complain(f"broken connection: {type(err).__name__}")
                    await asyncio.sleep(0.05)

    async def good(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        """Sends a request that must be answered, and checks every score."""
        media, accept = rng.choice((JSON, JSON, LINES, CSV, PARQUET)), rng.choice((JSON, JSON, LINES, CSV))
        count = rng.choice((1, 1, 1, 1, 2, 3, 12))
        chosen = [rng.randrange(len(self.golden.records)) for _ in range(count)]
        body, headers = self.golden.body(media, chosen), {"Content-Type": media, "Accept": accept}
        begun = time.perf_counter()
        async with client.post(self.server.url + "/invocations", data=body, headers=headers) as answer:
            content = await answer.read()
        self.seen.statuses["good", answer.status] += 1
        if answer.status == 200:
            self.seen.latency.append((time.monotonic() - self.begun, (time.perf_counter() - begun) * 1000))
            self.seen.records += count
            if (wrong := self.golden.check(chosen, accept, content)) is not None:
                self.seen.complain(f"WRONG ANSWER ({media} to {accept}): {wrong}")
        elif not (self.may_break and answer.status in (500, 503)):
            self.seen.complain(f"a good request got {answer.status}: {content[:200]!r}")

    async def refused(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        """Sends a request that must be refused."""
        path, body, headers, status = rng.choice(self.bad)
        async with client.post(self.server.url + path, data=body, headers=headers) as answer:
            content = await answer.read()
        self.seen.statuses["bad", answer.status] += 1
        allowed = (status, 500, 503) if self.may_break else (status,)
        if answer.status not in allowed:
            self.seen.complain(f"a bad request got {answer.status} instead of {status}: {content[:200]!r}")

    async def rude(self, rng: random.Random) -> None:
        """Sends a part of a request and drops the connection."""
        body = self.golden.body(JSON, [rng.randrange(len(self.golden.records)) for _ in range(rng.choice((1, 12)))])
        head = (
            f"POST /invocations HTTP/1.1\r\nHost: soak\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        request = head.encode() + body
        writer.write(request[: rng.randrange(1, len(request) + 1)])
        await writer.drain()
        await asyncio.sleep(rng.random() / 100)
        writer.transport.abort()
        self.seen.statuses["rude", BROKEN] += 1

    async def watch(self, every: float) -> None:
        """Notes what the processes take."""
        while not self.stopped:
            await asyncio.sleep(every)
            sizes = await asyncio.to_thread(self.server.sizes)
            self.seen.sizes.append((time.monotonic() - self.begun, *sizes))


@contextlib.asynccontextmanager
async def running(traffic: Traffic, clients: int, every: float) -> AsyncIterator[None]:
    """Runs clients and the watch; on leaving waits for the last answers."""
    tasks = [asyncio.create_task(traffic.client(number)) for number in range(clients)]
    tasks.append(asyncio.create_task(traffic.watch(every)))
    try:
        yield
    finally:
        traffic.stopped = True
        await asyncio.gather(*tasks)


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; returns the findings."""
    golden = Golden(options.model_dir)
    server = Server(options.model_dir, options.server)
    try:
        await server.ready()
        traffic = Traffic(server, golden, may_break=options.kills > 0)
        seconds = options.minutes * 60
        async with running(traffic, options.clients, min(10.0, seconds / 40)):
            for part in range(options.kills + 1):
                share = (part + 1) / (options.kills + 1)
                while traffic.sent < (options.requests or math.inf) * share:
                    if not options.requests and time.monotonic() - traffic.begun > seconds * share:
                        break
                    await asyncio.sleep(0.05)
                if part < options.kills:
                    server.kill_worker()
        await asyncio.sleep(2)  # what the last clients left behind is cleaned up
        left = server.sizes()
    finally:
        status = server.stop()
    if status != 0:
        traffic.seen.complain(f"the server ended with status {status}")
    return findings(options, traffic, left)


def findings(options: argparse.Namespace, traffic: Traffic, left: tuple[float, int, int]) -> dict[str, Any]:
    """Returns what was seen, and complains about growth."""
    seen = traffic.seen
    total = time.monotonic() - traffic.begun
    quarters = [[s for s in seen.sizes if total * q / 4 <= s[0] < total * (q + 1) / 4] for q in range(4)]
    found: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "server": options.server,
        "minutes": round(total / 60, 2),
        "clients": options.clients,
        "kills": options.kills,
        "requests": traffic.sent,
        "statuses": {f"{kind} {status}": count for (kind, status), count in sorted(seen.statuses.items())},
        "records_checked": seen.records,
        "p99_ms_by_quarter": [_p99([ms for at, ms in seen.latency if int(at / total * 4) == q]) for q in range(4)],
    }
    if quarters[1] and quarters[3] and not options.kills:
        before, after = (statistics.median(size for _, size, _, _ in quarters[q]) for q in (1, 3))
        found["memory_mib"] = [round(before, 1), round(after, 1)]
        if after - before > max(GROWTH * before, GROWTH_MIB):
            seen.complain(f"memory grew from {before:.1f} to {after:.1f} MiB")
        descriptors, threads = (max(sizes[i] for sizes in quarters[1]) for i in (2, 3))
        found["descriptors"], found["threads"] = [descriptors, left[1]], [threads, left[2]]
        if left[1] > descriptors or left[2] > threads:
            seen.complain(f"descriptors {descriptors} to {left[1]}, threads {threads} to {left[2]}")
    return {**found, "wrong": seen.wrong}


def _p99(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    return round(ordered[math.ceil(len(ordered) * 0.99) - 1], 1) if ordered else None


def main() -> int:
    """Soaks, prints what was found."""
    parser = argparse.ArgumentParser(
        "scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", nargs="?", type=Path, default=DEMO, metavar="MODEL_DIR")
    parser.add_argument("--server", choices=("mms", "asgi"), default="mms")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--requests", type=int, help="stop after so many instead of by time")
    parser.add_argument("--kills", type=int, default=0, help="kill a process that serves so many times")
    parser.add_argument("--out", type=Path, help="also write the findings there")
    found = asyncio.run(soak(parser.parse_args()))
    print(json.dumps(found, indent=1))
    if (out := parser.parse_args().out) is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
