"""The log: one JSON object a line on stdout, never a request's content."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

_NOISE = frozenset({"Backend worker process died.", "Frontend disconnected."})
"""What multi-model-server's worker logs, once with a traceback, when it ends for whatever reason: we have said why."""

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request at hand; it stands in every line that the request causes."""


def configure(level: str, stream: TextIO | None = None) -> None:
    """Sends every logger to a stream as JSON lines.

    Args:
        level: name of the lowest level that is written.
        stream: where to, stdout by default; a command that prints an answer there takes stderr.
    """
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    )
    handler.addFilter(lambda record: record.msg not in _NOISE)
    handler.addFilter(_identify)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("mms").setLevel(logging.WARNING)  # the model server's worker logs a metric a request


def write_line(line: str) -> None:
    """Writes a line that is JSON already to where the log goes, whole, whatever other threads write."""
    handler = next((handler for handler in logging.getLogger().handlers if isinstance(handler, _HANDLER)), None)
    if handler is None:
        sys.stdout.write(line + "\n")
        return
    handler.acquire()
    try:
        handler.stream.write(line + handler.terminator)
        handler.flush()
    finally:
        handler.release()


def relay(lines: Iterable[bytes], name: str) -> None:
    """Writes another process's output to the log: JSON lines as they are, others as the message of one.

    Args:
        lines: the output.
        name: the logger under which lines that are not JSON stand.
    """
    logger = logging.getLogger(name)
    for line in lines:
        text = line.decode("utf-8", errors="replace").strip()
        if _is_json(text):
            write_line(text)
        elif text:
            logger.info("%s", text)


_HANDLER = logging.StreamHandler


def _is_json(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def identify(headers: Mapping[str, str]) -> str:
    """Returns the id that a request brings, or a new one; what does not look like an id is not logged.

    Args:
        headers: the request's, by names in lower case or in any.
    """
    brought = (headers.get(name, "") for name in _IDENTITIES)
    return next((name for name in brought if _IDENTITY.fullmatch(name)), None) or uuid.uuid4().hex


_IDENTITIES = ("x-amzn-sagemaker-inference-id", "x-amzn-requestid", "x-request-id")
"""Headers that name a request, the best first."""

_IDENTITY = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}")


def _identify(record: logging.LogRecord) -> bool:
    """Adds the request's id to a line; filters nothing out."""
    if identity := request_id.get():
        record.request_id = identity
    return True
