"""Parquet files from strangers: a few kilobytes can say that they hold gigabytes, and can lie about it.

A file's own sums need not be those of its pages. So the headers of all pages are read before pyarrow unpacks the first
of them: what they say is what it reserves. pyarrow is not asked where the pages are: its `RowGroupMetaData.column` ends
the process where the file contradicts itself (26.0.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimodal.errors import MalformedBody, PayloadTooLarge
from trimodal.limits import Limits
from trimodal.records import Payload, Row
from trimodal.serving.thrift import read_struct

MAX_BYTES = 128 * 1024 * 1024
"""Size of all pages, unpacked, and of the rows that are made of them."""

BATCH, BATCH_BYTES = 16, 16 * 1024 * 1024
"""Rows and bytes that are expanded before the size is looked at again: a dictionary holds a long text once for all."""

_MAX_FOOTER = 1024 * 1024
"""A byte of the footer takes up to 50 in memory."""

_TAIL = 8  # the footer's length, and "PAR1"


def decode_parquet(body: bytes, limits: Limits) -> Payload:
    """Reads a parquet file, one record a row; columns count by name.

    Raises:
        MalformedBody: it is not a parquet file, or holds no record.
        PayloadTooLarge: it holds more than `MAX_BYTES`, or more records or values than allowed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows: list[Row] = []
    size = 0
    pa.set_memory_pool(pa.system_memory_pool())  # which gives large blocks back at once
    try:
        footer = _footer(body)
        groups, batch_size = _check(footer, body, limits)
        file = parquet.ParquetFile(pa.BufferReader(body))
        for batch in file.iter_batches(batch_size=batch_size, row_groups=groups, use_threads=False):
            size += _expanded_bytes(batch)
            if size > MAX_BYTES:
                raise _too_large()
            if len(rows) + len(batch) > limits.records:
                raise limits.too_many_records()
            rows += batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as err:
        raise MalformedBody("The body is not a readable parquet file.") from err
    if not rows:
        raise MalformedBody("The parquet file holds no record.")
    return Payload(rows)


def _footer(body: bytes) -> dict[int, Any]:
    """Reads the metadata at the end of a file (parquet.thrift, `FileMetaData`).

    Raises:
        ValueError: there are none.
        PayloadTooLarge: they are too many.
    """
    length = int.from_bytes(body[-_TAIL:-4], "little")
    if body[-4:] != b"PAR1" or length > len(body) - _TAIL:
        raise ValueError("no footer")
    if length > _MAX_FOOTER:
        raise PayloadTooLarge(f"The parquet file's footer is larger than {_MAX_FOOTER} bytes; send fewer columns.")
    return read_struct(body, len(body) - _TAIL - length)[0]


def _check(footer: dict[int, Any], body: bytes, limits: Limits) -> tuple[list[int], int]:
    """Looks at every page without unpacking it.

    Returns:
        The row groups that are not empty, and how many rows may be expanded at a time.

    Raises:
        PayloadTooLarge: the pages hold too much.
        ValueError: they cannot be read.
    """
    nested = any(element.get(3) == 2 for element in _structs(footer, 2))  # SchemaElement: repetition_type REPEATED
    filled: list[int] = []
    records = size = values = 0
    for place, group in enumerate(_structs(footer, 4)):
        rows = _number(group, 3)
        if not rows:
            continue
        filled.append(place)
        records += rows
        if records > limits.records:
            raise limits.too_many_records()
        for chunk in _structs(group, 1):
            column = _column(chunk, body)
            size += column.size + (column.values * column.dictionary if nested else 0)  # a list is expanded whole
            values += column.values
            if size > MAX_BYTES:
                raise _too_large()
            if values > limits.values:
                raise limits.too_many_values()
    return filled, max(1, min(BATCH, BATCH_BYTES // max(1, size)))


@dataclass(frozen=True, slots=True)
class _Column:
    """What the pages of a column chunk say.

    Attributes:
        size: bytes, unpacked.
        values: how many, nulls included.
        dictionary: bytes of the dictionary, unpacked.
    """

    size: int
    values: int
    dictionary: int


def _column(chunk: dict[int, Any], body: bytes) -> _Column:
    """Adds up the pages of a column chunk (`ColumnChunk`, `ColumnMetaData`), found as pyarrow finds them."""
    (facts,) = _structs({3: [chunk.get(3)]}, 3)
    start = _number(facts, 9)
    if 0 < _number(facts, 11) < start:
        start = _number(facts, 11)
    size = values = dictionary = 0
    for page in _pages(body, start, start + _number(facts, 7)):
        size += page.size
        if page.dictionary:
            dictionary += page.size
        else:
            values += page.values
    return _Column(size, values, dictionary)


@dataclass(frozen=True, slots=True)
class _Page:
    size: int
    values: int
    dictionary: bool


def _pages(body: bytes, place: int, end: int) -> Iterator[_Page]:
    """Yields what the header of each page says (`PageHeader`).

    Raises:
        ValueError: a header cannot be read, or names no size that can be.
    """
    if not 0 <= place <= end <= len(body):
        raise ValueError("a column chunk outside of the file")
    while place < end:
        header, place = read_struct(body, place)
        counts = [_number(part, 1) for part in (header.get(kind) for kind in (5, 7, 8)) if isinstance(part, dict)]
        yield _Page(_number(header, 2), sum(counts), 7 in header)
        place += _number(header, 3)


def _structs(fields: dict[int, Any], number: int) -> list[dict[int, Any]]:
    """Returns a list of structs.

    Raises:
        ValueError: the field is none.
    """
    found = fields.get(number)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError("a list that is none")
    return found


def _number(fields: dict[int, Any], number: int) -> int:
    """Returns a number, 0 where it is missing.

    Raises:
        ValueError: it is negative, or no number.
    """
    found = fields.get(number, 0)
    if not isinstance(found, int) or found < 0:
        raise ValueError("a number that is none")
    return found


def _expanded_bytes(batch: Any) -> int:
    """Returns an upper bound of a batch's size as Python values: a dictionary holds a text once for all rows."""
    return sum(c.nbytes * (len(batch) if "dictionary" in str(c.type) else 1) for c in batch.columns)


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The parquet file holds more than {MAX_BYTES} bytes once it is unpacked; split it.")
