"""Requests of realistic lengths, and clients that send them: in closed loops, or at a given rate."""

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from trimodal.bench.traffic import PRIMARY, SECONDARY, draw_lengths

PATIENCE = 90.0


@dataclass
class Outcome:
    """What one run of clients has seen.

    Attributes:
        latency: milliseconds of each request answered 200.
        statuses: how often each status came; 0 is a broken connection.
        seconds: of the run.
    """

    latency: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns its statistics in plain values."""
        return {
            "requests_per_second": round(len(self.latency) / self.seconds, 2),
            "p50": percentile(self.latency, 50),
            "p95": percentile(self.latency, 95),
            "p99": percentile(self.latency, 99),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }


def percentile(values: Sequence[float], share: int) -> float:
    """Returns a percentile by nearest rank, NaN of nothing."""
    ordered = sorted(values)
    return round(ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)], 2) if ordered else math.nan


def bodies(model_dir: Path, count: int, seed: int = 0) -> list[bytes]:
    """Makes requests of one record each, whose texts have realistic numbers of tokens and differ from each other."""
    config = json.loads((model_dir / "hyperparameters.json").read_text(encoding="utf-8"))
    lines = (model_dir / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line)["record"] for line in lines]
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    rng = random.Random(seed)  # noqa: S311  no secret
    limit = int(config["max_sen_len"])
    sides = {config["primary_text_name"]: PRIMARY, config["secondary_text_name"]: SECONDARY}
    made = [dict(records[place % len(records)]) for place in range(count)]
    for name, shape in sides.items():
        words = [w for r in records for w in str(r[name]).replace("[bom]", " ").replace("[eom]", " ").split()]
        sizes = {word: len(tokenizer.encode(word, add_special_tokens=False)) or 1 for word in set(words)}
        lengths = draw_lengths(count, *shape)
        rng.shuffle(lengths)
        for record, length in zip(made, lengths, strict=True):
            record[name] = f"[bom] {_text(words, sizes, min(length, limit) - 2, rng)} [eom]"
    return [json.dumps(record).encode() for record in made]


def _text(words: Sequence[str], sizes: dict[str, int], tokens: int, rng: random.Random) -> str:
    chosen: list[str] = []
    while tokens > 0:
        chosen.append(rng.choice(words))
        tokens -= sizes[chosen[-1]]
    return " ".join(chosen)


class Clients:
    """Sends requests to one server."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}/invocations"
        self.requests = requests
        self._next = 0

    def closed(self, clients: int, seconds: float, first: int = 0) -> Outcome:
        """Runs clients that each send the next request when the last is answered, beginning with request `first`."""
        self._next = first
        return asyncio.run(self._closed(clients, seconds))

    def open(self, rate: float, seconds: float, *, steady: bool = False) -> Outcome:
        """Sends `rate` requests a second, at random moments or steadily, whether earlier ones are answered or not."""
        return asyncio.run(self._open(rate, seconds, steady=steady))

    async def _closed(self, clients: int, seconds: float) -> Outcome:
        outcome = Outcome()
        async with self._session() as session:
            begun = time.perf_counter()

            async def client() -> None:
                while time.perf_counter() - begun < seconds:
                    await self._send(session, outcome)

            await asyncio.gather(*(client() for _ in range(clients)))
        outcome.seconds = time.perf_counter() - begun
        return outcome

    async def _open(self, rate: float, seconds: float, *, steady: bool) -> Outcome:
        outcome = Outcome()
        rng = random.Random(0)  # noqa: S311  no secret
        async with self._session() as session:
            begun = due = time.perf_counter()
            tasks = []
            while due - begun < seconds:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(self._send(session, outcome)))
                due += 1 / rate if steady else rng.expovariate(rate)
            outcome.seconds = time.perf_counter() - begun
            await asyncio.gather(*tasks)
        return outcome

    async def _send(self, session: aiohttp.ClientSession, outcome: Outcome) -> None:
        body = self.requests[self._next % len(self.requests)]
        self._next += 1
        begun = time.perf_counter()
        try:
            async with session.post(self.url, data=body, headers={"Content-Type": "application/json"}) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            outcome.statuses[0] += 1
            return
        outcome.statuses[answer.status] += 1
        if answer.status == 200:
            outcome.latency.append((time.perf_counter() - begun) * 1000)

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
