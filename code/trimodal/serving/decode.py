"""Request bytes to rows: JSON, JSON lines, CSV and parquet, without knowing the model's fields."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from email.message import Message
from typing import Any

from trimodal.errors import MalformedBody, PayloadTooLarge, UnsupportedMedia
from trimodal.records import Payload, Row

MAX_PARQUET_BYTES = 256 * 1024 * 1024
"""Size in memory of a parquet body that is still read; a small file can expand to gigabytes."""

MAX_PARQUET_ROWS = 100_000
PARQUET_BATCH = 16
"""Rows that are expanded before the size is looked at again: a dictionary holds a long text once for all rows."""

CSV_NULLS = frozenset(
    {
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
        "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
    }
)  # fmt: skip
"""Cells that mean "missing": the default `na_values` of `pandas.read_csv`, which wrote and read today's CSV."""


def decode(body: bytes, content_type: str, *, report: bool = False) -> Payload:
    """Parses a request body.

    Args:
        body: the request's bytes.
        content_type: its media type; parameters and letter case do not matter.
        report: a line that is no JSON object costs one record and not the request.

    Raises:
        UnsupportedMedia: the content type is unknown, or its charset is not UTF-8.
        MalformedBody: the body is empty or not what its content type says.
        PayloadTooLarge: a parquet file of more than `MAX_PARQUET_BYTES` or `MAX_PARQUET_ROWS`.
    """
    decoder = find_decoder(content_type)
    if not body.strip():
        raise MalformedBody("The request body is empty; send at least one record.")
    if report and decoder is decode_json_lines:
        return _decode_lines(_utf8(body), None, report=True)
    return decoder(body)


def find_decoder(content_type: str) -> Callable[[bytes], Payload]:
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


def decode_json(body: bytes) -> Payload:
    """Reads one JSON object, a list, or JSON lines sent under the name of JSON, as many clients do."""
    text = _utf8(body)
    try:
        document = _parse(text)
    except ValueError as err:
        if "\n" not in text.strip():
            raise MalformedBody(f"The body is not valid JSON: {_reason(err)}.") from err
        return _decode_lines(text, err)
    if isinstance(document, dict):
        return Payload([document])
    if not isinstance(document, list):
        raise MalformedBody("The body must be a JSON object or a list of objects.")
    if not document:
        raise MalformedBody("The list of records is empty; send at least one record.")
    return Payload([_row(item, index) for index, item in enumerate(document)])


def decode_json_lines(body: bytes) -> Payload:
    """Reads one JSON object a line; blank lines are skipped."""
    return _decode_lines(_utf8(body), None)


def decode_csv(body: bytes) -> Payload:
    """Reads CSV (RFC 4180) with or without a header; blank lines are skipped."""
    text = _utf8(body)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as err:
        raise MalformedBody(f"The body is not valid CSV: {err}.") from err
    if not lines:
        raise MalformedBody("The CSV body holds no record.")
    rows = [[None if cell in CSV_NULLS else cell for cell in line] for line in lines]
    return Payload(rows, header_possible=True)


def decode_parquet(body: bytes) -> Payload:
    """Reads a parquet file, one record a row; columns count by name."""
    import pyarrow as pa
    from pyarrow import parquet

    rows: list[Row] = []
    size = 0
    try:
        file = parquet.ParquetFile(pa.BufferReader(body))
        for batch in file.iter_batches(batch_size=PARQUET_BATCH, use_threads=False):
            size += _expanded_bytes(batch)
            if size > MAX_PARQUET_BYTES or len(rows) + len(batch) > MAX_PARQUET_ROWS:
                raise PayloadTooLarge(
                    f"The parquet file holds more than {MAX_PARQUET_BYTES} bytes or {MAX_PARQUET_ROWS} rows; split it."
                )
            rows += batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as err:
        raise MalformedBody("The body is not a readable parquet file.") from err
    if not rows:
        raise MalformedBody("The parquet file holds no record.")
    return Payload(rows)


def _expanded_bytes(batch: Any) -> int:
    """Returns an upper bound of a batch's size as Python values: a dictionary holds a text once for all rows."""
    return sum(c.nbytes * (len(batch) if "dictionary" in str(c.type) else 1) for c in batch.columns)


DECODERS: dict[str, Callable[[bytes], Payload]] = {
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


def _parse(text: str) -> object:
    """Parses JSON; `RecursionError` of a deeply nested body becomes a `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err


def _decode_lines(text: str, whole: ValueError | None, *, report: bool = False) -> Payload:
    """Reads JSON lines.

    Args:
        text: the body.
        whole: why the body is not one JSON document, or None when it was announced as lines.
        report: put an error in the place of a line that cannot be read.
    """
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_line(line, number))
        except MalformedBody as err:
            if whole is not None and not rows and err.__cause__ is not None:
                raise MalformedBody(f"The body is not valid JSON: {_reason(whole)}.") from err
            if not report:
                raise
            rows.append(MalformedBody(str(err), record=len(rows)))
    if not rows:
        raise MalformedBody("The body holds no record.")
    return Payload(rows)


def _line(line: str, number: int) -> Row:
    try:
        row = _parse(line)
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
    if isinstance(err.__cause__, RecursionError):
        return "it is nested too deeply"
    return "it holds a number with too many digits"
