from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from model_directories import RECORD, Graph, artifact_error
from model_directories import write_model_directory as write
from trimodal.errors import InvalidRecord
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import read_golden, replay_golden
from trimodal.records import Payload
from trimodal.settings import Settings

RECORDS = [RECORD, {**RECORD, "amount": None}, {**RECORD, "chat": "[bom]thanks[eom]"}]


def pipeline_of(path, **changes):
    return load_pipeline(replace(Settings(model_dir=write(path, **changes)), workers=1, intra_op_threads=1))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return pipeline_of(tmp_path_factory.mktemp("model"))


@pytest.fixture
def golden(tmp_path):
    return tmp_path / "golden.jsonl"


def lines(pipeline, records):
    """Returns golden lines with the probabilities of every class."""
    raw = pipeline.predict(Payload(records)).raw
    probs = np.concatenate([1 - raw, raw], axis=1) if pipeline.binary else raw
    return [{"record": record, "probs": row} for record, row in zip(records, probs.tolist(), strict=True)]


def write_lines(path, items, end="\n"):
    path.write_text("".join(json.dumps(item) + end for item in items), encoding="utf-8")


def test_records_are_replayed(pipeline, golden):
    write_lines(golden, lines(pipeline, RECORDS))

    replay = replay_golden(pipeline, golden)

    assert (replay.records, replay.refusal) == (3, None)


def test_records_of_three_classes_are_replayed(tmp_path, golden):
    pipeline = pipeline_of(tmp_path / "model", graph=Graph(classes=3), config={"num_classes": 3})
    write_lines(golden, lines(pipeline, RECORDS))

    replay = replay_golden(pipeline, golden)

    assert (replay.records, replay.refusal) == (3, None)


def test_the_largest_difference_is_told(pipeline, golden):
    items = lines(pipeline, RECORDS)
    items[0]["probs"][1] += 0.01
    items[2]["probs"][1] -= 0.25

    write_lines(golden, items)

    replay = replay_golden(pipeline, golden)

    assert (replay.records, replay.largest) == (3, pytest.approx(0.25, abs=1e-6))
    assert replay.refusal == "a probability differs by 0.25, more than 0.0001"


def test_other_keys_blank_lines_and_line_separators_do_not_matter(pipeline, golden):
    (item,) = lines(pipeline, [{**RECORD, "chat": "[bom]late\u2028item[eom]"}])
    golden.write_text("\n" + json.dumps({**item, "label": 1}, ensure_ascii=False) + "\n\n", encoding="utf-8")

    replay = replay_golden(pipeline, golden)

    assert (replay.records, replay.refusal) == (1, None)


def test_a_probability_that_is_no_number_is_not_within_the_tolerance(pipeline, golden):
    write_lines(golden, [{"record": RECORD, "probs": [0.5, float("nan")]}])

    assert replay_golden(pipeline, golden).refusal == "scores are missing or not finite"


def test_no_recorded_records_is_an_error(pipeline, golden):
    with artifact_error("golden.jsonl is missing from the model directory", "nothing to verify against"):
        replay_golden(pipeline, golden)


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_a_file_without_records_is_an_error(golden, content):
    golden.write_text(content)

    with artifact_error("golden.jsonl holds no record; record it again"):
        read_golden(golden)


GOOD = json.dumps({"record": RECORD, "probs": [0.5, 0.5]})


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "5",
        "[]",
        "{}",
        json.dumps({"record": RECORD}),
        json.dumps({"probs": [0.5, 0.5]}),
        json.dumps({"record": 5, "probs": [0.5, 0.5]}),
        json.dumps({"record": RECORD, "probs": 0.5}),
        json.dumps({"record": RECORD, "probs": ["high", 1]}),
        json.dumps({"record": RECORD, "probs": [None, 1]}),
    ],
)
def test_a_line_of_another_form_is_an_error_that_names_it(golden, line):
    golden.write_text(f"{GOOD}\n\n{line}\n")

    with artifact_error("golden.jsonl line 3 must be an object with “record” and “probs”; record it again"):
        read_golden(golden)


@pytest.mark.parametrize("probs", [[0.1, 0.2, 0.7], [], [1.0]])
def test_another_number_of_classes_is_an_error(pipeline, golden, probs):
    write_lines(golden, [{"record": RECORD, "probs": probs}])

    with artifact_error("golden.jsonl holds another number of classes than the model; record it again"):
        replay_golden(pipeline, golden)


def test_lines_of_different_numbers_of_classes_are_an_error(pipeline, golden):
    write_lines(golden, [{"record": RECORD, "probs": [0.5, 0.5]}, {"record": RECORD, "probs": [0.1, 0.2, 0.7]}])

    with artifact_error("golden.jsonl has lines with different numbers of classes; record it again"):
        replay_golden(pipeline, golden)


def test_a_file_that_is_not_utf8_is_an_error(golden):
    golden.write_bytes(b"\xff\xfe\n")

    with artifact_error("golden.jsonl is not readable as UTF-8 text; record it again"):
        read_golden(golden)


def test_a_record_that_cannot_be_scored_is_named(pipeline, golden):
    write_lines(golden, [*lines(pipeline, [RECORD]), {"record": {**RECORD, "amount": "x"}, "probs": [0.5, 0.5]}])

    with pytest.raises(InvalidRecord, match="Record 1: the field amount is not a number"):
        replay_golden(pipeline, golden)
