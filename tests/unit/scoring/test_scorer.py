"""A partition's output: the pipeline's own answers, digit for digit, and errors in their places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import numpy_helper
from pyarrow import parquet

from model_directories import PRIMARY, RECORD, Graph
from model_directories import write_model_directory as write
from trimodal.loading.load import load_pipeline
from trimodal.scoring.dataset import Partition, cut
from trimodal.scoring.scorer import Scorer, draft
from trimodal.settings import Settings

TEXTS = ("[bom]The item was late![eom]", "[bom]never came, please refund it[eom]", "", "[bom]thanks[eom] [bom]yes[eom]")
SCORES = ["legacy-score", "calibrated-score", "score-percentile"]
HUGE = {"amount": 3e38, "count": 3e38}


def load(path, **settings):
    return load_pipeline(Settings(model_dir=path, workers=1, intra_op_threads=1, fusion=False, **settings))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return load(write(tmp_path_factory.mktemp("model"), calibration={"percentile_score": [[0.0, 0.05], [1.0, 0.9]]}))


@pytest.fixture(scope="module")
def brittle(tmp_path_factory):
    """A model that gives no finite score for huge numbers."""
    path = write(tmp_path_factory.mktemp("brittle"))
    model = onnx.load(path / "model.onnx")
    (scale,) = (constant for constant in model.graph.initializer if constant.name == "scale")
    scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), 10.0), "scale"))
    onnx.save(model, path / "model.onnx")
    return load(path)


@pytest.fixture(scope="module")
def records():
    return [{**RECORD, "order_id": f"A-{n}", "amount": n / 7, PRIMARY: TEXTS[n % len(TEXTS)]} for n in range(20)]


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path / "in", tmp_path / "out"


def write_lines(folder, lines):
    (folder / "a.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def score(pipeline, folders, rows=1000):
    """Scores every partition; returns the outcomes and the rows of the output."""
    folder, out = folders
    scorer = Scorer(pipeline, folder, out, "run")
    partitions = cut(folder, sorted(path.name for path in folder.iterdir()), rows)
    outcomes = [scorer.score(partition) for partition in partitions]
    tables = [parquet.read_table(out / partition.name) for partition in partitions if (out / partition.name).exists()]
    return outcomes, pa.concat_tables(tables).to_pylist() if tables else []


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("rows", [7, 1000])
def test_the_scores_are_those_of_the_pipelines_answers(pipeline, records, folders, suffix, rows):
    if suffix == "jsonl":
        write_lines(folders[0], records)
    else:
        parquet.write_table(pa.Table.from_pylist(records), folders[0] / "a.parquet")

    outcomes, got = score(pipeline, folders, rows)

    assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
    assert sum(outcome.records for outcome in outcomes) == len(records)
    for start in range(0, len(records), rows):
        part = records[start : start + rows]
        answer, _ = pipeline.answer(json.dumps(part).encode(), "application/json", None)
        for place, (expected, row) in enumerate(zip(json.loads(answer)["predictions"], got[start:], strict=False)):
            assert {name: repr(row[name]) for name in SCORES} == expected
            assert list(row) == ["file", "record", "order_id", *SCORES, "output-label", "error"]
            assert (row["file"], row["record"]) == (f"a.{suffix}", start + place)
            assert (row["order_id"], row["error"]) == (part[place]["order_id"], None)
            assert row["output-label"] == f"class-{row['legacy-score'] > 0.5:d}"


def test_a_record_that_cannot_be_scored_is_an_error_in_its_place(pipeline, records, folders):
    secret = "sesame4711"
    lines = [*records[:9], {**records[9], "amount": secret}, f'{{"{secret}', {secret: secret}, *records[10:]]
    write_lines(folders[0], lines)

    outcomes, got = score(pipeline, folders, rows=5)

    assert [(outcome.errors, outcome.failure) for outcome in outcomes] == [
        (0, None),
        (1, None),
        (2, None),
        *[(0, None)] * 2,
    ]
    assert outcomes[1].error == f"a.jsonl: {got[9]['error']}"
    assert got[9]["error"] == "Record 9: the field amount is not a number."
    assert got[9]["order_id"] == "A-9"
    assert got[10]["error"].startswith("Record 10 is not valid JSON: Unterminated string")
    assert got[11]["error"].startswith("Record 11 lacks the fields")
    assert [row["record"] for row in got if row["legacy-score"] is None] == [9, 10, 11]
    assert [row["record"] for row in got if row["output-label"] is None] == [9, 10, 11]
    assert secret not in json.dumps(got)


def test_a_partition_of_nothing_but_errors(pipeline, folders):
    write_lines(folders[0], ["{", "{"])

    outcomes, got = score(pipeline, folders)

    assert (outcomes[0].records, outcomes[0].errors) == (2, 2)
    assert [row["legacy-score"] for row in got] == [None, None]


def test_a_record_whose_score_is_not_finite_costs_itself(brittle, records, folders):
    write_lines(folders[0], [*records[:3], {**records[3], **HUGE}, *records[4:]])

    (outcome,), got = score(brittle, folders)

    assert (outcome.errors, outcome.failure) == (1, None)
    assert got[3]["error"] == "The model gave no finite score for record 3."
    assert sum(row["legacy-score"] is not None for row in got) == len(records) - 1


def test_a_model_that_gives_no_finite_scores_fails_the_partition(brittle, records, folders):
    write_lines(folders[0], [{**record, **HUGE} for record in records])

    (outcome,), got = score(brittle, folders)

    assert (outcome.records, outcome.failure) == (0, "The model gives no finite scores.")
    assert got == []
    assert list(folders[1].iterdir()) == []


def test_a_line_with_an_envelope_is_no_request(tmp_path, folders):
    pipeline = load(write(tmp_path / "model", config={"request_envelope": "instances"}))
    write_lines(folders[0], [{"instances": [RECORD, RECORD]}])

    (outcome,), got = score(pipeline, folders)

    assert (outcome.records, outcome.errors, len(got)) == (1, 1, 1)


def test_several_classes(tmp_path, records, folders):
    pipeline = load(write(tmp_path / "model", graph=Graph(classes=3), config={"num_classes": 3, "is_binary": False}))
    write_lines(folders[0], records)

    _, got = score(pipeline, folders)

    answer, _ = pipeline.answer(json.dumps(records).encode(), "application/json", None)
    names = [f"{kind}prob_{number:02d}" for number in (1, 2, 3) for kind in ("", "calibrated_")]
    assert [{name: repr(row[name]) for name in names} for row in got] == json.loads(answer)["predictions"]


def test_the_output_tells_what_made_it(pipeline, records, folders):
    write_lines(folders[0], records)
    score(pipeline, folders)

    made_by = json.loads(parquet.read_schema(folders[1] / "part-000000.parquet").metadata[b"trimodal"])

    assert made_by.keys() == {"version", "level", "rung", "precision", "engine"}
    assert made_by["precision"] == "fp32"


def test_a_partition_that_its_process_died_of_is_not_tried_again_by_the_run(pipeline, records, folders):
    write_lines(folders[0], records)
    (folders[1] / ".part-000000.parquet.run.draft").write_bytes(b"half")

    (outcome,), got = score(pipeline, folders)

    assert "died" in outcome.failure
    assert outcome.place == "a.jsonl, records 0 to 19"
    assert got == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder, _: (folder / "a.jsonl").unlink(), "a.jsonl cannot be read"),
        (lambda _, out: out.rmdir(), "cannot be written: No such file or directory"),
    ],
)
def test_a_partition_that_fails_leaves_nothing(pipeline, records, folders, spoil, words):
    write_lines(folders[0], records)
    (partition,) = cut(folders[0], ["a.jsonl"], 100)
    spoil(*folders)

    outcome = Scorer(pipeline, *folders, "run").score(partition)

    assert (outcome.records, words in outcome.failure) == (0, True)
    assert list(folders[1].glob("*")) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    class Halted(BaseException):
        """Such as a signal."""

    def half():
        with draft(tmp_path, "part", "run") as file:
            file.write(b"half")
            file.flush()
            assert not (tmp_path / "part").exists()
            raise Halted

    with pytest.raises(Halted):
        half()
    assert list(tmp_path.iterdir()) == []
    with draft(tmp_path, "part", "run") as file:
        file.write(b"whole")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["part"]


def test_a_model_of_another_level_is_refused(tmp_path):
    path = write(tmp_path / "model")
    settings = Settings(model_dir=path, workers=1, intra_op_threads=1, fusion=False)
    level = load_pipeline(settings).status["level"]

    scorer = Scorer.load(settings, tmp_path, tmp_path, "run", level)
    with pytest.raises(Exception, match="as the others do"):
        Scorer.load(settings, tmp_path, tmp_path, "run", level + 1)

    assert scorer.pipeline.report_errors


def test_partitions_of_other_files_are_told_apart():
    assert Partition("part-000001.parquet", "b/c.jsonl", 40, 2).place == "b/c.jsonl, records 40 to 41"
