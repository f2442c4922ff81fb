"""Parquet files from strangers: a few kilobytes can say that they hold gigabytes, and can lie about it.

A file's own sums (its footer) need not be those of its pages. So the headers of all pages are read before pyarrow
unpacks the first of them: what they say is what it reserves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trimodal.errors import MalformedBody, PayloadTooLarge
from trimodal.limits import Limits
from trimodal.records import Payload, Row

MAX_BYTES = 128 * 1024 * 1024
"""Size of all pages, unpacked, and of the rows that are made of them."""

BATCH, BATCH_BYTES = 16, 16 * 1024 * 1024
"""Rows and bytes that are expanded before the size is looked at again: a dictionary holds a long text once for all."""

_MAX_FOOTER = 4 * 1024 * 1024
"""A byte of the footer takes up to 20 in memory."""

_TAIL = 8  # the footer's length, and "PAR1"


def decode_parquet(body: bytes, limits: Limits) -> Payload:
    """Reads a parquet file, one record a row; columns count by name.

    Raises:
        MalformedBody: it is not a parquet file, or holds no record.
        PayloadTooLarge: it holds more than `MAX_BYTES`, or more records or values than allowed.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if _MAX_FOOTER < int.from_bytes(body[-_TAIL:-4], "little") < len(body):
        raise PayloadTooLarge(f"The parquet file's footer is larger than {_MAX_FOOTER} bytes; send fewer columns.")
    rows: list[Row] = []
    size = 0
    pa.set_memory_pool(pa.system_memory_pool())  # which gives large blocks back at once
    try:
        file = parquet.ParquetFile(pa.BufferReader(body))
        groups = [place for place in range(file.num_row_groups) if file.metadata.row_group(place).num_rows]
        batch_size = _check(file, groups, body, limits)
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


def _check(file: Any, groups: Sequence[int], body: bytes, limits: Limits) -> int:
    """Looks at every page of some row groups without unpacking it; returns how many rows may be expanded at a time.

    Raises:
        PayloadTooLarge: the pages hold too much.
        ValueError: they cannot be read.
    """
    if file.metadata.num_rows > limits.records:
        raise limits.too_many_records()
    size = values = 0
    for group in groups:
        for place in range(file.metadata.num_columns):
            column = _column(file.metadata.row_group(group).column(place), body)
            size += column.size
            values += column.values
            if file.schema.column(place).max_repetition_level:  # a list is expanded whole
                size += column.values * column.dictionary
            if size > MAX_BYTES:
                raise _too_large()
            if values > limits.values:
                raise limits.too_many_values()
    return max(1, min(BATCH, BATCH_BYTES // max(1, size)))


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


def _column(chunk: Any, body: bytes) -> _Column:
    """Adds up the pages of a column chunk, which pyarrow will read from the same place."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    size = values = dictionary = 0
    for page in _pages(body, start, start + chunk.total_compressed_size):
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
    """Yields what the header of each page says (parquet.thrift, `PageHeader`).

    Raises:
        ValueError: a header cannot be read, or names no size that can be.
    """
    if not 0 <= place <= end <= len(body):
        raise ValueError("column chunk outside of the file")
    while place < end:
        header, place = _struct(body, place)
        size, packed = header.get(2, -1), header.get(3, -1)
        counts = [part.get(1, -1) for part in (header.get(number) for number in (5, 7, 8)) if isinstance(part, dict)]
        if not isinstance(size, int) or not isinstance(packed, int) or min(size, packed, *counts) < 0:
            raise ValueError("page header")
        yield _Page(size, sum(counts), 7 in header)
        place += packed


def _struct(data: bytes, place: int, depth: int = 3) -> tuple[dict[int, Any], int]:
    """Reads a struct of the thrift compact protocol.

    Returns:
        Field number to whole number or struct, for fields of those kinds; and the place behind it.

    Raises:
        ValueError: it is not one, or holds what page headers do not.
        IndexError: the data ends.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[place]) != 0:
        place += 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _integer(data, place)
        if number in fields:
            raise ValueError("repeated field")
        kind = head & 15
        fields[number] = None
        if kind in (4, 5, 6):
            fields[number], place = _integer(data, place)
        elif kind == 12 and depth:
            fields[number], place = _struct(data, place, depth - 1)
        elif kind == 8:
            length, place = _varint(data, place)
            place += length
        elif kind in (3, 7):
            place += 1 if kind == 3 else 8
        elif kind not in (1, 2):
            raise ValueError("unknown field")
    return fields, place + 1


def _integer(data: bytes, place: int) -> tuple[int, int]:
    """Reads a signed number (zigzag)."""
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("number too long")


def _expanded_bytes(batch: Any) -> int:
    """Returns an upper bound of a batch's size as Python values: a dictionary holds a text once for all rows."""
    return sum(c.nbytes * (len(batch) if "dictionary" in str(c.type) else 1) for c in batch.columns)


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The parquet file holds more than {MAX_BYTES} bytes once it is unpacked; split it.")
