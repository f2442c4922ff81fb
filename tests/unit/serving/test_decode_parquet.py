from __future__ import annotations

import io
import tracemalloc
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from trimodal.errors import MalformedBody, PayloadTooLarge, RequestError
from trimodal.limits import Limits
from trimodal.serving import parquet as parquet_module
from trimodal.serving.decode import decode
from trimodal.serving.parquet import BATCH

PARQUET = "application/x-parquet"


def write_parquet(columns, schema=None, **options):
    out = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), out, **options)
    return out.getvalue()


def rejected(body, content_type):
    with pytest.raises(MalformedBody) as caught:
        decode(body, content_type)
    return str(caught.value)


@pytest.mark.parametrize("content_type", [PARQUET, "application/vnd.apache.parquet"])
def test_parquet(content_type):
    columns = {"chat": ["a ☂", None], "amount": [1.5, None], "orders": [None, 3]}
    payload = decode(write_parquet(columns), content_type)
    assert payload.rows == [{"chat": "a ☂", "amount": 1.5, "orders": None}, {"chat": None, "amount": None, "orders": 3}]
    assert not payload.header_possible


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None], pa.int8()), [1, None]),
        (pa.array([1, None], pa.uint16()), [1, None]),
        (pa.array([2**63 - 1, None], pa.int64()), [2**63 - 1, None]),
        (pa.array([np.float16(0.5), None], pa.float16()), [0.5, None]),
        (pa.array([0.25, None], pa.float32()), [0.25, None]),
        (pa.array([True, None], pa.bool_()), [True, None]),
        (pa.array([Decimal("1.10"), None], pa.decimal128(5, 2)), [Decimal("1.10"), None]),
        (pa.array(["x", None], pa.large_string()), ["x", None]),
        (pa.array(["x", None]).dictionary_encode(), ["x", None]),
        (pa.array([None, None], pa.null()), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_parquet_types(values, expected):
    assert [row["field"] for row in decode(write_parquet({"field": values}), PARQUET).rows] == expected


@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, {"compression": "zstd"}, {"row_group_size": 1}, {"version": "1.0"}]
)
def test_parquet_written_otherwise(options):
    rows = decode(write_parquet({"amount": [1.0, 2.0, 3.0]}, **options), PARQUET).rows
    assert [row["amount"] for row in rows] == [1.0, 2.0, 3.0]


def test_parquet_without_records_is_malformed():
    body = write_parquet({"amount": pa.array([], pa.float32())})
    assert "no record" in rejected(body, PARQUET)


def test_parquet_garbage_is_malformed():
    body = write_parquet({"amount": list(range(100))})
    broken = [
        b"secret",
        b"PAR1",
        b"PAR1PAR1",
        body[:-1],
        body[4:],
        body[: len(body) // 2],
        b"PAR1" + bytes(64) + b"PAR1",
    ]
    for garbage in broken:
        assert rejected(garbage, PARQUET) == "The body is not a readable parquet file."


def test_text_in_parquet_must_be_utf8():
    wrong = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.int32([0, 1]).tobytes()), pa.py_buffer(b"\xff")]
    )
    rejected(write_parquet({"chat": wrong}), PARQUET)


def test_a_parquet_bomb_is_too_large():
    columns = {f"amount_{number}": np.zeros(90_000, np.int64) for number in range(400)}  # 288 MB of zeros
    body = write_parquet(columns, compression="zstd", use_dictionary=False)
    assert len(body) < 1_000_000
    with pytest.raises(PayloadTooLarge) as caught:
        decode(body, PARQUET)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "columns",
    [{"chat": ["x" * 10_000] * 100}, {"amount": np.zeros(100_000, np.int64)}, {"chat": [["x"] * 100_000]}],
    ids=["one long text many times", "many small rows", "a long list"],
)
def test_a_dictionary_encoded_parquet_bomb_is_too_large(columns, monkeypatch):
    monkeypatch.setattr(parquet_module, "MAX_BYTES", 100_000)
    body = write_parquet(columns)
    assert len(body) < 20_000
    with pytest.raises(PayloadTooLarge):
        decode(body, PARQUET)


def test_records_keep_their_order_over_all_batches():
    numbers = list(range(5 * BATCH + 3))
    rows = decode(write_parquet({"amount": numbers}, row_group_size=7 * BATCH // 3), PARQUET).rows
    assert [row["amount"] for row in rows] == numbers


def test_too_many_rows_are_too_large():
    limits = Limits(records=40)
    assert len(decode(write_parquet({"amount": [1.0] * 40}), PARQUET, limits).rows) == 40
    with pytest.raises(PayloadTooLarge, match="MAX_RECORDS=40"):
        decode(write_parquet({"amount": [1.0] * 41}), PARQUET, limits)


@pytest.mark.parametrize(
    "store_schema",
    [
        False,
        True,
    ],
    ids=["text", "dictionary"],
)
def test_a_bomb_is_noticed_before_it_takes_much_more_than_the_limit(store_schema, monkeypatch):
    monkeypatch.setattr(parquet_module, "MAX_BYTES", 10_000_000)
    long_text = pa.DictionaryArray.from_arrays(np.zeros(1000, np.int32), ["x" * 100_000])
    body = write_parquet({"chat": long_text}, store_schema=store_schema)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decode(body, PARQUET)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize(
    "values",
    [
        pa.array([10**8], pa.date32()),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([2**62], pa.duration("s")),
    ],
    ids=lambda values: str(values.type),
)
def test_a_date_that_python_cannot_hold_is_a_client_error(values):
    with pytest.raises(RequestError):
        decode(write_parquet({"amount": [1.0], "shipped": values}), PARQUET)


def test_an_unknown_time_zone_is_a_client_error():
    with pytest.raises(RequestError):
        decode(write_parquet({"shipped": pa.array([1], pa.timestamp("us", tz="Nowhere/Land"))}), PARQUET)


def varint(number):
    """A number as thrift's compact protocol writes it."""
    number *= 2  # zigzag of a number that is not negative
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_a_footer_that_tells_less_than_the_pages_hold_is_not_believed():
    body = write_parquet(
        {"chat": ["x" * 150_000_000]}, compression="zstd", use_dictionary=False, write_statistics=False
    )
    column = parquet.ParquetFile(io.BytesIO(body)).metadata.row_group(0).column(0)
    told = varint(column.total_uncompressed_size)
    lie = bytes([*(byte | 128 for byte in varint(7).ljust(len(told) - 1, b"\0")), 0])
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    assert told in body[footer:]
    lying = body[:footer] + body[footer:].replace(told, lie)
    assert parquet.ParquetFile(io.BytesIO(lying)).metadata.row_group(0).column(0).total_uncompressed_size == 7
    with pytest.raises(PayloadTooLarge, match="once it is unpacked"):
        decode(lying, PARQUET)


def test_a_page_that_tells_less_than_it_holds_is_malformed():
    body = write_parquet({"chat": ["x" * 1000]}, compression="zstd", use_dictionary=False, write_statistics=False)
    size = varint(1010)  # six bytes of levels, four of the text's length, and the text
    assert size in body[:10]
    rejected(body.replace(size, varint(1009), 1), PARQUET)


def test_long_lists_of_one_long_text_are_too_large():
    words = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), ["x" * 10_000])
    lists = pa.ListArray.from_arrays(pa.array([0, 100_000], pa.int32()), words)
    body = write_parquet({"chat": lists}, store_schema=False)
    assert len(body) < 30_000
    with pytest.raises(PayloadTooLarge, match="once it is unpacked"):
        decode(body, PARQUET)


@pytest.mark.parametrize(
    "values",
    [
        pa.nulls(100_001),
        pa.ListArray.from_arrays(pa.array([0, 100_001], pa.int32()), pa.nulls(100_001)),
        pa.ListArray.from_arrays(pa.array([0, 100_001], pa.int32()), pa.array(np.zeros(100_001, bool))),
    ],
    ids=["nulls", "list of nulls", "list of booleans"],
)
def test_values_that_weigh_nothing_are_counted(values):
    body = write_parquet({"amount": values})
    assert len(body) < 2000
    with pytest.raises(PayloadTooLarge):
        decode(body, PARQUET, Limits(records=10 if len(values) == 1 else 5000))


def test_a_long_footer_is_not_read():
    body = write_parquet({f"column {number}": [1] for number in range(20_000)})
    with pytest.raises(PayloadTooLarge, match="footer"):
        decode(body, PARQUET)


def test_empty_row_groups_are_passed_over():
    out = io.BytesIO()
    table = pa.table({"amount": [1.0]})
    with parquet.ParquetWriter(out, table.schema) as writer:
        for part in (table.slice(0, 0), table, table.slice(0, 0), table):
            writer.write_table(part)
    assert [row["amount"] for row in decode(out.getvalue(), PARQUET).rows] == [1.0, 1.0]
