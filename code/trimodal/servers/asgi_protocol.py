"""How `MODEL_SERVER=asgi` speaks HTTP: half-closed clients, errors in our form, and a head of bounded size."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from trimodal.servers.body import not_http

MAX_HEAD = 64 * 1024
"""Bytes of a request's line and headers, and of what stands between two pieces of its body or after the last."""

_PROBE_SECONDS = (0.1, 0.3, 1.0)
"""When, after a client has closed its sending side, it is asked whether it is still there; no client minds three
interim answers."""

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODY = not_http().to_json()
_HEAD = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


class Protocol(HttpToolsProtocol):
    """One connection of a client.

    The parser keeps a header until it ends, however long it is; so what comes without adding to a body, or ending a
    request, is counted.

    A client that has gone, and one that only sends no more, look alike until something is written: a socket that was
    closed answers with a reset, and one that waits passes over an interim answer (RFC 9110, section 15.2).
    """

    _idle = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection; its first request must come while an idle one is kept."""
        super().connection_made(transport)
        self.loop.call_later(self.timeout_keep_alive, self._expect_request)

    def _expect_request(self) -> None:
        if self._newest is None and not self.transport.is_closing():
            self.transport.close()

    @property
    def _newest(self) -> RequestResponseCycle | None:
        """The newest request and its answer; None before the first."""
        return self.cycle

    # asyncio lets a protocol say whether its side stays open; uvicorn's says nothing, which is no
    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps our side open while a request that was sent whole is not answered."""
        newest = self._newest
        if newest is None or newest.response_complete or newest.more_body:
            return False
        newest.keep_alive = False
        for seconds in _PROBE_SECONDS:
            self.loop.call_later(seconds, self._probe)
        return True

    def _probe(self) -> None:
        """Asks, unless an answer is being written, or to a request before it, or to HTTP/1.0, which has no interim."""
        newest = self.cycle
        plain = not self.pipeline and not newest.response_started and newest.scope["http_version"] == "1.1"
        if plain and not self.transport.is_closing():
            self.transport.write(_INTERIM)

    def data_received(self, data: bytes) -> None:
        """Takes what the client has sent.

        uvicorn ends the time of an idle connection with the first byte of another request; here it ends with its head,
        or whoever sends half a head would be waited for without end.
        """
        self._idle += len(data)
        newest, ending = self.cycle, self.timeout_keep_alive_task
        self.timeout_keep_alive_task = None
        super().data_received(data)
        if ending is not None and self.cycle is newest:
            self.timeout_keep_alive_task = ending
        elif ending is not None:
            ending.cancel()
        if self._idle > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("")

    def on_body(self, body: bytes) -> None:
        """Takes a piece of a body."""
        self._idle = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Takes note that a request has been read."""
        self._idle = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own
        """Answers what is not HTTP, and closes the connection."""
        begun = getattr(self.cycle, "response_started", False) and not self.cycle.response_complete
        if not begun:  # else it would be taken for a part of the answer that is being written
            self.transport.write(_HEAD % len(_BODY) + _BODY)
        self.transport.close()
