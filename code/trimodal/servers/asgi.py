"""The web application of `MODEL_SERVER=asgi`: one process, one model, many requests.

::

    bytes ─▶ body (bounded) ─▶ scheduler: decode, tokenize, score, encode on its threads ─▶ bytes, status

Everything that takes time runs on the scheduler's threads; the event loop reads and writes. What it does for each
request takes time from those threads, so requests for scores go past the framework's routes, and one that there is no
room for is refused before anything else is done for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import mms
from mms.context import Context, RequestProcessor
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from trimodal import __version__, log
from trimodal.errors import (
    InferenceFailed,
    InferenceTimeout,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    RequestError,
    RequestTimeout,
    TooManyRequests,
)
from trimodal.loading.hardware import libraries
from trimodal.servers.body import BodyReader
from trimodal.servers.docs import documentation
from trimodal.servers.limits import GONE, execution_parameters
from trimodal.servers.mms import Service, error_answer
from trimodal.servers.scheduler import Scheduler
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.typed import predict_steps
from trimodal.servers.workers import SHOWN
from trimodal.serving.steps import Alone, Steps
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

JSON = "application/json"

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
        self._refused = 0
        self._scoring = {"/invocations": self.invocations, "/predict": self.predict}
        self._starlette = Starlette(
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
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (the ASGI interface)."""
        scoring = self._scoring.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if scoring is None:
            await self._starlette(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = self._refusal() if self.scheduler.full else await scoring(request)
        except Exception as err:  # noqa: BLE001  the last place that can keep a traceback from the client
            response = await _failed(request, err)
        await response(scope, receive, send)

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
        headers = _headers(request.scope)
        content_type, accept = headers.get("content-type") or JSON, headers.get("accept") or "*/*"
        context = _context(self.settings, headers)

        def work(body: bytes, alone: Alone) -> Steps[tuple[bytes, str]]:
            return self.service.steps(body, content_type, accept, context, alone)

        return await self._logged(request, headers, work)

    async def predict(self, request: Request) -> Response:
        """Answers in the form that the OpenAPI document describes."""
        return await self._logged(request, _headers(request.scope), predict_steps(self.service.model))

    def _refusal(self) -> Response:
        """Answers a request that there is no room for; the log tells of all those of a second in one line."""
        if self._refused == 0:
            asyncio.get_running_loop().call_later(1.0, self._tell_refused)
        self._refused += 1
        error = self.scheduler.refusal()
        self.telemetry.request(error.code, 0.0)
        return self._retiring(_error(error))

    def _tell_refused(self) -> None:
        extra = {"status": TooManyRequests.status, "requests": self._refused}
        logger.warning("requests refused within a second", extra=extra)
        self._refused = 0

    async def _logged(self, request: Request, headers: Mapping[str, str], work: Work) -> Response:
        """Answers one request and leaves a line in the log."""
        started = time.perf_counter()
        log.request_id.set(log.identify(headers))
        self.in_flight += 1
        try:
            response, code = await self._answer(request, work)
        finally:
            self.in_flight -= 1
        milliseconds = round((time.perf_counter() - started) * 1000, 2)
        self.telemetry.request(code, milliseconds)
        size = int(length) if (length := headers.get("content-length")) else None
        logger.info("invocation", extra={"status": response.status_code, "milliseconds": milliseconds, "bytes": size})
        return self._retiring(response)

    async def _answer(self, request: Request, work: Work) -> tuple[Response, str | None]:
        """Returns the answer and the code of its error, or None."""
        try:
            content, media = await self._work(request, work)
        except ClientDisconnect:
            return Response(status_code=GONE), "client_gone"
        except Exception as err:  # noqa: BLE001  whatever a handler raises must not reach the client as it is
            status, error = error_answer(err)
            return _error(error, status), error.code
        return Response(content, media_type=None, headers={"content-type": media}), None

    async def _work(self, request: Request, work: Work) -> tuple[bytes, str]:
        timeout = self.settings.request_timeout
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                body = await self.reader.read(request)
        except TimeoutError as err:
            raise RequestTimeout(f"The body did not arrive within {timeout} seconds; send it faster.") from err
        waiting = time.perf_counter()

        def begun(alone: Alone) -> Steps[tuple[bytes, str]]:
            self.telemetry.recorder.record("QueueTime", (time.perf_counter() - waiting) * 1000)
            return (yield from work(body, alone))

        try:
            async with asyncio.timeout_at(deadline):
                return await _while_connected(request.receive, self.scheduler.run(begun))
        except TimeoutError as err:
            raise InferenceTimeout(f"No answer within {timeout} seconds; send fewer records.") from err
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
    task = asyncio.current_task()
    watching = asyncio.ensure_future(_disconnected(receive))
    waiting = True

    def gone(_: asyncio.Future[None]) -> None:
        if waiting and task is not None:
            task.cancel()

    watching.add_done_callback(gone)
    try:
        return await work
    except asyncio.CancelledError:
        if task is None or not watching.done():
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        waiting = False
        watching.cancel()


async def _disconnected(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return


def _headers(scope: Scope) -> dict[str, str]:
    """Returns a request's headers by their names in lower case; those that came several times joined by commas."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _context(settings: Settings, headers: Mapping[str, str]) -> Context:
    """Returns what handlers get as their last argument, as multi-model-server gives it."""
    context = Context("model", str(settings.model_dir), {}, 1, None, mms.__version__)
    context.request_processor = [RequestProcessor(dict(headers))]
    return context


def _error(error: RequestError, status: int | None = None) -> Response:
    headers = {"connection": "close"} if isinstance(error, RequestTimeout) else None
    return Response(error.to_json(), status or error.status, headers, media_type=JSON)


async def _not_found(_request: Request, _err: Exception) -> Response:
    return _error(NotFound("There is GET /ping and POST /invocations; GET /docs shows the rest."))


async def _not_allowed(_request: Request, err: Exception) -> Response:
    response = _error(MethodNotAllowed("This method is not allowed here."))
    if isinstance(err, HTTPException) and err.headers:
        allowed = {name.strip() for name in err.headers.get("Allow", "").split(",")}
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


async def _refused(_request: Request, err: Exception) -> Response:
    return _error(err if isinstance(err, RequestError) else MalformedBody("The request cannot be read."))


async def _failed(_request: Request, err: Exception) -> Response:
    logger.error("the server failed: %s", type(err).__name__)
    return _error(InferenceFailed("The request could not be answered."))
