"""How the front speaks HTTP: half-closed clients are answered, and what is not HTTP, in our form and unquoted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.web_protocol import RequestHandler

from trimodal.errors import InferenceFailed
from trimodal.servers.body import not_http
from trimodal.servers.limits import KEEP_ALIVE_SECONDS

logger = logging.getLogger(__name__)

BACKLOG = 1024

_SILENT = logging.getLogger("aiohttp.access")
_SILENT.disabled = True  # each request has a line of ours


class Connection(RequestHandler):
    """One connection of a client.

    Attributes:
        half_closed: the client sends no more, and waits for answers.
    """

    __slots__ = ("_newest", "half_closed")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.half_closed = False
        self._newest: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        """Reads requests, and remembers the body of the newest."""
        super().data_received(data)
        if self._messages:
            self._newest = self._messages[-1][1]

    # asyncio lets a protocol say whether its side stays open; aiohttp's says nothing, which is no
    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps our side open while a request that was sent whole is not answered."""
        idle = self._waiter is not None and not self._waiter.done()
        self.half_closed = not idle and self._newest is not None and self._newest.is_eof()
        return self.half_closed

    @property
    def ends(self) -> bool:
        """Whether no request comes after the one at hand."""
        return self.half_closed and not self._messages

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  aiohttp's, which quotes the request, its body too
    ) -> web.StreamResponse:
        """Answers what could not be read as a request, and closes the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        logger.warning("a request could not be read", extra={"cause": type(exc).__name__})
        error = InferenceFailed("The request could not be answered.") if status >= 500 else not_http()
        response = web.Response(status=error.status, body=error.to_json(), content_type="application/json")
        response.force_close()
        return response


@contextlib.asynccontextmanager
async def serving(app: web.Application, sock: socket.socket) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Serves an application on a socket; yields what stops accepting connections.

    Bodies are unpacked by `trimodal.servers.body`, so that both servers take and refuse the same.
    """
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    manager = cast("web.Server", runner.server)  # there since the set-up
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_tell)

    def connection() -> Connection:
        return Connection(
            manager, loop=loop, access_log=_SILENT, auto_decompress=False, keepalive_timeout=KEEP_ALIVE_SECONDS
        )

    # asyncio tries to accept as often as its backlog says, and where no descriptor is left each try is logged
    server = await loop.create_server(connection, sock=sock, backlog=1)
    sock.listen(BACKLOG)

    async def stop() -> None:
        server.close()

    try:
        yield stop
    finally:
        server.close()
        await runner.cleanup()


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what went wrong outside of any request: a connection that cannot be taken, in one line."""
    if isinstance(err := context.get("exception"), OSError):
        logger.error("%s", context["message"], extra={"cause": err.strerror})
    else:
        loop.default_exception_handler(context)
