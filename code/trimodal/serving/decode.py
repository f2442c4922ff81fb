"""Request bytes to rows: JSON, JSON lines, CSV and parquet, without knowing the model's fields."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from email.message import Message

from trimodal.errors import MalformedBody, UnsupportedMedia
from trimodal.limits import DEFAULT_LIMITS, Limits
from trimodal.records import Payload, Row
from trimodal.serving.parquet import decode_parquet

CSV_NULLS = frozenset(
    {
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
        "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
    }
)  # fmt: skip
"""Cells that mean "missing": the default `na_values` of `pandas.read_csv`, which wrote and read today's CSV."""

_LINE = re.compile(r"\S[^\n]*")
_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A JSON text, closed or not: one that ends with the body must match too, or every quote in it would be tried."""


def decode(body: bytes, content_type: str, limits: Limits = DEFAULT_LIMITS, *, report: bool = False) -> Payload:
    """Parses a request body.

    Args:
        body: the request's bytes.
        content_type: its media type; parameters and letter case do not matter.
        limits: what it may hold.
        report: a line that is no JSON object costs one record and not the request.

    Raises:
        UnsupportedMedia: the content type is unknown, or its charset is not UTF-8.
        MalformedBody: the body is empty, not what its content type says, or nested too deeply.
        PayloadTooLarge: it holds more records or values than allowed.
    """
    decoder = find_decoder(content_type)
    if not body.strip():
        raise MalformedBody("The request body is empty; send at least one record.")
    if report and decoder is decode_json_lines:
        return _decode_lines(_utf8(body), None, limits, report=True)
    return decoder(body, limits)


def find_decoder(content_type: str) -> Callable[[bytes, Limits], Payload]:
    """Returns the function that reads a content type.

    Raises:
        UnsupportedMedia: no function reads it.
    """
    header = Message()
    header["Content-Type"] = content_type
    decoder = DECODERS.get(header.get_content_type()) if "/" in content_type else None
    if decoder is None:
        raise UnsupportedMedia(f"This content type is not supported; send one of {', '.join(DECODERS)}.")
    charset = str(header.get_param("charset", "utf-8")).lower()
    if charset not in {"utf-8", "utf8", "us-ascii", "ascii"}:
        raise UnsupportedMedia("Only the charset utf-8 is supported.")
    return decoder


def decode_json(body: bytes, limits: Limits) -> Payload:
    """Reads one JSON object, a list, or JSON lines sent under the name of JSON, as many clients do."""
    text = _utf8(body)
    _check_values(text, limits)
    try:
        document = _parse(text, limits)
    except ValueError as err:
        if "\n" not in text.strip():
            raise MalformedBody(f"The body is not valid JSON: {_reason(err)}.") from err
        return _decode_lines(text, err, limits)
    if isinstance(document, dict):
        return Payload([document])
    if not isinstance(document, list):
        raise MalformedBody("The body must be a JSON object or a list of objects.")
    if not document:
        raise MalformedBody("The list of records is empty; send at least one record.")
    return Payload([_row(item, index) for index, item in enumerate(document)])


def decode_json_lines(body: bytes, limits: Limits) -> Payload:
    """Reads one JSON object a line; blank lines are skipped."""
    return _decode_lines(_utf8(body), None, limits)


def decode_csv(body: bytes, limits: Limits) -> Payload:
    """Reads CSV (RFC 4180) with or without a header; blank lines are skipped."""
    text = _utf8(body)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows: list[Row] = []
    cells = 0
    try:
        for line in csv.reader(io.StringIO(text, newline=""), strict=True):
            cells += len(line)
            if cells > limits.values:
                raise limits.too_many_values()
            if len(rows) > limits.records:  # the first may be a header
                raise limits.too_many_records()
            if line:
                rows.append([None if cell in CSV_NULLS else cell for cell in line])
    except csv.Error as err:
        raise MalformedBody(f"The body is not valid CSV: {err}.") from err
    if not rows:
        raise MalformedBody("The CSV body holds no record.")
    return Payload(rows, header_possible=True)


DECODERS: dict[str, Callable[[bytes, Limits], Payload]] = {
    "application/json": decode_json,
    "application/jsonlines": decode_json_lines,
    "application/x-ndjson": decode_json_lines,
    "application/jsonl": decode_json_lines,
    "text/csv": decode_csv,
    "application/x-parquet": decode_parquet,
    "application/vnd.apache.parquet": decode_parquet,
}
"""Media type to the function that reads it."""


def _utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise MalformedBody("The body is not valid UTF-8.") from err


def _check_values(text: str, limits: Limits) -> None:
    """Counts the values of a JSON text before any is made: `[],` becomes thirty times as large in memory.

    Raises:
        PayloadTooLarge: there are too many.
    """
    if _marks(text) > limits.values and _marks(_TEXT.sub("", text)) > limits.values:
        raise limits.too_many_values()


def _marks(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _parse(text: str, limits: Limits) -> object:
    """Parses JSON.

    Raises:
        ValueError: it is none.
        MalformedBody: it is nested too deeply.
    """
    try:
        document = json.loads(text)
    except RecursionError as err:
        raise _too_deep(limits) from err
    level = [document]
    for _ in range(limits.depth):
        level = [item for value in level for item in _children(value)]
        if not level:
            return document
    raise _too_deep(limits)


def _children(value: object) -> Iterator[object]:
    """Yields the lists and objects within a list or an object."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in items if isinstance(item, dict | list))


def _decode_lines(text: str, whole: ValueError | None, limits: Limits, *, report: bool = False) -> Payload:
    """Reads JSON lines.

    Args:
        text: the body.
        whole: why the body is not one JSON document, or None when it was announced as lines.
        limits: what it may hold.
        report: put an error in the place of a line that cannot be read.
    """
    _check_values(text, limits)
    rows: list[Row] = []
    number, seen = 1, 0
    for match in _LINE.finditer(text):
        if len(rows) == limits.records:
            raise limits.too_many_records()
        number, seen = number + text.count("\n", seen, match.start()), match.start()
        try:
            rows.append(_line(match[0], number, limits))
        except MalformedBody as err:
            if whole is not None and not rows and err.__cause__ is not None:
                raise MalformedBody(f"The body is not valid JSON: {_reason(whole)}.") from err
            if not report:
                raise
            rows.append(MalformedBody(str(err), record=len(rows)))
    if not rows:
        raise MalformedBody("The body holds no record.")
    return Payload(rows)


def _line(line: str, number: int, limits: Limits) -> Row:
    try:
        row = _parse(line, limits)
    except ValueError as err:
        raise MalformedBody(f"Line {number} is not valid JSON: {_reason(err)}.") from err
    if not isinstance(row, dict):
        raise MalformedBody(f"Line {number} is not a JSON object.")
    return row


def _row(item: object, index: int) -> Row:
    if isinstance(item, dict | list):
        return item
    raise MalformedBody("Each record of the list must be a JSON object.", record=index)


def _reason(err: ValueError) -> str:
    """Says what is wrong and where, without quoting the body."""
    if isinstance(err, json.JSONDecodeError):
        return f"{err.msg.removesuffix(' at')} at line {err.lineno} column {err.colno}"
    return "it holds a number with too many digits"


def _too_deep(limits: Limits) -> MalformedBody:
    return MalformedBody(
        f"The body is nested more than MAX_JSON_DEPTH={limits.depth} levels deep; send records of plain values."
    )
