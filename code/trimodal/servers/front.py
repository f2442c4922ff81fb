"""The front of multi-model-server: owns the public port, and does what that server cannot.

It opens the port only when the workers are ready, tells the truth on `/ping`, bounds size and time, answers every
error in one JSON form, and lets requests in flight finish before the container ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDict, CIMultiDictProxy

from trimodal.errors import (
    InferenceFailed,
    InferenceTimeout,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestError,
    RequestTimeout,
    Unavailable,
)
from trimodal.log import identify, request_id
from trimodal.servers.body import too_large, unpacked
from trimodal.servers.front_protocol import Connection
from trimodal.servers.limits import GONE
from trimodal.servers.workers import ANSWERED, CODE, REQUEST_ID, SENT, SHOWN

logger = logging.getLogger(__name__)

JSON = "application/json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Measure = Callable[[str | None, float], None]

_NOT_FORWARDED = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
        "upgrade", "host", "content-length", "content-encoding", "expect", ANSWERED, CODE,
        REQUEST_ID, SENT,
    }
)  # fmt: skip
"""Headers that belong to one connection (RFC 9110, section 7.6.1), or that are set anew."""

_MAX_HEADERS = 7680
"""Bytes of the headers that are passed on; the model server takes 8192 with ours, and answers 5xx to more."""

_AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent")


class Front:
    """Forwards `/invocations` to the model server and answers everything else.

    Attributes:
        usage: what it tells a client that asks for another path.
    """

    usage = "There is only GET /ping and POST /invocations."

    def __init__(
        self,
        upstream: str,
        max_payload: int,
        timeout: int,
        ready: Callable[[], int],
        served: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        """Prepares the front.

        Args:
            upstream: address of the model server, such as `http://127.0.0.1:9001`.
            max_payload: bytes of the largest request body.
            timeout: seconds that a request may take.
            ready: tells how many workers can answer.
            served: tells what they serve, see `trimodal.loading.selection`.
        """
        self.upstream = upstream
        self.max_payload = max_payload
        self.timeout = timeout
        self.ready = ready
        self.served = served
        self.measure: Measure = lambda _code, _milliseconds: None
        self.metrics: Callable[[], tuple[bytes, str]] | None = None
        self.parameters: Mapping[str, object] = {}
        """The answer to `/execution-parameters`."""
        self.draining = False
        self.in_flight = 0

    def observe(self, measure: Measure, metrics: Callable[[], tuple[bytes, str]] | None) -> None:
        """Has requests measured (code of the error or None, milliseconds), and `/metrics` shown by what writes it."""
        self.measure = measure
        self.metrics = metrics

    def application(self) -> web.Application:
        """Returns the web application."""
        app = web.Application(client_max_size=self.max_payload, middlewares=[self._json_errors])
        app.on_response_prepare.append(self._retire_connection)
        app.router.add_get("/ping", self.ping)
        if self.metrics is not None:
            app.router.add_get("/metrics", self.show_metrics)
        self.add_routes(app.router)
        app.cleanup_ctx.append(self._client)
        return app

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Adds the paths that depend on what is served."""
        router.add_get("/execution-parameters", self.execution_parameters)
        router.add_post("/invocations", self.invocations, expect_handler=self.expect)

    async def _client(self, app: web.Application) -> AsyncIterator[None]:
        timeout = ClientTimeout(total=self.timeout)
        async with ClientSession(timeout=timeout, connector=TCPConnector(limit=0)) as session:
            app[_SESSION] = session
            yield

    async def _retire_connection(self, request: web.Request, response: web.StreamResponse) -> None:
        """Closes a connection after the last request on it: once draining, or when the client sends no more."""
        if self.draining or (isinstance(request.protocol, Connection) and request.protocol.ends):
            response.force_close()
            response.headers["Connection"] = "close"

    async def expect(self, request: web.Request) -> None:
        """Asks for the body where the client waits for that; other expectations are ignored."""
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def ping(self, _request: web.Request) -> web.Response:
        """Answers 200 while at least one worker holds a loaded model, else 503."""
        workers = self.ready()
        state = "draining" if self.draining else "ready" if workers else "no worker"
        status = 200 if state == "ready" else 503
        served = self.served()
        facts = {key: served[key] for key in SHOWN if key in served}
        return web.json_response({"status": state, "workers": workers, **facts}, status=status)

    async def execution_parameters(self, _request: web.Request) -> web.Response:
        """Tells Batch Transform how to send its records."""
        return web.json_response(dict(self.parameters))

    async def invocations(self, request: web.Request) -> web.Response:
        """Forwards one request and its answer."""

        async def work() -> web.Response:
            return await self.forward(request, await self.body(request), f"{self.upstream}/invocations")

        return await self.answered(request, work, self.measure)

    async def answered(
        self, request: web.Request, work: Callable[[], Awaitable[web.Response]], measure: Measure, **facts: object
    ) -> web.Response:
        """Answers a request to a model: measures it, and leaves a line in the log.

        Args:
            request: the request.
            work: answers it.
            measure: takes the code of its error, or None, and milliseconds.
            facts: stand in the log too.
        """
        started = time.perf_counter()
        request_id.set(identify(request.headers))
        self.in_flight += 1
        try:
            response = await work()
        except RequestError as err:
            response = _error(err)
        except ConnectionResetError:
            response = web.Response(status=GONE)
            response[_CODE] = "client_gone"
        finally:
            self.in_flight -= 1
        milliseconds = round((time.perf_counter() - started) * 1000, 2)
        code = None if response.status < 400 else response.get(_CODE) or "handler_error"
        measure(code, milliseconds)
        extra = {"status": response.status, "milliseconds": milliseconds, "bytes": request.content_length, **facts}
        logger.info("invocation", extra=extra)
        return response

    async def show_metrics(self, _request: web.Request) -> web.Response:
        """Answers what a Prometheus server asks for."""
        body, media = self.metrics() if self.metrics is not None else (b"", "text/plain")
        return web.Response(body=body, headers={"Content-Type": media})

    async def body(self, request: web.Request) -> bytes:
        """Reads a request's body, unpacked.

        Raises:
            PayloadTooLarge: it is larger than may be.
            MalformedBody: it is not encoded as its headers say.
            UnsupportedMedia: its coding is unknown.
            RequestTimeout: it does not arrive in time.
        """
        if (request.content_length or 0) > self.max_payload:
            raise too_large(self.max_payload)
        body = bytearray()
        coding = request.headers.get("Content-Encoding", "")
        try:
            async with asyncio.timeout(self.timeout):
                async for chunk in unpacked(request.content.iter_any(), coding, self.max_payload):
                    body += chunk
                    if len(body) > self.max_payload:
                        raise too_large(self.max_payload)
        except TimeoutError as err:
            raise RequestTimeout(f"The body did not arrive within {self.timeout} seconds; send it faster.") from err
        except RequestPayloadError as err:
            raise MalformedBody("The body does not match its Transfer-Encoding.") from err
        return bytes(body)

    async def forward(self, request: web.Request, body: bytes, url: str) -> web.Response:
        """Sends a request to the model server, and returns a worker's answer.

        Raises:
            InferenceTimeout: it takes too long.
            Unavailable, InferenceFailed, PayloadTooLarge: no worker has answered.
        """
        headers = _forwarded(request.headers)
        if sum(len(name) + len(value) + 4 for name, value in headers.items()) > _MAX_HEADERS:
            raise MalformedBody(f"The headers are larger than {_MAX_HEADERS} bytes; send fewer.")
        headers.setdefault("Content-Type", JSON)
        headers[REQUEST_ID] = request_id.get()
        headers[SENT] = f"{time.monotonic():.6f}"
        try:
            async with request.app[_SESSION].post(
                url, data=body, headers=headers, skip_auto_headers=_AUTOMATIC
            ) as answer:
                content = await answer.read()
        except TimeoutError as err:
            raise InferenceTimeout(f"No answer within {self.timeout} seconds; send fewer records.") from err
        except ClientError as err:
            raise Unavailable("The model server does not answer; try again later.") from err
        if ANSWERED not in answer.headers:
            raise _server_error(answer.status)
        response = web.Response(status=answer.status, body=content, headers=_forwarded(answer.headers))
        response[_CODE] = answer.headers.get(CODE, "")
        return response

    @web.middleware
    async def _json_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers every error as JSON."""
        try:
            return await handler(request)
        except RequestError as err:
            return _error(err)
        except web.HTTPMethodNotAllowed as err:
            response = _error(MethodNotAllowed("This method is not allowed here."))
            response.headers["Allow"] = ", ".join(sorted(err.allowed_methods))
            return response
        except web.HTTPNotFound:
            return _error(NotFound(self.usage))
        except Exception as err:  # noqa: BLE001  the last place that can keep a traceback from the client
            logger.error("the front failed: %s", type(err).__name__)  # noqa: TRY400  its text may quote the request
            return _error(InferenceFailed("The request could not be answered."))


_SESSION = web.AppKey("session", ClientSession)
_CODE = web.ResponseKey("code", str)


def _forwarded(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _NOT_FORWARDED)


def _server_error(status: int) -> RequestError:
    """Turns an error of the model server itself into one of ours."""
    logger.error("the model server answered by itself", extra={"status": status})
    if status == PayloadTooLarge.status:
        return PayloadTooLarge("The body is too large; send fewer records.")
    if status in (503, 507):
        return Unavailable("Every worker is busy and the queue is full; try again later.")
    return InferenceFailed("The worker ended while it answered; try again.")


def _error(error: RequestError) -> web.Response:
    response = web.Response(status=error.status, body=error.to_json(), content_type=JSON)
    if isinstance(error, RequestTimeout):
        response.force_close()
    response[_CODE] = error.code
    return response
