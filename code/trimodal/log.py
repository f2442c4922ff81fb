"""The log: one JSON object a line on stdout, never a request's content."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

_NOISE = frozenset({"Backend worker process died."})
"""What multi-model-server's worker logs, with a traceback, when it ends for whatever reason: we have said why."""


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
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("mms").setLevel(logging.WARNING)  # the model server's worker logs a metric a request
