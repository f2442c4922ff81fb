from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from trimodal.errors import (
    InferenceFailed,
    InvalidRecord,
    MalformedBody,
    NotAcceptable,
    RequestError,
    UnsupportedMedia,
)
from trimodal.records import Payload
from trimodal.serving import pipeline as pipeline_module
from trimodal.serving.calibrate import Calibrator
from trimodal.serving.encode import ResponseFormat
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.pipeline import Pipeline
from trimodal.serving.steps import always
from trimodal.serving.tabular import RiskTable, TabularEncoder
from trimodal.serving.text import TextEncoder

JSON = "application/json"
STEPS = ("dialogue_splitter", "html_normalizer", "emoji_remover", "text_normalizer", "dialogue_chunker", "tokenizer")
RECORDS = [
    {
        "order_id": "a-1",
        "chat": "[bom]hello the parcel lost[eom]",
        "events": "[bom]scan depot[eom]",
        "amount": 12.5,
        "orders": 3,
    },
    {
        "order_id": "a-2",
        "chat": "[bom]refund please[eom]" * 9,
        "events": "[bom]scan[eom]",
        "amount": None,
        "orders": "7",
    },
    {"order_id": "a-3", "chat": "", "events": None, "amount": -3, "orders": 0},
]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def make_pipeline(schema, tokenizer, make_runner):
    def make(*, classes=2, calibrator=None, form=None, risk_tables=None, kind="score", envelope=None):
        schema_used = replace(schema, envelope=envelope)
        text = TextEncoder(tokenizer, STEPS, max_tokens=12, max_chunks=3)
        tabular = TabularEncoder(schema.tabular, {"amount": 40.0}, risk_tables or {})
        return Pipeline(
            schema=schema_used,
            features=FeatureEncoder(schema_used, text, text, tabular),
            runner=make_runner(kind, classes=classes),
            calibrator=calibrator or Calibrator(),
            form=form or ResponseFormat(),
            binary=classes == 2,
        )

    return make


@pytest.fixture(scope="module")
def pipeline(make_pipeline):
    return make_pipeline()


def scores(pipeline, body, content_type=JSON):
    answer, media = pipeline.answer(body, content_type, None)
    assert media == JSON
    return [float(row["legacy-score"]) for row in json.loads(answer)["predictions"]]


def score_records(pipeline, records):
    return scores(pipeline, json.dumps(records).encode())


# --- formats


@pytest.fixture(scope="module")
def expected(pipeline):
    return [score for record in RECORDS for score in score_records(pipeline, record)]


def as_csv(*, header):
    lines = ["order_id,chat,events,amount,orders"] * header
    for record in RECORDS:
        lines.append(",".join("" if value is None else f'"{value}"' for value in record.values()))
    return "\n".join(lines).encode()


def as_parquet():
    out = io.BytesIO()
    columns = {name: [record[name] for record in RECORDS] for name in RECORDS[0]}
    columns["orders"] = [int(value) for value in columns["orders"]]
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps(RECORDS).encode(), JSON),
        (json.dumps(RECORDS, indent=2).encode() + b"\n", "Application/JSON; charset=UTF-8"),
        (json.dumps([list(record.values()) for record in RECORDS]).encode(), JSON),
        ("\n".join(json.dumps(record) for record in RECORDS).encode(), "application/jsonlines"),
        ("\n".join(json.dumps(record) for record in RECORDS).encode(), "application/x-ndjson"),
        (as_csv(header=True), "text/csv"),
        (as_csv(header=False), "text/csv; header=absent"),
        (as_parquet(), "application/x-parquet"),
    ],
    ids=["list", "pretty list", "positional list", "JSON lines", "NDJSON", "CSV with header", "CSV", "parquet"],
)
def test_a_record_scores_the_same_in_every_format_and_company(body, content_type, pipeline, expected):
    assert scores(pipeline, body, content_type) == pytest.approx(expected, abs=TOLERANCE)


def test_the_records_differ(expected):
    assert len({round(score, 3) for score in expected}) == len(RECORDS)


def test_wrapped_records(make_pipeline, expected):
    body = json.dumps({"instances": RECORDS}).encode()
    assert scores(make_pipeline(envelope="instances"), body) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("accept", ["application/jsonlines", "text/csv", "text/csv;q=0.5, application/x-ndjson"])
def test_one_line_a_record(accept, pipeline):
    body, media = pipeline.answer(json.dumps(RECORDS).encode(), JSON, accept)
    assert body.count(b"\n") == 3
    assert media in accept


def test_the_form_adds_label_and_id(make_pipeline):
    form = ResponseFormat(numbers=True, label=True, echo_id=True)
    body, _ = make_pipeline(form=form).answer(json.dumps(RECORDS).encode(), JSON, JSON)
    rows = json.loads(body)["predictions"]
    assert [row["order_id"] for row in rows] == ["a-1", "a-2", "a-3"]
    for row in rows:
        assert row["output-label"] == ("class-1" if row["legacy-score"] > 0.5 else "class-0")


@pytest.mark.parametrize("record", [{"order_id": None}, {"order_id": float("nan")}, {}])
def test_an_id_that_is_missing_is_null(record, make_pipeline):
    values = {name: value for name, value in RECORDS[0].items() if name != "order_id"} | record
    body, _ = make_pipeline(form=ResponseFormat(echo_id=True)).answer(json.dumps(values).encode(), JSON, None)
    assert json.loads(body)["predictions"][0]["order_id"] is None


# --- scores


def test_without_calibrator_the_calibrated_scores_repeat_the_raw_ones(pipeline):
    body, _ = pipeline.answer(json.dumps(RECORDS).encode(), JSON, None)
    for row in json.loads(body)["predictions"]:
        assert row["legacy-score"] == row["calibrated-score"] == row["score-percentile"]


def test_binary_scores_are_calibrated_and_labels_are_not(make_pipeline, expected):
    calibrator = Calibrator(binary=((0.0, 1.0), (1.0, 0.0)))
    predictions = make_pipeline(calibrator=calibrator).predict(Payload(RECORDS))
    np.testing.assert_allclose(predictions.raw[:, 0], expected, atol=TOLERANCE)
    np.testing.assert_allclose(predictions.calibrated, 1 - predictions.raw, atol=TOLERANCE)
    assert predictions.labels == [int(score > 0.5) for score in expected]
    assert predictions.raw.shape == (3, 1)
    assert predictions.ids == ["a-1", "a-2", "a-3"]


def test_several_classes(make_pipeline):
    calibrator = Calibrator(classes={0: ((0.0, 0.0), (1.0, 3.0))})
    predictions = make_pipeline(classes=3, calibrator=calibrator).predict(Payload(RECORDS))
    assert not predictions.binary
    assert predictions.raw.shape == predictions.calibrated.shape == (3, 3)
    np.testing.assert_allclose(predictions.calibrated.sum(axis=1), 1, atol=1e-5)
    assert (predictions.calibrated[:, 0] > predictions.raw[:, 0]).all()
    assert predictions.labels == predictions.raw.argmax(axis=1).tolist()


def test_null_is_imputed_alone_and_in_company(pipeline):
    (imputed,) = score_records(pipeline, RECORDS[0] | {"amount": None})
    (given_value,) = score_records(pipeline, RECORDS[0] | {"amount": 40})
    assert imputed == pytest.approx(given_value, abs=TOLERANCE)
    assert score_records(pipeline, [RECORDS[1], RECORDS[0] | {"amount": None}])[1] == pytest.approx(
        imputed, abs=TOLERANCE
    )


words = st.sampled_from(
    ["hello", "the parcel", "lost", "refund please", "<b>scan</b>", "\U0001f914", "[eom][bom]", "depot"]
)
conversation = st.lists(words, max_size=30).map(lambda parts: "[bom]" + " ".join(parts) + "[eom]")
any_record = st.fixed_dictionaries(
    {
        "chat": conversation,
        "events": conversation | st.none(),
        "amount": st.floats(-1e3, 1e3) | st.none(),
        "orders": st.integers(-5, 500),
    }
)


@given(records=st.lists(any_record, min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_records_score_is_its_own(records, pipeline):
    alone = [score for record in records for score in score_records(pipeline, record)]
    assert score_records(pipeline, records) == pytest.approx(alone, abs=TOLERANCE)
    assert score_records(pipeline, records[::-1]) == pytest.approx(alone[::-1], abs=TOLERANCE)
    assert score_records(pipeline, records + RECORDS + records) == pytest.approx(
        [*alone, *score_records(pipeline, RECORDS), *alone], abs=TOLERANCE
    )


# --- errors


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "error"),
    [
        (b"", JSON, None, MalformedBody),
        (b"{", JSON, None, MalformedBody),
        (b"{}", "text/plain", None, UnsupportedMedia),
        (b"{}", JSON, "text/html", NotAcceptable),
        (b"{}", JSON, None, InvalidRecord),
        (b"{}", "text/plain", "text/html", UnsupportedMedia),
        (b"{", JSON, "text/html", NotAcceptable),  # what cannot be answered is not read
        (b"1,2,3\n", "text/csv", None, InvalidRecord),
        (json.dumps([RECORDS[0], RECORDS[1] | {"amount": float("inf")}]).encode(), JSON, None, InvalidRecord),
    ],
)
def test_a_bad_request_gets_its_own_error(body, content_type, accept, error, pipeline):
    with pytest.raises(error) as caught:
        pipeline.answer(body, content_type, accept)
    assert type(caught.value) is error


def test_a_failing_model_is_an_error_and_never_a_score(make_pipeline):
    pipeline = make_pipeline(kind="root")  # the square root of a negative amount is no number
    with pytest.raises(InferenceFailed) as caught:
        pipeline.answer(json.dumps(RECORDS).encode(), JSON, None)
    assert caught.value.record == 2
    assert len(score_records(pipeline, RECORDS[:2])) == 2


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":[', "]}")], ids=["lists", "objects"])
def test_values_nested_as_deep_as_json_allows_are_no_failure(start, end, make_pipeline):
    rest = '"chat": "", "events": "", "orders": 1'
    pipeline = make_pipeline(form=ResponseFormat(echo_id=True), risk_tables={"amount": RiskTable({}, 0.5)})
    for depth in range(300, 1000, 5):
        deep = start * depth + end * depth
        with suppress(MalformedBody):
            body, _ = pipeline.answer(f'{{"order_id": {deep}, "amount": {deep}, {rest}}}'.encode(), JSON, None)
            assert len(json.loads(body)["predictions"]) == 1


field_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | conversation,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
fields = st.sampled_from(["order_id", "chat", "events", "amount", "orders", "instances"])


@given(
    document=st.lists(
        st.dictionaries(fields, field_values) | st.lists(field_values, max_size=6), min_size=1, max_size=3
    ),
    accept=st.sampled_from([JSON, "application/jsonlines", "text/csv"]),
)
@settings(max_examples=200)
def test_any_json_gives_an_answer_or_a_client_error(document, accept, make_pipeline):
    pipeline = make_pipeline(form=ResponseFormat(label=True, echo_id=True), envelope="instances")
    result = answer_or_error(pipeline, json.dumps(document).encode(), accept)
    if isinstance(result, RequestError):
        assert 400 <= result.status < 500
    else:
        assert result[1] == accept
        assert result[0].strip()


def answer_or_error(pipeline, body, accept):
    try:
        return pipeline.answer(body, JSON, accept)
    except RequestError as err:
        return err


def test_long_texts_end_a_slice_before_its_records_do(pipeline, monkeypatch):
    def slices():
        steps = pipeline.steps(Payload(RECORDS * 4), always)
        return sum(1 for _ in steps)

    together = slices()
    monkeypatch.setattr(pipeline_module, "SLICE_SECONDS", 0)
    assert slices() == together + 4 * len(RECORDS)
