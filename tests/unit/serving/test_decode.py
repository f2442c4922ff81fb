from __future__ import annotations

import json

import pytest

from trimodal.errors import MalformedBody, UnsupportedMedia
from trimodal.serving.decode import CSV_NULLS, DECODERS, decode, find_decoder

JSON = "application/json"
LINES = "application/jsonlines"
CSV = "text/csv"
PARQUET = "application/x-parquet"

RECORD = {"chat": "[bom]Wo ist mein Paket? ☂[eom]", "amount": 12.5, "orders": None}
OTHER = {"chat": "second", "amount": 3, "orders": "4"}


def rejected(body, content_type):
    with pytest.raises(MalformedBody) as caught:
        decode(body, content_type)
    return str(caught.value)


# --- content types


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "APPLICATION/JSON",
        " application/json ",
        "application/json;charset=utf-8",
        'application/JSON ; Charset="UTF-8"',
        "application/json; charset=utf8",
        "application/json; charset=us-ascii",
        "application/json; profile=x; charset=utf-8",
    ],
)
def test_parameters_and_case_of_the_content_type_do_not_matter(content_type):
    assert decode(b'{"amount": 1}', content_type).rows == [{"amount": 1}]


@pytest.mark.parametrize("charset", ["latin-1", "utf-16", "", '""', "ütf-8"])
def test_other_charsets_are_unsupported(charset):
    with pytest.raises(UnsupportedMedia, match="charset"):
        decode(b"{}", f"application/json; charset={charset}")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "json",
        "text/plain",
        "application/xml",
        "application/jsonx",
        "image/png",
        "/",
        "application/json, text/csv",
        "ü/ü",
    ],
)
def test_other_content_types_are_unsupported(content_type):
    with pytest.raises(UnsupportedMedia) as caught:
        decode(b"{}", content_type)
    assert caught.value.status == 415
    assert all(known in str(caught.value) for known in DECODERS)


def test_a_header_that_was_not_ascii_is_unsupported():
    header = b"application/\x80json".decode("ascii", errors="surrogateescape")
    with pytest.raises(UnsupportedMedia):
        find_decoder(header)


def test_the_content_type_is_judged_before_the_body():
    with pytest.raises(UnsupportedMedia):
        decode(b"", "text/plain")


@pytest.mark.parametrize("content_type", DECODERS)
@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t\n"])
def test_an_empty_body_is_malformed(body, content_type):
    assert "empty" in rejected(body, content_type)


@pytest.mark.parametrize("content_type", [JSON, LINES, CSV])
def test_a_byte_order_mark_alone_is_malformed(content_type):
    rejected(b"\xef\xbb\xbf", content_type)


@pytest.mark.parametrize("content_type", [JSON, LINES, CSV])
def test_text_must_be_utf8(content_type):
    assert "UTF-8" in rejected('{"chat": "Größe"}'.encode("latin-1"), content_type)


# --- JSON


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "  \n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("document", [RECORD, [RECORD], [RECORD, OTHER]], ids=["object", "list of one", "list"])
def test_json(document, mark, end, indent):
    body = (mark + json.dumps(document, indent=indent, ensure_ascii=False) + end).encode()
    payload = decode(body, JSON)
    assert payload.rows == (document if isinstance(document, list) else [document])
    assert not payload.header_possible


def test_json_rows_may_be_positional():
    assert decode(b'[["a", 1, null], ["b", 2, 3.5]]', JSON).rows == [["a", 1, None], ["b", 2, 3.5]]


def test_json_lines_may_come_under_the_name_of_json():
    assert decode(f"{json.dumps(RECORD)}\n\n{json.dumps(OTHER)}\n".encode(), JSON).rows == [RECORD, OTHER]


def test_names_and_values_are_kept_as_sent():
    body = '{"Größe": "a\\u0000b", "": [1, {"x": true}], "big": 123456789012345678901234567890, "n": NaN}'.encode()
    (row,) = decode(body, JSON).rows
    assert row["Größe"] == "a\0b"
    assert row[""] == [1, {"x": True}]
    assert row["big"] == 123456789012345678901234567890
    assert row["n"] != row["n"]


@pytest.mark.parametrize("body", [b"1", b'"text"', b"null", b"true", b"NaN"])
def test_json_must_be_an_object_or_a_list(body):
    assert "object or a list" in rejected(body, JSON)


def test_an_empty_json_list_is_malformed():
    assert "empty" in rejected(b"[]", JSON)


@pytest.mark.parametrize("item", [b"1", b"null", b'"x"', b"false"])
def test_each_item_of_a_list_must_be_a_record(item):
    with pytest.raises(MalformedBody) as caught:
        decode(b'[{"amount": 1}, ' + item + b"]", JSON)
    assert caught.value.record == 1


def test_broken_json_says_where_without_quoting_the_body():
    body = b'{\n  "chat": "my secret",\n  "amount": oops-4711\n}'
    message = rejected(body, JSON)
    assert "line 3 column 13" in message
    assert not any(word in message for word in ("secret", "oops", "4711", "chat", "amount"))


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"chat": "secret"', "line 1 column 18"),
        (b'{"chat": "secret', "line 1 column 10"),
        (b"{'chat': 'secret'}", "line 1 column 2"),
        (b'{"chat": "secret"} {"chat": "secret"}', "line 1 column 20"),
        (b'[{"chat": "secret"},]', "line 1 column 2"),
    ],
)
def test_broken_json_on_one_line_says_where(body, place):
    message = rejected(body, JSON)
    assert place in message
    assert "secret" not in message


def test_a_broken_later_line_is_named():
    message = rejected(b'{"amount": 1}\n{"amount": 2}\n{"amount": secret}\n', JSON)
    assert message.startswith("Line 3 ")
    assert "line 1 column 12" in message
    assert "secret" not in message


@pytest.mark.parametrize("content_type", [JSON, LINES])
@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 100_000, b'[{"a":' + b"[" * 50_000])
def test_deep_nesting_is_malformed(body, content_type):
    assert "nested more than MAX_JSON_DEPTH=32 levels" in rejected(body, content_type)


def test_deep_nesting_over_many_lines_is_malformed():
    assert "nested more than MAX_JSON_DEPTH=32 levels" in rejected(b'{"a":\n' * 100_000, JSON)


@pytest.mark.parametrize("content_type", [JSON, LINES])
def test_an_endless_number_is_malformed(content_type):
    message = rejected(b'{"amount": ' + b"7" * 5000 + b"}", content_type)
    assert "too many digits" in message
    assert "77" not in message


@pytest.mark.parametrize("number", ["1e400", "-1E999999", "Infinity", "9" * 4000, "1e-400"])
def test_huge_numbers_are_left_for_the_field_that_holds_them(number):
    (row,) = decode(f'{{"amount": {number}}}'.encode(), JSON).rows
    assert isinstance(row["amount"], int | float)


# --- JSON lines


@pytest.mark.parametrize("content_type", [LINES, "application/x-ndjson", "application/jsonl"])
@pytest.mark.parametrize("separator", ["\n", "\r\n", "\n\n", "\n  \n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_json_lines(content_type, separator, end):
    body = separator.join(json.dumps(row, ensure_ascii=False) for row in (RECORD, OTHER)) + end
    assert decode(body.encode(), content_type).rows == [RECORD, OTHER]


@pytest.mark.parametrize("content_type", [JSON, LINES])
@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u0085", "\u001e", "\v", "\f"])
def test_only_line_feeds_end_a_json_line(sign, content_type):
    if sign < " ":
        sign = json.dumps(sign)[1:-1]  # control characters stand in JSON as escapes
    rows = [{"chat": f"before{sign}after"}, {"chat": "second"}]
    body = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert decode(body.encode(), content_type).rows == rows


def test_a_byte_order_mark_before_json_lines_is_skipped():
    assert decode(b'\xef\xbb\xbf{"amount": 1}\n{"amount": 2}', LINES).rows == [{"amount": 1}, {"amount": 2}]


@pytest.mark.parametrize("line", [b"[1, 2]", b"7", b"null", b'"secret"'])
def test_each_json_line_must_be_an_object(line):
    message = rejected(b'{"amount": 1}\n\n' + line, LINES)
    assert message == "Line 3 is not a JSON object."


def test_pretty_printed_json_is_not_json_lines():
    assert rejected(json.dumps(RECORD, indent=1).encode(), LINES).startswith("Line 1 ")


# --- CSV


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("final", [True, False])
def test_csv(end, final):
    body = end.join(['17,"[bom]a, ""b""[eom]",3.5', "18,plain,4"]) + end * final
    payload = decode(body.encode(), CSV)
    assert payload.rows == [["17", '[bom]a, "b"[eom]', "3.5"], ["18", "plain", "4"]]
    assert payload.header_possible


@pytest.mark.parametrize("inner", ["\n", "\r\n", "\n\n", "\u2028", "\r"])
def test_a_quoted_cell_may_hold_line_ends(inner):
    assert decode(f'1,"first{inner}second"\n2,x\n'.encode(), CSV).rows == [["1", f"first{inner}second"], ["2", "x"]]


def test_blank_csv_lines_are_skipped():
    assert decode(b"\n1,a\n\n\r\n2,b\n\n", CSV).rows == [["1", "a"], ["2", "b"]]


def test_a_byte_order_mark_is_not_part_of_the_first_cell():
    assert decode(b"\xef\xbb\xbforder,amount\n1,2\n", CSV).rows == [["order", "amount"], ["1", "2"]]


@pytest.mark.parametrize("word", sorted(CSV_NULLS))
def test_null_words_are_missing(word):
    assert decode(f'a,{word},"{word}"\n'.encode(), CSV).rows == [["a", None, None]]


@pytest.mark.parametrize("word", ["none", "Nan", "nil", "-", " NA", "NA ", "null.", "0", "False"])
def test_other_words_are_not(word):
    assert decode(f"a,{word}\n".encode(), CSV).rows == [["a", word]]


def test_null_words_are_those_of_pandas():
    # The default of `na_values`, https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html
    signs = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>"}
    words = {"-NaN", "-nan", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
    assert signs | words == CSV_NULLS


def test_csv_lines_may_differ_in_width():  # the stage that knows the fields judges the width
    assert [len(row) for row in decode(b"1,2,3\n4,5\n6\n", CSV).rows] == [3, 2, 1]


def test_a_cell_may_be_longer_than_the_parsers_own_limit():
    long = "x" * 400_000
    assert decode(f'1,"{long}"\n'.encode(), CSV).rows == [["1", long]]


@pytest.mark.parametrize("body", [b'1,"secret', b'1,"secret"tail\n', b'1,"a""\n'])
def test_broken_csv_is_malformed_without_quoting_the_body(body):
    message = rejected(body, CSV)
    assert "CSV" in message
    assert not any(word in message for word in ("secret", "tail"))
