"""How `MODEL_SERVER=asgi` speaks HTTP: errors of the protocol in our form, and a head of bounded size."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trimodal.servers.body import not_http

MAX_HEAD = 64 * 1024
"""Bytes of a request's line and headers, and of what stands between two pieces of its body or after the last."""


_BODY = not_http().to_json()
_HEAD = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


class Protocol(HttpToolsProtocol):
    """One connection of a client.

    The parser keeps a header until it ends, however long it is; so what comes without adding to a body, or ending a
    request, is counted.
    """

    _idle = 0

    def data_received(self, data: bytes) -> None:
        """Takes what the client has sent."""
        self._idle += len(data)
        super().data_received(data)
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
