from __future__ import annotations

import pickle

import pytest

from model_directories import COLUMNS, FIELDS, PRIMARY, SECONDARY, TABLE, artifact_error, write_json
from model_directories import write_model_directory as write
from trimodal.loading.artifacts import read_artifacts
from trimodal.serving.tabular import RiskTable

RISK = {"amount": {"bins": {"low": 0.1, "high": 0.9, "1": 0.5}, "default_bin": 0.3}}


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path / "model")


def test_a_complete_directory(directory):
    artifacts = read_artifacts(directory)

    assert artifacts.graph == directory / "model.onnx"
    assert artifacts.schema.fields == (*FIELDS, PRIMARY, SECONDARY)
    assert artifacts.schema.columns == COLUMNS
    assert (artifacts.schema.id_name, artifacts.schema.envelope) == ("order_id", None)
    assert artifacts.imputation == {"amount": 20.0}
    assert artifacts.risk_tables == {}
    assert (artifacts.calibrator.binary, artifacts.calibrator.classes) == (None, {})


def test_optional_files_may_be_absent(directory):
    for name in ("feature_columns.txt", "impute_dict.json"):
        (directory / name).unlink()

    artifacts = read_artifacts(directory)

    assert (artifacts.schema.columns, artifacts.imputation) == (None, {})


def test_a_column_may_be_listed_twice(directory):
    (directory / "feature_columns.txt").write_text("0,amount\n1,amount\n2,count\n3,chat\n4,events\n")

    assert read_artifacts(directory).schema.columns == ("amount", "amount", "count", "chat", "events")


@pytest.mark.parametrize("pickled", [False, True], ids=["json", "pkl"])
def test_values_are_read_from_json_and_from_pickles(tmp_path, pickled):
    directory = write(tmp_path, pickled=pickled, risk_tables=RISK, calibration={"percentile_score": TABLE})

    artifacts = read_artifacts(directory)

    assert artifacts.imputation == {"amount": 20.0}
    assert artifacts.risk_tables == {"amount": RiskTable({"low": 0.1, "high": 0.9, "1": 0.5}, 0.3)}
    assert artifacts.calibrator.binary == tuple(tuple(pair) for pair in TABLE)


def test_categories_of_a_pickle_count_by_their_text(tmp_path):
    directory = write(tmp_path, pickled=True, risk_tables={"amount": {"bins": {1: 0.5, "b": 1}, "default_bin": 0}})

    assert read_artifacts(directory).risk_tables["amount"] == RiskTable({"1": 0.5, "b": 1.0}, 0.0)


@pytest.mark.parametrize(
    ("stem", "old", "new"),
    [
        ("impute_dict", {"amount": 1.0}, {"amount": 2.0}),
        ("risk_table_map", {}, RISK),
        ("calibration/percentile_score", [[0, 0.5], [1, 0.5]], TABLE),
    ],
)
def test_json_wins_over_a_pickle_of_the_same_name(directory, stem, old, new):
    (directory / stem).parent.mkdir(exist_ok=True)
    (directory / f"{stem}.pkl").write_bytes(pickle.dumps(old))
    before = read_artifacts(directory)
    write_json(directory / f"{stem}.json", new)
    after = read_artifacts(directory)
    (directory / f"{stem}.pkl").unlink()

    assert after == read_artifacts(directory)
    assert (after != before) or stem == "impute_dict"
    if stem == "impute_dict":
        assert after.imputation == new


def test_a_broken_pickle_beside_json_does_not_matter(directory):
    (directory / "impute_dict.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")

    assert read_artifacts(directory).imputation == {"amount": 20.0}


def test_a_missing_directory_is_an_error_that_says_what_to_do(tmp_path):
    with artifact_error("model directory", "does not exist; mount or unpack the model there"):
        read_artifacts(tmp_path / "absent")


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path):
    (tmp_path / "model").write_text("")

    with artifact_error("model directory", "does not exist"):
        read_artifacts(tmp_path / "model")


BINS = {"bins": {}, "default_bin": 0.0}

DAMAGES = [
    # file, its content (None: taken away), what the message says beside the file's name
    ("model.onnx", None, "is missing from the model directory, and so is model.pth; export the model to ONNX"),
    ("hyperparameters.json", None, "is missing from the model directory; add"),
    ("hyperparameters.json", b"{", "is not valid JSON; write it again"),
    ("model_artifacts.pth", b"no zip", "is not a file written by torch.save; save it again"),
    ("feature_columns.txt", b"\xff\xfe\x00", "is not readable as UTF-8 text"),
    ("feature_columns.txt", b"", "lacks amount, count, chat, events"),
    ("feature_columns.txt", b"0,amount\n1,count\n2,chat\n", "lacks events, which hyperparameters.json names as input"),
    ("feature_columns.txt", b"amount\ncount\n", "expected “0,<name>” as line 0"),
    ("feature_columns.txt", b"1,amount\n", "expected “0,<name>” as line 0 of the columns; number them from 0"),
    ("feature_columns.txt", b"0,amount\n2,count\n", "expected “1,<name>” as line 1"),
    ("feature_columns.txt", b"0,amount\n1,\n", "expected “1,<name>” as line 1"),
    ("feature_columns.txt", b"0,amount\n0,count\n", "expected “1,<name>”"),
    ("impute_dict.json", b"{", "is not valid JSON"),
    ("impute_dict.json", b"\xff", "is not readable as UTF-8 text"),
    ("impute_dict.json", b"[1]", "must map field names to finite numbers"),
    ("impute_dict.json", b'{"amount": "1"}', "must map field names to finite numbers"),
    ("impute_dict.json", b'{"amount": null}', "must map field names to finite numbers"),
    ("impute_dict.json", b'{"amount": NaN}', "must map field names to finite numbers"),
    ("impute_dict.json", b'{"amount": 1e999}', "must map field names to finite numbers"),
    ("impute_dict.json", b'{"amount": 1' + b"0" * 400 + b"}", "must map field names to finite numbers"),
    ("impute_dict.json", b"null", "must map field names to finite numbers"),
    ("impute_dict.pkl", b"", "impute_dict.pkl is damaged; save it again, preferably as JSON"),
    ("impute_dict.pkl", pickle.dumps([1]), "impute_dict.pkl must map field names to finite numbers"),
    ("impute_dict.pkl", pickle.dumps({"amount": float("nan")}), "must map field names to finite numbers"),
    ("impute_dict.pkl", b"cbuiltins\neval\n(S'1'\ntR.", "would build builtins.eval, and only plain values are allowed"),
    ("risk_table_map.json", b"[]", "must map field names to risk tables"),
    ("risk_table_map.json", b'{"amount": []}', "the risk table of amount must hold numbers"),
    ("risk_table_map.json", b'{"amount": {"bins": {}}}', "the risk table of amount must hold numbers"),
    ("risk_table_map.json", b'{"amount": {"default_bin": 1}}', "the risk table of amount must hold numbers"),
    ("risk_table_map.json", b'{"amount": {"bins": {"a": "b"}, "default_bin": 1}}', "“bins” and “default_bin”"),
    ("risk_table_map.json", b'{"amount": {"bins": {"a": 1}, "default_bin": Infinity}}', "“bins” and “default_bin”"),
    ("risk_table_map.pkl", pickle.dumps({"amount": BINS})[:-3], "risk_table_map.pkl"),
    ("calibration/percentile_score.json", b"[", "is not valid JSON"),
    ("calibration/percentile_score.json", b"[]", "must be a list of at least one [raw, calibrated] pair"),
    ("calibration/percentile_score.json", b"5", "must be a list of at least one [raw, calibrated] pair"),
    ("calibration/percentile_score.json", b"[[0.1]]", "must be a list of [raw, calibrated] pairs"),
    ("calibration/percentile_score.json", b"[[0.1, 0.2, 0.3]]", "must be a list of [raw, calibrated] pairs"),
    ("calibration/percentile_score.json", b'[[0.1, "high"]]', "must be a list of [raw, calibrated] pairs"),
    ("calibration/percentile_score.json", b'{"raw": 1}', "must be a list of at least one [raw, calibrated] pair"),
    ("calibration/percentile_score.json", b'{"10": 0.5}', "must be a list of at least one [raw, calibrated] pair"),
    ("calibration/percentile_score.json", b"null", "must be a list of at least one [raw, calibrated] pair"),
    ("calibration/percentile_score.json", b'["10"]', "[raw, calibrated] pairs of finite numbers"),
    ("calibration/percentile_score.json", b"[[0, NaN]]", "[raw, calibrated] pairs of finite numbers"),
    ("calibration/percentile_score.json", b"[[0, 1" + b"0" * 400 + b"]]", "[raw, calibrated] pairs of finite numbers"),
    ("calibration/calibration_model.pkl", pickle.dumps(None)[:-1], "calibration_model.pkl"),
    ("calibration/calibration_model.pkl", b"cos\nsystem\n(S'true'\ntR.", "would build os.system"),
    (
        "calibration/calibration_models/calibration_model_class_0.json",
        b"{}",
        "must be a list of at least one [raw, calibrated] pair",
    ),
    (
        "calibration/calibration_models/calibration_model_class_7.json",
        b"[[0, 1]]",
        "names no class; name it by an index",
    ),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGES)
def test_a_damaged_file_is_an_error_that_names_it(directory, name, content, words):
    path = directory / name
    if name.endswith(".pkl"):
        path.with_suffix(".json").unlink(missing_ok=True)
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    with artifact_error(path.name, words):
        read_artifacts(directory)
