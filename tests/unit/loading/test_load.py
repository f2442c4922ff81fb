from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto

from model_directories import (
    FIELDS,
    PRIMARY,
    RECORD,
    SECONDARY,
    TABLE,
    VOCABULARY,
    Graph,
    artifact_error,
    tokenizer,
)
from model_directories import write_model_directory as write
from trimodal.errors import InvalidRecord
from trimodal.loading.load import load_pipeline, response_format
from trimodal.records import Payload
from trimodal.settings import Settings

LONG = {
    **RECORD,
    PRIMARY: "[bom]" + "the item was late " * 30 + "[eom] [bom]never came[eom]" * 9,
    SECONDARY: "[bom]lost[eom]",
}


def settings_of(directory, **changes):
    return replace(Settings(model_dir=directory, workers=1, intra_op_threads=1), **changes)


def load(directory, **changes):
    return load_pipeline(settings_of(directory, **changes))


def score(pipeline, *records):
    return pipeline.predict(Payload(records or [RECORD])).raw


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The score of the usual record by the usual graph."""
    return score(load(write(tmp_path_factory.mktemp("model"))))


def test_a_loaded_directory_answers(tmp_path):
    pipeline = load(write(tmp_path, calibration={"percentile_score": TABLE}))

    body, media = pipeline.answer(json.dumps(RECORD).encode(), "application/json", None)

    (answer,) = json.loads(body)["predictions"]
    raw = float(answer["legacy-score"])
    assert media == "application/json"
    assert list(answer) == ["legacy-score", "calibrated-score", "score-percentile"]
    assert 0 < raw < 1
    assert float(answer["calibrated-score"]) == pytest.approx(np.interp(raw, *zip(*TABLE, strict=True)), abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {PRIMARY: "[bom]thanks[eom]"},
        {SECONDARY: "[bom]order delivered[eom]"},
        {"amount": 100},
        {"count": 0},
    ],
)
def test_every_input_matters(tmp_path, reference, change):
    assert abs(score(load(write(tmp_path)), {**RECORD, **change}) - reference).max() > 1e-3


@pytest.mark.parametrize(
    "graph",
    [
        Graph(tokens=16),
        Graph(tokens=40),
        Graph(batch=1),
        Graph(batch=4),
        Graph(single_tabular=True),
        Graph(integers=TensorProto.INT32),
        Graph(floats=TensorProto.DOUBLE),
        Graph(vocabulary=len(VOCABULARY) + 5),
    ],
    ids=repr,
)
def test_layouts_of_the_same_model_give_the_same_score(tmp_path, reference, graph):
    assert score(load(write(tmp_path, graph=graph))) == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("graph", [Graph(chunks=None), Graph(chunks=2), Graph(chunks=1, tokens=16)], ids=repr)
def test_a_graph_of_few_chunks_reads_only_those(tmp_path, graph):
    pipeline = load(write(tmp_path, graph=graph))

    text = pipeline.features.primary.encode(LONG[PRIMARY])

    assert len(text.chunks) == (graph.chunks or 1)
    assert text.dropped_chunks > 0
    assert score(pipeline, LONG).shape == (1, 1)


def test_chunks_follow_the_limit_of_the_model_directory(tmp_path):
    limited = load(write(tmp_path / "a")).features.primary.encode(LONG[PRIMARY])
    unlimited = load(write(tmp_path / "b", config={"chunk_trancate": False})).features.primary.encode(LONG[PRIMARY])

    assert (len(limited.chunks), unlimited.dropped_chunks) == (3, 0)
    assert len(unlimited.chunks) == 3 + limited.dropped_chunks
    assert max(map(len, unlimited.chunks)) <= 16


def test_a_score_does_not_depend_on_the_neighbours(tmp_path, reference):
    pipeline = load(write(tmp_path))

    scores = score(pipeline, LONG, RECORD, {**RECORD, PRIMARY: ""}, LONG, RECORD)

    assert scores[[1, 4]] == pytest.approx(np.repeat(reference, 2, axis=0), abs=1e-5)


def test_three_classes(tmp_path):
    pipeline = load(write(tmp_path, graph=Graph(classes=3), config={"num_classes": 3}))

    scores = score(pipeline)

    assert scores.shape == (1, 3)
    assert scores.sum() == pytest.approx(1)


def test_a_model_without_tabular_fields(tmp_path):
    pipeline = load(write(tmp_path, graph=Graph(fields=()), config={"tab_field_list": []}))

    assert score(pipeline).shape == (1, 1)


def test_imputation_and_risk_tables_reach_the_model(tmp_path):
    risk = {"count": {"bins": {"two": 2.0}, "default_bin": 7.0}}
    pipeline = load(write(tmp_path, risk_tables=risk))

    def tabular(**values):
        (value,) = pipeline.predict(Payload([{**RECORD, "count": "two", **values}])).raw[0]
        return value

    assert tabular(amount=None) == tabular(amount=20.0) != tabular(amount=0.0)
    assert tabular(count="two") != tabular(count="three") == tabular(count=None)


def test_a_bad_record_is_refused_by_a_loaded_pipeline(tmp_path):
    with pytest.raises(InvalidRecord, match="Record 1: the field amount is not a number"):
        score(load(write(tmp_path)), RECORD, {**RECORD, "amount": "much"})


@pytest.mark.parametrize("extra", ["[UNK]-like", "zebra"])
def test_a_tokenizer_larger_than_the_embedding_is_an_error(tmp_path, extra):
    directory = write(tmp_path)
    tokenizer((*VOCABULARY, extra)).save(str(directory / "tokenizer.json"))

    with artifact_error(
        "model.onnx fails on texts of 2 and 2 tokens", f"token id {len(VOCABULARY)}", "exported for this tokenizer"
    ):
        load(directory)


@pytest.mark.parametrize(
    ("graph", "config", "words"),
    [
        (Graph(tokens=8), {}, "takes texts of 8 tokens and max_sen_len is 16; export it with a dynamic token axis"),
        (Graph(tokens=15, chunks=None), {}, "takes texts of 15 tokens and max_sen_len is 16"),
        (Graph(classes=3), {}, "gives 3 scores a record and hyperparameters.json names 2 classes"),
        (Graph(classes=1), {}, "gives 1 scores a record and hyperparameters.json names 2 classes"),
        (Graph(), {"num_classes": 3}, "gives 2 scores a record and hyperparameters.json names 3 classes"),
        (Graph(softmax=False), {}, "gives scores that are not probabilities; export it with its softmax"),
        (Graph(softmax=False, classes=3), {"num_classes": 3}, "gives scores that are not probabilities"),
        (Graph(primary="dialogue"), {}, "has no input chat_input_ids; export it with the names of"),
        (Graph(fields=("amount",)), {}, "has no input count, which hyperparameters.json lists in tab_field_list"),
        (Graph(fields=(*FIELDS, "age")), {}, "has the unknown input age"),
        (Graph(fields=("a", "b", "c"), single_tabular=True), {}, "the input tabular must be a tensor [B, 2]"),
    ],
)
def test_a_graph_that_contradicts_the_configuration_is_an_error(tmp_path, graph, config, words):
    directory = write(tmp_path, graph=graph, config=config)

    with artifact_error("model.onnx", words):
        load(directory)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"numbers": False, "label": False, "echo_id": False, "default": "application/json"}),
        (
            {"score_numbers": True, "response_fields": ("id", "output-label"), "default_accept": "text/csv"},
            {"numbers": True, "label": True, "echo_id": True, "default": "text/csv"},
        ),
    ],
)
def test_answers_are_written_as_the_settings_say(tmp_path, changes, expected):
    form = response_format(replace(Settings(model_dir=tmp_path), **changes))

    assert {name: getattr(form, name) for name in expected} == expected


def test_the_settings_reach_the_answer(tmp_path):
    pipeline = load(write(tmp_path), score_numbers=True, response_fields=("id", "output-label"))

    body, _ = pipeline.answer(json.dumps(RECORD).encode(), "application/json", None)

    (answer,) = json.loads(body)["predictions"]
    assert isinstance(answer["legacy-score"], float)
    assert answer["order_id"] == "A-1"
    assert answer["output-label"] == f"class-{int(answer['legacy-score'] > 0.5)}"


def test_threads_follow_the_settings(tmp_path):
    options = load(write(tmp_path), intra_op_threads=3, inter_op_threads=2).runner.session.get_session_options()

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
