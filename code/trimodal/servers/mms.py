"""What a multi-model-server worker runs: loads the model once, answers each request of a batch on its own.

Keeps the contract of sagemaker-inference's `Transformer` (four functions, called by parameter count, a user's module
instead of ours), and not its behaviour: every request has its own status, media types may carry parameters, errors
are JSON without a traceback, and a failed load is visible.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

from sagemaker_inference.errors import BaseInferenceToolkitError

import inference
from trimodal import log
from trimodal.errors import InferenceFailed, MalformedBody, RequestError, TrimodalError
from trimodal.loading.load import open_reference
from trimodal.loading.task import expendable
from trimodal.metrics.channel import CHANNEL, Sender
from trimodal.metrics.instrumented import measured, timed
from trimodal.metrics.instruments import Recorder
from trimodal.metrics.shadow import shadowed
from trimodal.servers.handlers import Handler, call, find_handlers
from trimodal.servers.workers import ANSWERED, CODE, REQUEST_ID, SENT, WorkerReport
from trimodal.serving.encode import JSON, negotiate
from trimodal.serving.pipeline import Pipeline
from trimodal.serving.steps import Alone, Steps, always, finish
from trimodal.settings import Settings

logger = logging.getLogger(__name__)


class Service:
    """One loaded model and the functions that answer for it."""

    def __init__(self, settings: Settings, model_dir: Path, context: object, recorder: Recorder | None = None) -> None:
        """Loads the model.

        Args:
            settings: the container's settings.
            model_dir: the model directory.
            context: the model server's context.
            recorder: takes the measurements of this process, or None.

        Raises:
            StartupError: it cannot be loaded.
        """
        started = time.perf_counter()
        self.default_accept = settings.default_accept
        self.timeout = settings.request_timeout
        self.stuck_after = settings.stuck_after
        handlers = self.handlers = find_handlers(model_dir, settings.program)
        if handlers.pre_model_fn is not None:
            _run("pre_model_fn", handlers.pre_model_fn, str(model_dir), context=context)
        self.model = _run("model_fn", handlers.model_fn, str(model_dir), context=context)
        if handlers.model_warmup_fn is not None:
            _run("model_warmup_fn", handlers.model_warmup_fn, str(model_dir), self.model, context=context)
        self.recorder = recorder
        if recorder is not None:
            self._measure(replace(settings, model_dir=model_dir), recorder)
        logger.info("model loaded and warmed up", extra={"seconds": round(time.perf_counter() - started, 3)})

    def _measure(self, settings: Settings, recorder: Recorder) -> None:
        """Wraps the model, where it is ours, and the handlers before and after it."""
        if isinstance(self.model, Pipeline):
            inside = measured(self.model, recorder)
            self.model = shadowed(inside, recorder, settings.shadow_rate, lambda: open_reference(settings))
        self.handlers = replace(
            self.handlers,
            input_fn=timed(self.handlers.input_fn, "decode", recorder),
            output_fn=timed(self.handlers.output_fn, "encode", recorder),
        )

    def answer(
        self, body: bytes | str, content_type: str, accept: str, context: object, begun: float | None = None
    ) -> tuple[bytes, str]:
        """Answers one request; returns the body and its media type.

        Raises:
            InferenceTimeout: the client waits no more: it sent the request at `begun`, seconds of the monotonic clock.
        """
        deadline = (time.monotonic() if begun is None else begun) + self.timeout
        return finish(self.steps(body, content_type, accept, context, always), deadline)

    def steps(
        self, body: bytes | str, content_type: str, accept: str, context: object, alone: Alone
    ) -> Steps[tuple[bytes, str]]:
        """Answers one request in slices; what a user's handlers do is one slice."""
        handlers = self.handlers
        if accept in ("", "*/*"):
            accept = self.default_accept
        if handlers.own_input and isinstance(body, bytes) and _is_text(content_type):
            body = _utf8(body)
        if handlers.transform_fn is not None:
            result = call(handlers.transform_fn, self.model, body, content_type, accept, context=context)
        else:
            data = call(handlers.input_fn, body, content_type, context=context)
            if not handlers.own_output:
                negotiate(accept, self.default_accept)  # before the model runs for nothing
            if handlers.predict_fn is inference.predict_fn and isinstance(self.model, Pipeline):
                prediction = yield from self.model.steps(data, alone)
            else:
                prediction = call(handlers.predict_fn, data, self.model, context=context)
            result = call(handlers.output_fn, prediction, accept, context=context)
        content, media = result if isinstance(result, tuple) else (result, accept)
        return (content.encode() if isinstance(content, str) else bytes(content)), media


def _run(name: str, function: Handler, *arguments: object, context: object) -> Any:
    """Calls one of the functions that load a model; an error bears the function's name as a note."""
    try:
        return call(function, *arguments, context=context)
    except Exception as err:
        err.add_note(name)
        raise


_services: dict[str, Service] = {}
"""Model directory to its loaded model: a worker serves one."""


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """Answers a batch of requests; called once with `None` at load.

    Args:
        data: one dict per request, its body under `"body"`.
        context: the model server's context.

    Returns:
        One body per request, its status and headers set on the context.
    """
    model_dir = Path(context.system_properties["model_dir"])
    if data is None:
        _load(model_dir, context)
        return None
    service = _services[str(model_dir)]
    signal.setitimer(signal.ITIMER_REAL, service.stuck_after)
    try:
        return [_answer(service, index, request, context) for index, request in enumerate(data)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _load(model_dir: Path, context: Any) -> None:
    """Loads the model and reports the outcome to the process that started the server.

    Raises:
        TrimodalError: the model cannot be loaded; the model server gives the worker up.
    """
    settings = Settings.from_environment(os.environ)
    log.configure(settings.log_level)
    if settings.multi_model and settings.run_dir is not None:
        settings = replace(settings, run_dir=settings.run_dir / context.model_name)
        os.environ["TRIMODAL_RUN_DIR"] = str(settings.run_dir)  # inference.py reads it too
    report = WorkerReport(settings.run_dir)
    sender = Sender(settings.run_dir / CHANNEL) if settings.run_dir is not None and settings.metrics_sinks else None
    try:
        with expendable() if settings.multi_model else nullcontext():  # a load that does not fit costs no other model
            _services[str(model_dir)] = Service(settings, model_dir, context, sender)
    except TrimodalError as err:
        report.failed(str(err))
        raise
    except Exception as err:
        logger.exception("the model cannot be loaded")
        step = getattr(err, "__notes__", ["loading"])[-1]
        report.failed(f"{step} failed: {type(err).__name__}: {err}")
        raise
    _die_when_stuck()
    report.ready(getattr(_services[str(model_dir)].model, "status", {}))


def _die_when_stuck() -> None:
    """Has SIGALRM say on stderr where the process is, and end it: also where native code keeps the interpreter.

    The model server would wait as long as for a load, because it has one limit for both; meanwhile nobody answers.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, 2, all_threads=False, chain=True)


def _answer(service: Service, index: int, request: dict[str, Any], context: Any) -> bytes:
    headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
    content_type = str(headers.get("content-type") or JSON)
    accept = str(headers.get("accept") or "*/*")
    log.request_id.set(str(headers.get(REQUEST_ID, "")))
    sent = float(headers[SENT]) if SENT in headers else None
    if service.recorder is not None and sent is not None:
        service.recorder.record("QueueTime", max(0.0, (time.monotonic() - sent) * 1000))
    status = 200
    try:
        content, media = service.answer(_body(request), content_type, accept, context, sent)
    except Exception as err:  # noqa: BLE001  whatever a user's handler raises must not reach the other requests
        status, error = error_answer(err)
        content, media = error.to_json(), JSON
        context.set_response_header(index, CODE, error.code)
    context.set_response_status(code=status, phrase=_phrase(status), idx=index)
    context.set_response_header(index, "content-type", media)
    context.set_response_header(index, ANSWERED, "1")
    return content


def _body(request: dict[str, Any]) -> bytes:
    """Returns a request's bytes, which the model server hands on as they are or, for a form, not at all."""
    body = request.get("body", b"")
    return body.encode() if isinstance(body, str) else bytes(body or b"")


def _is_text(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in ("application/json", "text/csv")


def _utf8(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as err:
        raise MalformedBody("The body is not valid UTF-8.") from err


def error_answer(err: Exception) -> tuple[int, RequestError]:
    """Turns whatever a handler raised into a status and an error that may be shown."""
    error = _request_error(err)
    return (int(err.status_code) if isinstance(err, BaseInferenceToolkitError) else error.status), error


def _request_error(err: Exception) -> RequestError:
    if isinstance(err, RequestError):
        return err
    if isinstance(err, BaseInferenceToolkitError):
        return _UserError(str(err.message))
    place = traceback.extract_tb(err.__traceback__)[-1]  # the text of the error may quote the request
    logger.error("a handler failed: %s in %s line %s", type(err).__name__, place.name, place.lineno)
    return InferenceFailed("The model failed on this request.")


class _UserError(RequestError):
    """An error that a user's handler raised on purpose, with a status of its own."""

    code = "handler_error"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
