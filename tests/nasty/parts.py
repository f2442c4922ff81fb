"""What hostile requests are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

JSON, LINES, CSV, PARQUET = "application/json", "application/jsonlines", "text/csv", "application/x-parquet"
CANARY = "sesame4711"
"""Stands in the texts of the records; no error may quote it."""

MB = 1_000_000
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Nasty:
    """One request.

    Attributes:
        body: its body.
        content_type: its media type.
        headers: more headers.
        statuses: which statuses its answer may have; empty for 200 and every 4xx.
    """

    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    statuses: tuple[int, ...] = ()


Make = Callable[[Record], Nasty]


def change(record: Record, field_name: str, literal: str | bytes) -> bytes:
    """Returns the record as JSON, one of its values written as given."""
    text = json.dumps({**record, field_name: "@MARK@"}).encode()
    return text.replace(b'"@MARK@"', literal.encode() if isinstance(literal, str) else literal)
