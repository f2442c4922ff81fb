"""What one request may hold: each limit, at its edge, in every format; and work that its size bounds."""

from __future__ import annotations

import json
import re
import time

import pytest
from bs4 import BeautifulSoup
from bs4.exceptions import ParserRejectedMarkup
from hypothesis import given
from hypothesis import strategies as st

from trimodal.errors import InferenceTimeout, InvalidRecord, MalformedBody, PayloadTooLarge
from trimodal.limits import Limits
from trimodal.records import Payload, Record, Schema
from trimodal.serving import decode as decode_module
from trimodal.serving.decode import decode
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.markup import TextError, normalize_html
from trimodal.serving.naming import name_fields
from trimodal.serving.steps import finish
from trimodal.serving.tabular import TabularEncoder
from trimodal.serving.text import TextEncoder, marked_messages

JSON, LINES, CSV = "application/json", "application/jsonlines", "text/csv"
FIVE = Limits(records=5)


def read(body, content_type, limits):
    return decode(body.encode(), content_type, limits).rows


def refused(error, body, content_type, limits):
    with pytest.raises(error) as caught:
        read(body, content_type, limits)
    return str(caught.value)


# --- records


@pytest.mark.parametrize("content_type", [JSON, LINES])
def test_lines_and_lines_under_the_name_of_json(content_type):
    assert len(read('{"a": 1}\n\n' * 5, content_type, FIVE)) == 5
    assert "MAX_RECORDS=5" in refused(PayloadTooLarge, '{"a": 1}\n' * 6, content_type, FIVE)


def test_lines_after_the_limit_are_not_looked_at():
    assert "MAX_RECORDS=5" in refused(PayloadTooLarge, '{"a": 1}\n' * 5 + "broken", LINES, FIVE)


def test_csv_with_and_without_a_header():
    schema = Schema("chat", "events", ("amount",), columns=("amount", "chat", "events"))

    def name(lines):
        return name_fields(decode(lines.encode(), CSV, FIVE), schema, limits=FIVE)

    header, line = "amount,chat,events\n", "1,a,b\n"
    assert len(name(line * 5)) == len(name(header + line * 5)) == 5
    for lines in (line * 6, header + line * 6, line * 100):
        with pytest.raises(PayloadTooLarge, match="MAX_RECORDS=5"):
            name(lines)


def test_a_list_and_an_envelope():
    schema = Schema("chat", "events", ("amount",), envelope="instances")
    for wrap in (lambda rows: rows, lambda rows: [{"instances": rows}]):
        assert len(name_fields(Payload(wrap([{"amount": 1}] * 5)), schema, limits=FIVE)) == 5
        with pytest.raises(PayloadTooLarge, match="MAX_RECORDS=5"):
            name_fields(Payload(wrap([{"amount": 1}] * 6)), schema, limits=FIVE)


# --- values


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (f"[{'{},' * 200_000}{{}}]", JSON),
        (f'{{"a": [{"[]," * 50_000}[]]}}', JSON),
        (f'{{"a": [{"1," * 100_001}1]}}', LINES),
        (f"{'1,' * 100_001}1\n", CSV),
        ("1,2,3,4\n" * 30_000, CSV),
    ],
    ids=["records", "lists", "numbers", "columns", "cells"],
)
def test_more_values_than_twenty_a_record_are_refused_before_they_are_made(body, content_type, monkeypatch):
    monkeypatch.setattr(decode_module.json, "loads", lambda _: pytest.fail("it was parsed"))
    limits = Limits(records=5_000 if "," in body[:2] else 4_000)
    assert limits.values == 100_000
    message = refused(PayloadTooLarge, body, content_type, limits)
    assert "100000 values" in message or "MAX_RECORDS=" in message


def test_what_stands_in_texts_is_no_value():
    text = "[bom],{\\" * 100_000
    assert read(json.dumps({"chat": text}), JSON, Limits(records=1)) == [{"chat": text}]


def test_texts_without_end_are_read_once():
    """With one attempt for each quote this would take hours."""
    body = '{"a": "' + '\\"' * 2_000_000 + "[" * 200_000
    assert "not valid JSON" in refused(MalformedBody, body, JSON, Limits(records=1))


# --- nesting


@pytest.mark.parametrize("content_type", [JSON, LINES])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a": ', "}")])
def test_nesting(begin, end, content_type):
    def nested(levels):
        return f'{{"chat": {begin * (levels - 1)}1{end * (levels - 1)}}}'

    assert len(read(nested(7), content_type, Limits(depth=7))) == 1
    for levels in (8, 900, 100_000):
        message = refused(MalformedBody, nested(levels), content_type, Limits(depth=7))
        assert "MAX_JSON_DEPTH=7" in message


# --- texts


@pytest.fixture(scope="module")
def encoder(tokenizer):
    text = TextEncoder(tokenizer, ("dialogue_splitter", "html_normalizer", "tokenizer"), 16, 3)
    return FeatureEncoder(Schema("chat", "events", ()), text, text, TabularEncoder((), {}, {}), Limits(text=20))


@pytest.mark.parametrize("field", ["chat", "events"])
def test_the_characters_of_a_text(field, encoder):
    assert encoder.encode(Record(0, {field: "é" * 20})).primary.chunks
    for value in ("é" * 21, 10**20):
        with pytest.raises(InvalidRecord) as caught:
            encoder.encode(Record(3, {field: value}))
        assert caught.value.record == 3
        assert f"the field {field} has 21 characters and MAX_TEXT_CHARACTERS=20" in str(caught.value)


signs = st.sampled_from(["[bom]", "[eom]", "[bo", "m]", "a", " ", "\n", "[", "]"])


@given(st.lists(signs, max_size=30).map("".join))
def test_messages_are_what_the_training_found(text):
    assert list(marked_messages(text)) == re.findall(r"\[bom\](.*?)\[eom\]", text, re.DOTALL)


def test_markers_without_end_are_read_once():
    """The regular expression of the training would take an hour."""
    assert list(marked_messages("[bom]" * 1_000_000)) == []


pieces = """< > <a <a_href='x'> </a> </a <!-- --> <! <? <![CDATA[ ]]> &amp; & ' " = / b _ <br/> <script> </script>"""


@given(st.lists(st.sampled_from(pieces.split()), max_size=40).map(lambda signs: "".join(signs).replace("_", " ")))
def test_markup_is_read_as_beautiful_soup_reads_it(markup):
    try:
        text = normalize_html(markup)
    except TextError:
        with pytest.raises(ParserRejectedMarkup):
            BeautifulSoup(markup, "html.parser")
        return
    if re.search("[<&]", markup):
        assert text == BeautifulSoup(markup, "html.parser").get_text(separator=" ", strip=True)
    else:
        assert text == markup.strip()


@pytest.mark.parametrize("sign", ["<a ", "</a", "<!--", "<![CDATA[", "<?", "<a b='", "<x y=", "<!"])
def test_markup_that_is_never_closed_is_given_up(sign):
    """Read to the end for each sign, this would take minutes."""
    assert isinstance(normalize_html(sign * 20), str)
    with pytest.raises(TextError, match="not closed"):
        normalize_html(sign * 60_000)


def test_much_markup_that_is_closed_is_read():
    assert normalize_html("<p>a<br>b</p> " * 5_000) == " ".join(["a b"] * 5_000)


# --- time


def test_work_ends_at_its_deadline():
    done = []

    def steps():
        for number in range(3):
            done.append(number)
            yield
        return "result"

    assert finish(steps(), deadline=time.monotonic() + 60) == "result"
    assert done == [0, 1, 2]
    with pytest.raises(InferenceTimeout):
        finish(steps(), deadline=time.monotonic() - 1)
    assert done == [0, 1, 2]
