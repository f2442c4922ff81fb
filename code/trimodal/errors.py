"""Every error that the container raises on purpose, in one tree; the HTTP status stands on the class.

::

    TrimodalError
    ├── StartupError               the process ends with exit status 1 and this message
    │   ├── SettingsError          an environment variable has a bad value
    │   └── ArtifactError          a file of the model directory is missing, unreadable or contradictory
    ├── OptimizationError          a step of the cold start failed; it goes on at a lower level
    ├── DatasetError               a data set cannot be scored, or a part of it
    └── RequestError               answered as {"error": {"code", "message", "record"}}
        ├── MalformedBody      400 the body is not what its content type says
        ├── NotFound           404 no such path
        ├── MethodNotAllowed   405 the path is there, the method is not
        ├── NotAcceptable      406 no representation that `Accept` allows
        ├── RequestTimeout     408 the body did not arrive in time
        ├── AlreadyLoaded      409 a model of that name is loaded
        ├── PayloadTooLarge    413 more bytes, records or values than the container takes
        ├── UnsupportedMedia   415 unknown content type
        ├── InvalidRecord      422 one record cannot be scored; names record and field
        ├── ModelUnusable      422 a model directory cannot be served; says why
        ├── TooManyRequests    429 more requests wait than the container takes; says when to try again
        ├── InferenceFailed    500 the model failed; no detail leaves the container
        ├── Unavailable        503 no worker can take the request now
        ├── InferenceTimeout   504 the model did not answer in time
        └── OutOfMemory        507 there is no memory for another model
"""

from __future__ import annotations

import json
import re
from typing import ClassVar

_SIGNS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class TrimodalError(Exception):
    """Base of every error raised on purpose; its text is safe to show, and one line whatever names stand in it."""

    def __str__(self) -> str:
        return _SIGNS.sub("\ufffd", super().__str__())


class StartupError(TrimodalError):
    """The container cannot start; the text says what to fix."""


class SettingsError(StartupError):
    """An environment variable holds a value that cannot be used."""


class ArtifactError(StartupError):
    """A file of the model directory cannot be used; the text names the file and the remedy."""


class OptimizationError(TrimodalError):
    """A step of the optimization cannot be done or failed; the start goes on at a lower level."""


class DatasetError(TrimodalError):
    """A data set, or a part of it, cannot be scored; the text says what to fix."""


class RequestError(TrimodalError):
    """A request that gets an error answer.

    Attributes:
        status: HTTP status of the answer.
        code: short machine-readable name of the error.
        record: index of the offending record, counted from 0, or None when it is not one record's fault.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"

    def __init__(self, message: str, *, record: int | None = None) -> None:
        super().__init__(message)
        self.record = record

    def to_dict(self) -> dict[str, object]:
        """Returns the error in plain values."""
        return {"error": {"code": self.code, "message": str(self), "record": self.record}}

    def to_json(self) -> bytes:
        """Returns the body of the error's answer, always JSON."""
        return json.dumps(self.to_dict()).encode()


class MalformedBody(RequestError):
    """The body cannot be parsed as its content type."""

    status, code = 400, "malformed_body"


class NotFound(RequestError):
    """There is nothing under this path."""

    status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    """The path does not take this method."""

    status, code = 405, "method_not_allowed"


class NotAcceptable(RequestError):
    """None of the media types in `Accept` can be produced."""

    status, code = 406, "not_acceptable"


class RequestTimeout(RequestError):
    """The client did not send its whole request in time."""

    status, code = 408, "request_timeout"


class AlreadyLoaded(RequestError):
    """A model of that name is loaded."""

    status, code = 409, "already_loaded"


class PayloadTooLarge(RequestError):
    """The request holds more than the container takes."""

    status, code = 413, "payload_too_large"


class UnsupportedMedia(RequestError):
    """The content type is not one that the container reads."""

    status, code = 415, "unsupported_content_type"


class InvalidRecord(RequestError):
    """A record lacks a field or holds a value that cannot be scored."""

    status, code = 422, "invalid_record"


class ModelUnusable(RequestError):
    """A model directory cannot be served; the text says what to fix."""

    status, code = 422, "model_unusable"


class TooManyRequests(RequestError):
    """As many requests wait as may wait; trying again later helps."""

    status, code = 429, "too_many_requests"


class InferenceFailed(RequestError):
    """The model failed; the cause is in the log, never in the answer."""

    status, code = 500, "inference_failed"


class Unavailable(RequestError):
    """No worker can take the request now; trying again later may help."""

    status, code = 503, "unavailable"


class InferenceTimeout(RequestError):
    """The model did not answer in time."""

    status, code = 504, "timeout"


class OutOfMemory(RequestError):
    """There is no memory for another model; unloading one helps."""

    status, code = 507, "out_of_memory"
