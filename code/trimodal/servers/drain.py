"""The end of a server: no more connections, and an answer for every request that was sent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import socket
import struct
import time
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 25
"""Time for requests in flight after SIGTERM; SageMaker kills the container after 30 seconds."""

RETIRE_SECONDS = 0.5
"""Time after SIGTERM in which clients with an open connection learn that it closes, before it does."""

POLL_SECONDS = 0.05
_QUIET_POLLS = 4
"""Polls without a request in flight after which none is on its way on an accepted connection."""

_SO_ATTACH_FILTER = 26
_BPF_RETURN = 0x06


async def drain(sock: socket.socket, stop: Callable[[], Awaitable[None]], in_flight: Callable[[], int]) -> None:
    """Takes no more connections and waits until every request is answered, for at most `DRAIN_SECONDS`.

    Args:
        sock: the listening socket.
        stop: stops accepting on it.
        in_flight: counts the requests that are not answered.
    """
    logger.info("draining", extra={"in_flight": in_flight()})
    deadline = time.monotonic() + DRAIN_SECONDS
    await asyncio.sleep(RETIRE_SECONDS)
    _refuse_connections(sock)  # closing resets what waits to be accepted, so let that run dry first
    await asyncio.sleep(POLL_SECONDS)
    await stop()
    quiet = 0
    while quiet < _QUIET_POLLS and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        quiet = 0 if in_flight() else quiet + 1
    if in_flight():
        logger.error("requests were cut off", extra={"in_flight": in_flight()})


def _refuse_connections(sock: socket.socket) -> None:
    """Makes the kernel drop what asks for a new connection, by a packet filter that passes nothing (socket(7))."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    with contextlib.suppress(OSError):  # not every sandbox has filters; without one a few clients see a reset
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
