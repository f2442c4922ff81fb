from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from model_directories import artifact_error
from trimodal.loading.files import finite, read_json, read_value


def test_a_value_comes_with_the_name_of_its_file(tmp_path):
    (tmp_path / "table.pkl").write_bytes(pickle.dumps([1]))
    assert read_value(tmp_path, "table") == ([1], "table.pkl")

    (tmp_path / "table.json").write_text("[2]")
    assert read_value(tmp_path, "table") == ([2], "table.json")


@pytest.mark.parametrize(("name", "content"), [("table.json", b"null"), ("table.pkl", pickle.dumps(None))])
def test_a_file_that_holds_nothing_is_not_a_missing_file(tmp_path, name, content):
    assert read_value(tmp_path, "table") is None

    (tmp_path / name).write_bytes(content)

    assert read_value(tmp_path, "table") == (None, name)


def test_a_directory_is_no_file(tmp_path):
    (tmp_path / "table.json").mkdir()

    assert read_value(tmp_path, "table") is None
    with artifact_error("table.json is not readable"):
        read_json(tmp_path / "table.json")


@pytest.mark.parametrize(("value", "number"), [(2, 2.0), (-0.5, -0.5), (True, 1.0), (np.float64(0.25), 0.25)])
def test_a_finite_number(value, number):
    assert finite(value) == number
    assert type(finite(value)) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, "1", None, [1], 1j])
def test_anything_else_is_none(value):
    assert finite(value) is None
