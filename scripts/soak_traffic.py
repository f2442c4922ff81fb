"""What `scripts/soak` sends, and whether each answer is the one that it must get."""

import asyncio
import contextlib
import csv
import gzip
import io
import json
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
from pyarrow import parquet

TOLERANCE = 1e-5
CSV_TOLERANCE = 6e-5
JSON, LINES, CSV, PARQUET = "application/json", "application/jsonlines", "text/csv", "application/x-parquet"
BROKEN = 0
"""Stands for the status of a request whose connection was refused or broken."""

REQUEST_SECONDS = 20
"""How long the server waits for the whole of a request."""

Size = tuple[float, int, int]
"""MiB (shared pages split), file descriptors, and threads of the process tree."""


@dataclass
class Seen:
    """What the clients and the process tree have shown.

    Attributes:
        statuses: how often each kind of request got each status; 0 is a broken connection.
        records: answered records whose scores were checked.
        wrong: what should not have happened, the first hundred.
        latency: (seconds since the start, milliseconds) of each good request.
        sizes: (seconds since the start, what the process tree took).
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    records: int = 0
    wrong: list[str] = field(default_factory=list)
    latency: list[tuple[float, float]] = field(default_factory=list)
    sizes: list[tuple[float, Size]] = field(default_factory=list)

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
    good, record = golden.records[0], golden.body(JSON, [0])
    number = next(name for name, value in good.items() if isinstance(value, float) and name in golden.columns)
    holey = json.dumps({key: value for key, value in good.items() if key != golden.columns[0]}).encode()
    as_json = {"Content-Type": JSON}
    return [
        ("/invocations", b"", as_json, 400),
        ("/invocations", b"{" * 50, as_json, 400),
        ("/invocations", b"[" * 100_000, as_json, 400),
        ("/invocations", b"\xff\xfe\x00", as_json, 400),
        ("/invocations", b'["no record"]', as_json, 400),
        ("/invocations", b"not packed", {**as_json, "Content-Encoding": "gzip"}, 400),
        ("/invocations", b"PAR1 no parquet PAR1", {"Content-Type": PARQUET}, 400),
        ("/invocations", holey, as_json, 422),
        ("/invocations", json.dumps({**good, number: [1]}).encode(), as_json, 422),
        ("/invocations", json.dumps({**good, number: "many"}).encode(), as_json, 422),
        ("/invocations", b"a,b\n1,2", {"Content-Type": CSV}, 422),
        ("/invocations", gzip.compress(bytes(30_000_000)), {**as_json, "Content-Encoding": "gzip"}, 413),
        ("/invocations", record, {"Content-Type": "application/xml"}, 415),
        ("/invocations", record, {**as_json, "Accept": "image/png"}, 406),
        ("/elsewhere", record, as_json, 404),
    ]


def head_of(length: int) -> bytes:
    """Returns the head of a request with a body of so many bytes."""
    return (
        f"POST /invocations HTTP/1.1\r\nHost: soak\r\nContent-Type: {JSON}\r\nContent-Length: {length}\r\n\r\n".encode()
    )


class Traffic:
    """Clients that go on until told to stop."""

    def __init__(self, port: int, golden: Golden, *, may_break: bool, pause: float) -> None:
        """Prepares the clients.

        Args:
            port: of the server.
            golden: the records that are sent.
            may_break: a request may be refused or broken off, for what serves is killed now and then.
            pause: seconds from one request of a client to its next, on average; less where an answer takes longer.
        """
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.golden = golden
        self.may_break = may_break
        self.pause = pause
        self.seen = Seen()
        self.bad = bad_requests(golden)
        self.sent = 0
        self.stopped = asyncio.Event()
        self.begun = time.monotonic()

    @contextlib.asynccontextmanager
    async def running(self, clients: int, sizes: Callable[[], Size], every: float) -> AsyncIterator[None]:
        """Runs clients, and notes what the processes take; on leaving waits for the last answers."""
        self.stopped.clear()
        tasks = [asyncio.create_task(self.client(random.randrange(2**32))) for _ in range(clients)]  # noqa: S311
        tasks += [asyncio.create_task(self.watch(sizes, every)), asyncio.create_task(self.stalling())]
        try:
            yield
        finally:
            self.stopped.set()
            await asyncio.gather(*tasks)

    async def client(self, seed: int) -> None:
        """Sends requests of every kind, one after another."""
        rng = random.Random(seed)  # noqa: S311  no secret
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90)) as client:
            while not self.stopped.is_set():
                self.sent += 1
                following = time.monotonic() + self.pause * rng.uniform(0.5, 1.5)
                kind = rng.random()
                if kind < 0.77:
                    await self.tried("good", self.good(client, rng))
                elif kind < 0.92:
                    await self.tried("bad", self.refused(client, rng))
                elif kind < 0.97:
                    await self.tried("rude", self.rude(rng))
                else:
                    await self.tried("slow", self.slow(rng))
                await self.wait(following - time.monotonic())

    async def tried(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        """Sends one request; a connection that breaks is noted."""
        try:
            await work
        except (aiohttp.ClientError, OSError, TimeoutError, EOFError) as err:
            self.seen.statuses[kind, BROKEN] += 1
            if not self.may_break:
                self.seen.complain(f"broken connection ({kind}): {type(err).__name__}")
            await asyncio.sleep(0.05)

    async def wait(self, seconds: float) -> None:
        """Waits, not longer than the clients run."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), max(0.0, seconds))

    async def good(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        """Sends a request that must be answered, and checks every score."""
        media, accept = rng.choice((JSON, JSON, LINES, CSV, PARQUET)), rng.choice((JSON, JSON, LINES, CSV))
        chosen = self.chosen(rng, rng.choice((1, 1, 1, 1, 2, 3, 12)))
        body, headers = self.golden.body(media, chosen), {"Content-Type": media, "Accept": accept}
        begun = time.perf_counter()
        async with client.post(self.url + "/invocations", data=body, headers=headers) as answer:
            content = await answer.read()
        if answer.status == 200:
            self.seen.latency.append((time.monotonic() - self.begun, (time.perf_counter() - begun) * 1000))
        self.answered("good", (answer.status, content), chosen, f"{media} to {accept}", accept)

    def chosen(self, rng: random.Random, count: int) -> list[int]:
        """Draws records."""
        return [rng.randrange(len(self.golden.records)) for _ in range(count)]

    def answered(
        self, kind: str, answer: tuple[int, bytes], chosen: Sequence[int], what: str, accept: str = JSON
    ) -> None:
        """Checks the answer (status, body) to good records."""
        status, content = answer
        self.seen.statuses[kind, status] += 1
        if status == 200:
            self.seen.records += len(chosen)
            if (wrong := self.golden.check(chosen, accept, content)) is not None:
                self.seen.complain(f"WRONG ANSWER ({what}): {wrong}")
        elif not (self.may_break and status in (500, 503)):
            self.seen.complain(f"a good request ({what}) got {status}: {content[:200]!r}")

    async def refused(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        """Sends a request that must be refused."""
        place = rng.randrange(len(self.bad) + 1)
        if place == len(self.bad):
            status, (got, content) = 413, await self.raw([head_of(30_000_000)])
        else:
            path, body, headers, status = self.bad[place]
            async with client.post(self.url + path, data=body, headers=headers) as answer:
                content = await answer.read()
            got = answer.status
        self.unanswered(got, status, content)

    def unanswered(self, got: int, status: int, content: bytes) -> None:
        """Checks the answer to a request that must be refused."""
        self.seen.statuses["bad", got] += 1
        if got != status and not (self.may_break and got in (500, 503)):
            self.seen.complain(f"a bad request got {got} instead of {status}: {content[:200]!r}")

    async def rude(self, rng: random.Random) -> None:
        """Sends a part of a request and drops the connection."""
        body = self.golden.body(JSON, self.chosen(rng, rng.choice((1, 12))))
        request = head_of(len(body)) + body
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request[: rng.randrange(1, len(request) + 1)])
        await writer.drain()
        await asyncio.sleep(rng.random() / 100)
        writer.transport.abort()
        self.seen.statuses["rude", BROKEN] += 1

    async def slow(self, rng: random.Random) -> None:
        """Sends a good request in small pieces."""
        chosen = self.chosen(rng, 1)
        body = self.golden.body(JSON, chosen)
        request = head_of(len(body)) + body
        step = len(request) // 8 + 1
        pieces = [request[start : start + step] for start in range(0, len(request), step)]
        self.answered("slow", await self.raw(pieces, rng.random() / 10), chosen, "in pieces")

    async def stalling(self) -> None:
        """Always has one request under way whose end never comes."""
        while not self.stopped.is_set():
            await self.tried("stalled", self.stalled())

    async def stalled(self) -> None:
        """Sends half of a request and waits to be refused, or for the end of the soak."""
        body = self.golden.body(JSON, [0])
        answer = asyncio.ensure_future(self.raw([head_of(len(body)) + body[:-10]]))
        ending = asyncio.ensure_future(self.stopped.wait())
        await asyncio.wait((answer, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if answer.done():
            self.unanswered(answer.result()[0], 408, answer.result()[1])
        answer.cancel()

    async def raw(self, pieces: Sequence[bytes], pause: float = 0.0) -> tuple[int, bytes]:
        """Sends bytes on a connection of their own, with pauses between the pieces; returns status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(90):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].split()[0])
                return int(head.split()[1]), await reader.readexactly(length)
        finally:
            writer.transport.abort()

    async def watch(self, sizes: Callable[[], Size], every: float) -> None:
        """Notes what the processes take."""
        while not self.stopped.is_set():
            await self.wait(every)
            size = await asyncio.to_thread(sizes)
            self.seen.sizes.append((time.monotonic() - self.begun, size))
