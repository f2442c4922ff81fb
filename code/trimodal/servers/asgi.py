"""The web application of `MODEL_SERVER=asgi`: one process, one model, many requests.

::

    bytes ─▶ body (bounded) ─▶ scheduler: decode, tokenize, score, encode on its threads ─▶ bytes, status

Everything that takes time runs on the scheduler's threads; the event loop reads and writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import mms
from mms.context import Context, RequestProcessor
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive

from trimodal import __version__, log
from trimodal.errors import (
    InferenceFailed,
    InferenceTimeout,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    RequestError,
)
from trimodal.loading.hardware import libraries
from trimodal.servers.body import BodyReader
from trimodal.servers.docs import documentation
from trimodal.servers.limits import execution_parameters
from trimodal.servers.mms import Service, error_answer
from trimodal.servers.scheduler import Scheduler
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.typed import predict_steps
from trimodal.servers.workers import SHOWN
from trimodal.serving.steps import Alone, Steps
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

JSON = "application/json"
_GONE = 499
"""What the log says of a request whose client has gone before its answer (nginx's number)."""


T = TypeVar("T")
Work = Callable[[bytes, Alone], Steps[tuple[bytes, str]]]


class App:
    """Answers requests for one loaded model.

    Attributes:
        draining: SIGTERM has come.
        in_flight: requests that are not answered.
    """

    def __init__(
        self,
        settings: Settings,
        service: Service,
        scheduler: Scheduler,
        reader: BodyReader,
        telemetry: Telemetry,
    ) -> None:
        """Prepares the application.

        Args:
            settings: the container's settings.
            service: the loaded model and the functions that answer for it.
            scheduler: does the work.
            reader: reads bodies.
            telemetry: takes what is measured, and writes `/metrics` where that is asked for.
        """
        self.settings = settings
        self.service = service
        self.scheduler = scheduler
        self.reader = reader
        self.telemetry = telemetry
        self.versions = {"trimodal": __version__, **libraries()}
        self.draining = False
        self.in_flight = 0
        self.starlette = Starlette(
            routes=[
                Route("/ping", self.ping, methods=["GET"]),
                Route("/health", self.ping, methods=["GET"]),
                Route("/invocations", self.invocations, methods=["POST"]),
                Route("/predict", self.predict, methods=["POST"]),
                Route("/execution-parameters", self.parameters, methods=["GET"]),
                *documentation(service.model, settings),
                *([Route("/metrics", self.metrics, methods=["GET"])] if telemetry.metrics is not None else []),
            ],
            exception_handlers={404: _not_found, 405: _not_allowed, RequestError: _refused, Exception: _failed},
        )
        self.starlette.router.redirect_slashes = False

    async def ping(self, _request: Request) -> Response:
        """Answers 200 while requests are taken, else 503."""
        state = "draining" if self.draining else "ready" if self.scheduler.alive else "no worker"
        status = getattr(self.service.model, "status", {})
        facts = {key: status[key] for key in SHOWN if key in status}
        body = {"status": state, "workers": 1, **facts, "versions": self.versions}
        return self._retiring(JSONResponse(body, 200 if state == "ready" else 503))

    async def metrics(self, _request: Request) -> Response:
        """Answers what a Prometheus server asks for."""
        body, media = self.telemetry.metrics() if self.telemetry.metrics is not None else (b"", "text/plain")
        return self._retiring(Response(body, headers={"content-type": media}))

    async def parameters(self, _request: Request) -> Response:
        """Tells Batch Transform how to send its records."""
        return self._retiring(JSONResponse(execution_parameters(self.settings, self.scheduler.concurrency)))

    async def invocations(self, request: Request) -> Response:
        """Answers SageMaker's requests."""
        content_type = request.headers.get("content-type") or JSON
        accept = ", ".join(request.headers.getlist("accept")) or "*/*"
        context = _context(self.settings, request)

        def work(body: bytes, alone: Alone) -> Steps[tuple[bytes, str]]:
            return self.service.steps(body, content_type, accept, context, alone)

        return await self._logged(request, work)

    async def predict(self, request: Request) -> Response:
        """Answers in the form that the OpenAPI document describes."""
        return await self._logged(request, predict_steps(self.service.model))

    async def _logged(self, request: Request, work: Work) -> Response:
        """Answers one request and leaves a line in the log."""
        started = time.perf_counter()
        log.request_id.set(log.identify(request.headers))
        self.in_flight += 1
        try:
            response, code = await self._answer(request, work)
        finally:
            self.in_flight -= 1
        milliseconds = round((time.perf_counter() - started) * 1000, 2)
        self.telemetry.request(code, milliseconds)
        size = int(length) if (length := request.headers.get("content-length")) else None
        logger.info("invocation", extra={"status": response.status_code, "milliseconds": milliseconds, "bytes": size})
        return self._retiring(response)

    async def _answer(self, request: Request, work: Work) -> tuple[Response, str | None]:
        """Returns the answer and the code of its error, or None."""
        timeout = self.settings.request_timeout
        try:
            async with asyncio.timeout(timeout):
                content, media = await self._work(request, work)
        except ClientDisconnect:
            return Response(status_code=_GONE), "client_gone"
        except TimeoutError:
            late = InferenceTimeout(f"No answer within {timeout} seconds; send fewer records.")
            return _error(late), late.code
        except Exception as err:  # noqa: BLE001  whatever a handler raises must not reach the client as it is
            status, error = error_answer(err)
            return _error(error, status), error.code
        return Response(content, media_type=None, headers={"content-type": media}), None

    async def _work(self, request: Request, work: Work) -> tuple[bytes, str]:
        self.scheduler.check()
        body = await self.reader.read(request)
        waiting = time.perf_counter()

        def begun(alone: Alone) -> Steps[tuple[bytes, str]]:
            self.telemetry.recorder.record("QueueTime", (time.perf_counter() - waiting) * 1000)
            return (yield from work(body, alone))

        try:
            return await _while_connected(request.receive, self.scheduler.run(begun))
        finally:
            self.reader.release(len(body))

    def _retiring(self, response: Response) -> Response:
        """Tells clients, once draining, not to send another request on their connection."""
        if self.draining:
            response.headers["connection"] = "close"
        return response


async def _while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Waits for work, and gives it up when the client has gone.

    Raises:
        ClientDisconnect: it has.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await watching


async def _disconnected(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return


def _context(settings: Settings, request: Request) -> Context:
    """Returns what handlers get as their last argument, as multi-model-server gives it."""
    context = Context("model", str(settings.model_dir), {}, 1, None, mms.__version__)
    context.request_processor = [RequestProcessor(dict(request.headers))]
    return context


def _error(error: RequestError, status: int | None = None) -> Response:
    return Response(error.to_json(), status or error.status, media_type=JSON)


async def _not_found(_request: Request, _err: Exception) -> Response:
    return _error(NotFound("There is GET /ping and POST /invocations; GET /docs shows the rest."))


async def _not_allowed(_request: Request, err: Exception) -> Response:
    response = _error(MethodNotAllowed("This method is not allowed here."))
    if isinstance(err, HTTPException) and err.headers:
        allowed = {name.strip() for name in err.headers.get("Allow", "").split(",")} - {"HEAD"}
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


async def _refused(_request: Request, err: Exception) -> Response:
    return _error(err if isinstance(err, RequestError) else MalformedBody("The request cannot be read."))


async def _failed(_request: Request, err: Exception) -> Response:
    logger.error("the server failed: %s", type(err).__name__)
    return _error(InferenceFailed("The request could not be answered."))
