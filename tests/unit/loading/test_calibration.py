from __future__ import annotations

import logging

import numpy as np
import pytest

from model_directories import HYPERPARAMETERS, TABLE, artifact_error, write_json, write_value
from trimodal.loading.calibration import read_calibrator
from trimodal.loading.config import read_config

LOW, HIGH = [[0.0, 0.1], [1.0, 0.1]], [[0.0, 0.9], [1.0, 0.9]]
BY_CLASS = "calibration_models/calibration_model_class_"


@pytest.fixture
def calibrator(tmp_path):
    """Reads the calibrator of a directory that holds the tables, each by its path under `calibration/`."""

    def read(tables, **config):
        write_json(tmp_path / "hyperparameters.json", {**HYPERPARAMETERS, **config})
        for name, table in tables.items():
            write_value(tmp_path / "calibration" / name, table)
        return read_calibrator(tmp_path, read_config(tmp_path))

    return read


def table_of(pairs):
    return tuple(tuple(pair) for pair in pairs)


def test_without_tables_scores_stay_as_they_are(calibrator):
    probabilities = np.array([[0.25, 0.75]], np.float32)

    assert calibrator({}).calibrate(probabilities).tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("tables", "used"),
    [
        ({"percentile_score.json": LOW, "calibration_model.json": HIGH, f"{BY_CLASS}1.json": TABLE}, LOW),
        ({"percentile_score.pkl": LOW, "calibration_model.json": HIGH}, LOW),
        ({"calibration_model.json": HIGH, f"{BY_CLASS}1.json": TABLE}, HIGH),
        ({"calibration_model.pkl": HIGH}, HIGH),
        ({"percentile_score.json": LOW}, LOW),
    ],
)
def test_percentile_wins_over_binary_and_that_over_classes(calibrator, tables, used):
    found = calibrator(tables)

    assert (found.binary, found.classes) == (table_of(used), None)
    assert found.calibrate(np.array([[0.4, 0.6]], np.float32))[0, 1] == np.float32(
        np.interp(0.6, *zip(*used, strict=True))
    )


def test_a_binary_model_may_have_tables_by_class(calibrator):
    found = calibrator({f"{BY_CLASS}1.json": TABLE})

    assert (found.binary, found.classes) == (None, {1: table_of(TABLE)})


def test_binary_tables_are_passed_over_with_a_warning_when_there_are_more_classes(calibrator, caplog):
    with caplog.at_level(logging.WARNING):
        found = calibrator({"percentile_score.json": LOW, f"{BY_CLASS}2.json": TABLE}, num_classes=3)

    assert (found.binary, found.classes) == (None, {2: table_of(TABLE)})
    assert "calibration/percentile_score.json is for two classes and the model has 3: ignored" in caplog.text


def test_classes_are_named_by_index_or_label_and_some_may_be_missing(calibrator):
    found = calibrator(
        {f"{BY_CLASS}0.json": LOW, f"{BY_CLASS}no refund.pkl": HIGH},
        num_classes=3,
        multiclass_categories=["refund", "exchange", "no refund"],
    )

    assert found.classes == {0: table_of(LOW), 2: table_of(HIGH)}
    calibrated = found.calibrate(np.array([[0.2, 0.5, 0.3]], np.float32))
    assert calibrated[0] == pytest.approx(np.array([0.1, 0.5, 0.9]) / 1.5, abs=1e-6)


@pytest.mark.parametrize("label", ["alpha", "zeta"])
def test_the_index_wins_over_the_label_of_the_same_class(calibrator, label):
    found = calibrator(
        {f"{BY_CLASS}0.json": LOW, f"{BY_CLASS}{label}.json": HIGH},
        num_classes=3,
        multiclass_categories=[label, "b", "c"],
    )

    assert found.classes == {0: table_of(LOW)}


def test_a_number_is_an_index_even_where_it_is_a_label_too(calibrator):
    found = calibrator({f"{BY_CLASS}1.json": LOW}, num_classes=3, multiclass_categories=["2", "0", "1"])

    assert found.classes == {1: table_of(LOW)}


def test_a_number_beyond_the_classes_may_be_a_label(calibrator):
    found = calibrator({f"{BY_CLASS}30.json": LOW}, num_classes=3, multiclass_categories=["10", "20", "30"])

    assert found.classes == {2: table_of(LOW)}


@pytest.mark.parametrize("name", ["3", "-1", "other", "REFUND", ""])
def test_a_table_of_no_class_is_an_error(calibrator, name):
    with artifact_error(
        f"calibration/calibration_models/calibration_model_class_{name}.json names no class",
        "an index from 0 to 2 or by a label of multiclass_categories",
    ):
        calibrator(
            {f"{BY_CLASS}{name}.json": LOW}, num_classes=3, multiclass_categories=["refund", "exchange", "no refund"]
        )


def test_json_wins_over_a_pickle_of_one_class(calibrator):
    assert calibrator({f"{BY_CLASS}1.pkl": HIGH, f"{BY_CLASS}1.json": LOW}).classes == {1: table_of(LOW)}


def test_files_of_other_kinds_beside_the_tables_do_not_matter(calibrator):
    assert calibrator({f"{BY_CLASS}1.txt": LOW, "calibration_models/notes.json": HIGH}).classes == {}


def test_a_directory_of_a_tables_name_is_passed_over(calibrator, tmp_path):
    (tmp_path / "calibration" / f"{BY_CLASS}0.json").mkdir(parents=True)

    assert calibrator({f"{BY_CLASS}1.json": LOW}).classes == {1: table_of(LOW)}


@pytest.mark.parametrize("table", [[(0.0, 0.5), (1.0, 1.0)], ((0, 0.5), (1, 1)), [[0, 0.5], [1, True]]])
def test_pairs_of_a_pickle_may_be_lists_or_tuples_of_any_numbers(calibrator, table):
    assert calibrator({"percentile_score.pkl": table}).binary == ((0.0, 0.5), (1.0, 1.0))


@pytest.mark.parametrize("scalar", [np.float32, np.float64])
def test_pairs_of_a_pickle_may_be_numpy_scalars(calibrator, scalar):
    table = [(scalar(0), scalar(0.5)), (scalar(1), scalar(1))]

    assert calibrator({"percentile_score.pkl": table}).binary == ((0.0, 0.5), (1.0, 1.0))
