"""Measurements of the workers on their way to the container's main process: datagrams on a Unix socket."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trimodal.metrics.aggregate import Aggregate, Own, Series
from trimodal.metrics.emf import cut

logger = logging.getLogger(__name__)

CHANNEL = "metrics"
"""Name of the socket in the run directory."""

DATAGRAM_BYTES = 65_536
"""Aim for a datagram; the kernel takes three times as many by default (net.core.wmem_default)."""

SEND_SECONDS = 0.2
"""Between two sendings: less than the container takes to end, once the last request is answered."""

_VALUES = 1000
_BUFFER_BYTES = 4 * 1024 * 1024


class Sender:
    """Adds up a worker's measurements and sends them a few times a second; see `Recorder`.

    A thread of its own sends, so that a request costs no system call. It never waits: what the main process is too slow
    to take is kept, added up with what follows, and sent then.
    """

    def __init__(self, path: Path) -> None:
        """Makes a sender to the socket at `path`, which need not be there yet; nothing runs until the first record."""
        self._path = str(path)
        self._aggregate = Aggregate()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, name: str, value: float = 1.0, /, **dimensions: str) -> None:
        """Takes one measurement."""
        self._aggregate.record(name, value, **dimensions)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Sends what is left, and ends."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            while not self._closed.wait(SEND_SECONDS):
                self._send(channel)
            self._send(channel)

    def _send(self, channel: socket.socket) -> None:
        for datagram, parts in _datagrams(self._aggregate.drain()):
            try:
                channel.sendto(datagram, self._path)
            except OSError:  # the queue is full, of ten datagrams on some kernels; or nobody listens yet
                self._keep(parts)

    def _keep(self, parts: Sequence[Series]) -> None:
        for part in parts:
            for value, count in zip(part.values, part.counts, strict=True):
                self._aggregate.add(part.metric.name, value, count, part.own)


class Receiver:
    """Adds what workers send to an aggregate, on a thread of its own."""

    def __init__(self, path: Path, aggregate: Aggregate) -> None:
        """Starts to listen.

        Raises:
            OSError: the socket cannot be made.
        """
        self._aggregate = aggregate
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):  # the kernel grants what it allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        path.unlink(missing_ok=True)  # of a process before this one
        self._socket.bind(str(path))
        self._socket.settimeout(0.2)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes what has arrived, and ends."""
        self._closed.set()
        self._thread.join()
        self._socket.close()

    def _work(self) -> None:
        while True:
            try:
                datagram = self._socket.recv(1 << 20)
            except TimeoutError:
                if self._closed.is_set():
                    return
                continue
            except OSError as err:
                logger.warning("the workers' metrics are lost", extra={"cause": err.strerror})
                return
            for name, value, count, own in decode(datagram):
                self._aggregate.add(name, value, count, own)


def _datagrams(series: Sequence[Series]) -> Iterator[tuple[bytes, list[Series]]]:
    """Yields datagrams, each with what is in it."""
    lines: list[bytes] = []
    parts: list[Series] = []
    for part in (part for one in series for part in cut(one, _VALUES)):
        line = json.dumps([part.metric.name, part.own, part.values, part.counts], separators=(",", ":")).encode()
        if lines and sum(map(len, lines)) + len(line) > DATAGRAM_BYTES:
            yield b"\n".join(lines), parts
            lines, parts = [], []
        lines.append(line)
        parts.append(part)
    if lines:
        yield b"\n".join(lines), parts


def decode(datagram: bytes) -> list[tuple[str, float, int, Own]]:
    """Reads a datagram; what is not of its form counts as one dropped measurement."""
    points: list[tuple[str, float, int, Own]] = []
    for line in datagram.split(b"\n"):
        try:
            points += _points(json.loads(line))
        except (ValueError, TypeError, RecursionError, OverflowError):
            points.append(("DroppedPoints", 1.0, 1, ()))
    return points


def _points(line: Any) -> list[tuple[str, float, int, Own]]:
    name, own, values, counts = line
    dimensions = tuple((str(key), str(value)) for key, value in own)
    if not isinstance(name, str) or not isinstance(values, list) or not isinstance(counts, list):
        raise TypeError(name)
    pairs = [(float(value), int(count)) for value, count in zip(values, counts, strict=True)]
    if any(count < 1 or not math.isfinite(value) for value, count in pairs):
        raise ValueError(name)
    return [(name, value, count, dimensions) for value, count in pairs]
