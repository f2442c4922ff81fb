"""An output folder is taken up again only with what it was begun with."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from trimodal.errors import DatasetError
from trimodal.scoring.dataset import cut
from trimodal.scoring.manifest import NAME, begin, describe, remaining


@pytest.fixture
def folders(tmp_path):
    """A model, an input of two files, an output."""
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    for folder in (model / "calibration", model / "optimized", data, out):
        folder.mkdir(parents=True)
    (model / "model.onnx").write_bytes(b"graph")
    (model / "calibration" / "percentile_score.json").write_text("[]")
    (data / "a.jsonl").write_text("{}\n" * 5)
    (data / "b.jsonl").write_text("{}\n" * 5)
    return model, data, out


def manifest(folders, rows=2, precision="fp32"):
    model, data, _ = folders
    return describe(model, precision, data, sorted(path.name for path in data.iterdir()), rows)


def test_a_run_that_is_taken_up_again(folders):
    begin(folders[2], manifest(folders))
    (folders[0] / "optimized" / "model.onnx").write_bytes(b"what a cold start keeps")

    begin(folders[2], manifest(folders))

    assert json.loads((folders[2] / NAME).read_text()) == manifest(folders)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model/model.onnx": "other"}, "another model;"),
        ({"model/calibration/percentile_score.json": None}, "another model;"),
        ({"model/impute_dict.json": "{}"}, "another model;"),
        ({"data/a.jsonl": "{ }\n" * 5}, r"another input \(a.jsonl\)"),
        ({"data/c.jsonl": "{}"}, r"another input \(c.jsonl\)"),
        ({"data/a.jsonl": None, "data/b.jsonl": None}, r"another input \(a.jsonl and 1 more\)"),
    ],
)
def test_a_change_is_noticed(tmp_path, folders, change, words):
    begin(folders[2], manifest(folders))
    for name, text in change.items():
        if text is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=words):
        begin(folders[2], manifest(folders))


def test_other_partitions_and_another_precision_are_noticed(folders):
    begin(folders[2], manifest(folders))
    with pytest.raises(DatasetError, match="another --partition-rows"):
        begin(folders[2], manifest(folders, rows=3))
    with pytest.raises(DatasetError, match="another precision"):
        begin(folders[2], manifest(folders, precision="int8"))
    (folders[2] / NAME).write_text("{}")
    with pytest.raises(DatasetError, match="another version"):
        begin(folders[2], manifest(folders))
    (folders[2] / NAME).write_text("{")
    with pytest.raises(DatasetError, match="not readable"):
        begin(folders[2], manifest(folders))


def test_a_folder_of_other_things_is_left_alone(folders):
    (folders[2] / "thesis.tex").touch()
    with pytest.raises(DatasetError, match="other files"):
        begin(folders[2], manifest(folders))
    assert [path.name for path in folders[2].iterdir()] == ["thesis.tex"]


def test_a_manifest_that_was_half_written_is_written_again(folders):
    (folders[2] / f".{NAME}.draft").write_text("{")
    begin(folders[2], manifest(folders))
    assert json.loads((folders[2] / NAME).read_text()) == manifest(folders)


def test_only_whole_partitions_count_as_done(folders):
    _, data, out = folders
    partitions = cut(data, ["a.jsonl", "b.jsonl"], 2)
    assert [partition.records for partition in partitions] == [2, 2, 1] * 2
    for partition in partitions[:4]:
        parquet.write_table(pa.table({"record": [0] * partition.records}), out / partition.name)
    whole = (out / partitions[1].name).read_bytes()
    (out / partitions[1].name).write_bytes(whole[:-9])
    parquet.write_table(pa.table({"record": [0] * 9}), out / partitions[2].name)
    (out / f".{partitions[5].name}.0a1b2c3d.draft").write_bytes(b"half")

    assert remaining(out, partitions) == [partitions[1], partitions[2], partitions[4], partitions[5]]
    assert list(out.glob(".*")) == []
