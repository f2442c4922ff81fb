"""Bodies nobody thought of: 2,000 random ones, 1,200 that are nearly valid, and JSON of every shape."""

from __future__ import annotations

import io
import json
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from trimodal.errors import RequestError
from trimodal.records import Payload
from trimodal.serving.decode import DECODERS, decode

JSON = "application/json"
LINES = "application/jsonlines"
CSV = "text/csv"
PARQUET = "application/x-parquet"

RECORD = {"chat": "[bom]Wo ist mein Paket? ☂[eom]", "amount": 12.5, "orders": None}
OTHER = {"chat": "second", "amount": 3, "orders": "4"}


def write_parquet(columns, schema=None, **options):
    out = io.BytesIO()
    parquet.write_table(pa.table(columns, schema=schema), out, **options)
    return out.getvalue()


def payload_or_error(body, content_type):
    try:
        return decode(body, content_type)
    except RequestError as err:
        return err


def assert_payload_or_client_error(body, content_type):
    result = payload_or_error(body, content_type)
    if isinstance(result, RequestError):
        assert 400 <= result.status < 500
        assert str(result)
    else:
        assert isinstance(result, Payload)
        assert len(result.rows) > 0
        assert all(isinstance(row, dict | list) for row in result.rows)


@pytest.mark.parametrize("content_type", DECODERS)
@given(body=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@settings(max_examples=290)
def test_any_bytes_give_a_payload_or_a_client_error(content_type, body):
    assert_payload_or_client_error(body, content_type)


VALID = {
    JSON: [json.dumps([RECORD, OTHER], indent=1).encode(), json.dumps({"instances": [RECORD]}).encode()],
    LINES: [f"{json.dumps(RECORD)}\n{json.dumps(OTHER, ensure_ascii=False)}\n".encode()],
    CSV: ['order,chat,amount\r\n1,"a ""quoted""\ntext, with ü",2.5\r\n2,NA,\r\n'.encode()],
    PARQUET: [
        write_parquet({"chat": ["a", None, "c" * 50], "amount": [1.5, None, 3.0], "flags": [[True], [], None]}),
        write_parquet({"chat": ["a"] * 20, "amount": [1] * 20}, compression="gzip", row_group_size=5),
    ],
}
JSON_SIGNS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\n",
    b"null",
    b"-",
    b"1e999",
    b"NaN",
    b"\\ud800",
    b"\xff",
]
CSV_SIGNS = [b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"NA", b"\xef\xbb\xbf"]


def mutate(body, chance, signs):
    """Changes a valid body in a few places: a byte, a cut, a repeat, or a sign that matters to the format."""
    changed = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        length = chance.randint(1, 12)
        match chance.randrange(4):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case _:
                changed[place:place] = chance.choice(signs)
    return bytes(changed)


@pytest.mark.parametrize("content_type", VALID)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=300)
def test_nearly_valid_bodies_give_a_payload_or_a_client_error(content_type, seed):
    chance = random.Random(seed)
    signs = {CSV: CSV_SIGNS, PARQUET: [b"\0", b"\xff\xff\xff\xff\x0f", b"PAR1"]}.get(content_type, JSON_SIGNS)
    assert_payload_or_client_error(mutate(chance.choice(VALID[content_type]), chance, signs), content_type)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=4))
@settings(max_examples=100)
def test_json_and_json_lines_read_what_was_written(rows):
    for ascii_only in (True, False):
        document = json.dumps(rows, ensure_ascii=ascii_only)
        lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        for body, content_type in ((document, JSON), (lines, LINES), (lines, JSON)):
            assert decode(body.encode(errors="surrogatepass"), content_type).rows == rows
