from __future__ import annotations

import numpy as np
import pytest

from trimodal.errors import InvalidRecord
from trimodal.records import Record
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.tabular import TabularEncoder
from trimodal.serving.text import TextEncoder


@pytest.fixture(scope="module")
def encoder(schema, tokenizer):
    html = ("dialogue_splitter", "html_normalizer", "dialogue_chunker", "tokenizer")
    plain = ("dialogue_splitter", "text_normalizer", "dialogue_chunker", "tokenizer")
    return FeatureEncoder(
        schema=schema,
        primary=TextEncoder(tokenizer, html, 8, 2),
        secondary=TextEncoder(tokenizer, plain, 6, None, read_unmarked=True),
        tabular=TabularEncoder(schema.tabular, {"orders": 2.0}, {}),
    )


@pytest.fixture
def read(vocabulary):
    return lambda text: [" ".join(vocabulary[i] for i in chunk) for chunk in text.chunks]


def record(index=0, **values):
    return Record(index, {"chat": "[bom]hello[eom]", "events": "scan", "amount": 1, "orders": 2, **values})


def test_each_field_is_read_by_its_own_encoder(encoder, read):
    features = encoder.encode(
        record(5, chat="[bom]<b>the</b> parcel[eom]", events="Depot  SCAN", amount="1.5", orders=None)
    )
    assert features.index == 5
    assert read(features.primary) == ["[CLS] the parcel [SEP]"]
    assert read(features.secondary) == ["[CLS] depot scan [SEP]"]
    assert features.tabular.tolist() == [1.5, 2.0]
    assert features.tabular.dtype == np.float32


def test_what_was_cut_dropped_or_unmarked_is_kept_for_each_text(encoder):
    long = "[bom]" + "the parcel lost " * 4 + "[eom]"
    features = encoder.encode(record(chat=long * 4, events="scan it"))
    assert (features.primary.unmarked, features.primary.cut_messages, features.primary.dropped_chunks) == (False, 4, 2)
    assert (features.secondary.unmarked, features.secondary.cut_messages) == (True, 0)


@pytest.mark.parametrize("value", [None, "", float("nan"), " "], ids=repr)
def test_a_missing_text_is_a_placeholder(value, encoder, read):
    features = encoder.encode(record(chat=value, events=value))
    assert read(features.primary) == read(features.secondary) == ["[CLS] . [SEP]"]
    assert features.primary.unmarked
    assert features.secondary.unmarked


def test_an_absent_text_is_a_placeholder(encoder, read):
    features = encoder.encode(Record(0, {"amount": 1}))
    assert read(features.primary) == read(features.secondary) == ["[CLS] . [SEP]"]


@pytest.mark.parametrize(("value", "tokens"), [(17, "1 ##7"), (2.5, "2 . 5"), (True, "t ##r ##u ##e")])
def test_numbers_as_text_are_read_as_they_are_written(value, tokens, encoder, read):
    assert read(encoder.encode(record(events=value)).secondary) == [f"[CLS] {tokens} [SEP]"]


@pytest.mark.parametrize("value", [["hello"], {"text": "hello"}, b"hello", []], ids=repr)
@pytest.mark.parametrize("field", ["chat", "events"])
def test_other_values_are_not_texts(field, value, encoder):
    with pytest.raises(InvalidRecord) as caught:
        encoder.encode(record(3, **{field: value}))
    assert str(caught.value) == f"Record 3: the field {field} is not a text."
    assert caught.value.record == 3


def test_a_text_that_a_step_cannot_read_names_record_and_field(encoder):
    with pytest.raises(InvalidRecord) as caught:
        encoder.encode(record(2, chat="[bom]secret <![ secret[eom]"))
    assert str(caught.value) == "Record 2: the field chat holds markup that cannot be parsed."
    assert caught.value.record == 2
    assert caught.value.__cause__ is not None


def test_a_text_that_is_not_unicode_names_record_and_field(encoder):
    with pytest.raises(InvalidRecord, match=r"Record 1: the field events holds characters that are not Unicode text\."):
        encoder.encode(record(1, events="secret \udfff"))


def test_a_bad_number_names_record_and_field(encoder):
    with pytest.raises(InvalidRecord, match=r"Record 7: the field amount is not a number\."):
        encoder.encode(record(7, amount="a lot"))
