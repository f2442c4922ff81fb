from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.errors import NotAcceptable
from trimodal.records import Predictions
from trimodal.serving.encode import ENCODERS, ResponseFormat, encode, negotiate

JSON = "application/json"
LINES = "application/jsonlines"
CSV = "text/csv"
PLAIN = ResponseFormat()


@pytest.fixture
def binary():
    return Predictions(
        raw=np.array([[0.73], [0.0001]], np.float32),
        calibrated=np.array([[0.5], [1.0]], np.float32),
        labels=[1, 0],
        ids=["order-17", None],
        binary=True,
        id_name="order_id",
    )


@pytest.fixture
def several():
    return Predictions(
        raw=np.array([[0.25, 0.125, 0.625]], np.float32),
        calibrated=np.array([[0.5, 0.25, 0.25]], np.float32),
        labels=[2],
        ids=[18],
        binary=False,
        id_name="order_id",
    )


def written(predictions, accept, form=PLAIN):
    body, _ = encode(predictions, accept, form)
    return body.decode()


# --- exact bodies


def test_binary_json(binary):
    assert written(binary, JSON) == (
        '{"predictions": ['
        '{"legacy-score": "0.7300000190734863", "calibrated-score": "0.5", "score-percentile": "0.5"}, '
        '{"legacy-score": "9.999999747378752e-05", "calibrated-score": "1.0", "score-percentile": "1.0"}]}'
    )


def test_binary_json_lines(binary):
    assert written(binary, LINES) == (
        '{"legacy-score": "0.7300000190734863", "calibrated-score": "0.5", "score-percentile": "0.5"}\n'
        '{"legacy-score": "9.999999747378752e-05", "calibrated-score": "1.0", "score-percentile": "1.0"}\n'
    )


def test_binary_csv(binary):
    assert written(binary, CSV) == "0.7300,0.5000,0.5000\n0.0001,1.0000,1.0000\n"


def test_several_classes_json(several):
    assert written(several, JSON) == (
        '{"predictions": [{"prob_01": "0.25", "calibrated_prob_01": "0.5", '
        '"prob_02": "0.125", "calibrated_prob_02": "0.25", '
        '"prob_03": "0.625", "calibrated_prob_03": "0.25"}]}'
    )


def test_several_classes_json_lines(several):
    assert written(several, "application/x-ndjson").count("\n") == 1
    assert json.loads(written(several, LINES)) == json.loads(written(several, JSON))["predictions"][0]


def test_several_classes_csv(several):
    assert written(several, CSV) == "0.2500,0.1250,0.6250,0.5000,0.2500,0.2500\n"


def test_class_numbers_have_two_digits_and_more_where_needed(several):
    wide = np.full((1, 101), 1 / 101, np.float32)
    (row,) = json.loads(written(replace(several, raw=wide, calibrated=wide), JSON))["predictions"]
    assert list(row)[18:20] == ["prob_10", "calibrated_prob_10"]
    assert list(row)[-1] == "calibrated_prob_101"


@pytest.mark.parametrize("media", [JSON, LINES, "application/x-ndjson", CSV])
def test_the_media_type_comes_with_the_body(media, binary):
    assert encode(binary, media, PLAIN)[1] == media


def test_scores_as_numbers(binary):
    rows = json.loads(written(binary, JSON, ResponseFormat(numbers=True)))["predictions"]
    assert rows[0] == {"legacy-score": 0.7300000190734863, "calibrated-score": 0.5, "score-percentile": 0.5}
    assert written(binary, CSV, ResponseFormat(numbers=True)) == written(binary, CSV)


@given(score=st.floats(0, 1, width=32))
def test_a_score_is_the_shortest_form_of_its_float32_value(score):
    value = np.array([[score]], np.float32)
    predictions = Predictions(value, value, [0], [None], binary=True)
    text = json.loads(written(predictions, JSON))["predictions"][0]["legacy-score"]
    assert text == repr(float(np.float32(score)))
    assert np.float32(text) == np.float32(score)


# --- labels and ids


def test_the_label_comes_after_the_scores(binary, several):
    form = ResponseFormat(label=True)
    first, second = json.loads(written(binary, JSON, form))["predictions"]
    assert list(first) == ["legacy-score", "calibrated-score", "score-percentile", "output-label"]
    assert (first["output-label"], second["output-label"]) == ("class-1", "class-0")
    assert written(binary, CSV, form) == "0.7300,0.5000,0.5000,class-1\n0.0001,1.0000,1.0000,class-0\n"
    assert written(several, CSV, form).endswith(",class-2\n")


def test_the_id_comes_last_under_its_own_name(binary):
    form = ResponseFormat(label=True, echo_id=True)
    first, second = json.loads(written(binary, JSON, form))["predictions"]
    assert list(first)[-2:] == ["output-label", "order_id"]
    assert (first["order_id"], second["order_id"]) == ("order-17", None)
    assert written(binary, CSV, form) == "0.7300,0.5000,0.5000,class-1,order-17\n0.0001,1.0000,1.0000,class-0,\n"


@pytest.mark.parametrize(("identity", "echoed"), [(18, 18), (1.5, 1.5), ("18", "18"), (["a"], "['a']"), ("Ö ☂", "Ö ☂")])
def test_an_id_keeps_its_type_where_json_has_it(identity, echoed, several):
    (row,) = json.loads(written(replace(several, ids=[identity]), JSON, ResponseFormat(echo_id=True)))["predictions"]
    assert row["order_id"] == echoed


@pytest.mark.parametrize("identity", ['a,"b"', "two\nlines", "plain"])
def test_an_id_is_quoted_in_csv(identity, several):
    body = written(replace(several, ids=[identity]), CSV, ResponseFormat(echo_id=True))
    (row,) = csv.reader(io.StringIO(body, newline=""))
    assert row[-1] == identity


def test_a_model_without_an_id_field_echoes_none(several):
    form = ResponseFormat(echo_id=True)
    assert written(replace(several, id_name=None), JSON, form) == written(several, JSON)


@pytest.mark.parametrize("identity", [float("inf"), float("-inf"), float("nan")])
def test_an_infinite_id_does_not_break_json(identity, several):
    body = written(replace(several, ids=[identity]), JSON, ResponseFormat(echo_id=True))
    (row,) = json.loads(body, parse_constant=pytest.fail)["predictions"]
    assert row["order_id"] == str(identity)


def test_a_lone_surrogate_in_an_id_is_escaped_in_json(several):
    body = written(replace(several, ids=["\ud83d"]), JSON, ResponseFormat(echo_id=True))
    assert json.loads(body)["predictions"][0]["order_id"] == "\ud83d"


def test_a_lone_surrogate_in_an_id_does_not_break_csv(several):
    body, _ = encode(replace(several, ids=["\ud83d"]), CSV, ResponseFormat(echo_id=True))
    assert body == b"0.2500,0.1250,0.6250,0.5000,0.2500,0.2500,?\n"


# --- Accept


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("*", JSON),
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        ("application/*", JSON),
        ("application/jsonlines", LINES),
        ("application/x-ndjson", "application/x-ndjson"),
        ("text/csv", CSV),
        ("text/*", CSV),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("text/html, text/csv", CSV),
        ("text/csv, application/json", CSV),
        ("application/json;q=0.5, text/csv;q=0.9", CSV),
        ("application/json;q=0.5,text/csv", CSV),
        ("text/csv;q=0.1, */*;q=0.2", JSON),
        ("text/csv; q = 0.1 , application/jsonlines ; Q=0.2", LINES),
        ("text/csv;q=0, application/jsonlines;q=0.001", LINES),
        ("text/csv;q=much, application/json;q=0.1", JSON),
        (" , text/csv", CSV),
    ],
)
def test_the_client_chooses_the_media_type(accept, media):
    assert negotiate(accept) == media


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "image/*",
        "application/xml;q=0.9, text/html",
        "text/csv;q=0",
        "*/*;q=0",
        "json",
        "application/jsonx",
        "csv/*",
    ],
)
def test_what_cannot_be_written_is_not_acceptable(accept, binary):
    with pytest.raises(NotAcceptable) as caught:
        encode(binary, accept, PLAIN)
    assert caught.value.status == 406
    assert all(media in str(caught.value) for media in ENCODERS)


@pytest.mark.parametrize(
    ("accept", "default", "media"),
    [
        (None, CSV, CSV),
        ("*/*", LINES, LINES),
        ("application/*", LINES, LINES),
        ("application/*", CSV, JSON),
        ("text/*", JSON, CSV),
    ],
)
def test_the_default_can_be_another(accept, default, media, binary):
    assert negotiate(accept, default) == media
    assert encode(binary, accept, ResponseFormat(default=default))[1] == media


@given(accept=st.text(alphabet='application/json*;q=0.1, text/csv"\n', max_size=40))
def test_any_accept_gives_a_media_type_or_is_not_acceptable(accept):
    with suppress(NotAcceptable):
        assert negotiate(accept) in ENCODERS
