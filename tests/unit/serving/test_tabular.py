from __future__ import annotations

import json
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimodal.errors import InvalidRecord
from trimodal.records import Record
from trimodal.serving.tabular import RiskTable, TabularEncoder, is_missing

LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def encoder():
    return TabularEncoder(
        fields=("amount", "orders", "reason"),
        imputation={"amount": 7.5, "reason": 99.0},
        risk_tables={"reason": RiskTable({"late": 0.25, "1": 0.5, "True": 0.75, "": 0.125}, default=0.0625)},
    )


def encode_one(encoder, field, value):
    values = {"amount": 0, "orders": 0, "reason": "late", field: value}
    return float(encoder.encode(Record(0, values))[encoder.fields.index(field)])


# --- numbers


def test_values_are_float32_in_the_order_of_the_fields(encoder):
    row = encoder.encode(Record(0, {"reason": "late", "orders": 3, "amount": 0.1, "other": "x"}))
    assert row.dtype == np.float32
    assert row.tolist() == [float(np.float32(0.1)), 3.0, 0.25]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (-2.5, -2.5),
        (True, 1.0),
        (False, 0.0),
        ("3.25", 3.25),
        (" 4\n", 4.0),
        ("-1e3", -1000.0),
        ("+.5", 0.5),
        (Decimal("12.50"), 12.5),
        (2**70, float(2**70)),
        (str(10**30), float(np.float32(1e30))),
        (LARGEST, LARGEST),
        (-LARGEST, -LARGEST),
        (5e-324, 0.0),
        ("1e-400", 0.0),
        (-0.0, 0.0),
    ],
)
def test_numbers_and_texts_of_numbers(value, number, encoder):
    assert encode_one(encoder, "amount", value) == number


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "abc", "1,5", "1 2", "12 EUR", "0x10", "--1", "1e", "None", "null", "NA", "\ud800"),
        *([], [1], {}, {"a": 1}, b"1", date(2020, 1, 1), object),
    ],
    ids=repr,
)
def test_what_is_not_a_number_is_refused(value, encoder):
    with pytest.raises(InvalidRecord) as caught:
        encoder.encode(Record(4, {"amount": 1, "orders": value}))
    assert str(caught.value) == "Record 4: the field orders is not a number."
    assert (caught.value.status, caught.value.record) == (422, 4)


@pytest.mark.parametrize(
    "value",
    [
        *("nan", "NaN", "-nan", "inf", "-Infinity", "1e400", "1e39", "9" * 5000),
        *(1e39, -1e39, 2**128, 10**400, -(10**400), Decimal("NaN"), Decimal("-Infinity")),
        *(float("inf"), float("-inf"), json.loads("1e400"), json.loads("Infinity")),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_not_finite_in_float32_is_refused(value, encoder):
    with pytest.raises(InvalidRecord) as caught:
        encoder.encode(Record(2, {"amount": value, "orders": 1}))
    assert str(caught.value) == "Record 2: the field amount is not a finite 32-bit number."


def test_the_smallest_number_that_rounds_to_infinity_is_refused(encoder):
    with pytest.raises(InvalidRecord):
        encode_one(encoder, "amount", np.nextafter(2.0**128 - 2.0**103, np.inf))


# --- missing values


@pytest.mark.parametrize("values", [{}, {"amount": None}, {"amount": float("nan")}, json.loads('{"amount": NaN}')])
def test_a_missing_value_is_imputed(values, encoder):
    assert encoder.encode(Record(0, values)).tolist() == [7.5, 0.0, 0.0625]


@pytest.mark.parametrize(
    ("value", "missing"),
    [(None, True), (float("nan"), True), (0, False), ("", False), ("nan", False), (Decimal("NaN"), False)],
)
def test_missing_is_null_or_the_nan_that_stands_for_it(value, missing):
    assert is_missing(value) is missing


# --- risk tables


@pytest.mark.parametrize(
    ("category", "number"),
    [
        *(("late", 0.25), (1, 0.5), ("1", 0.5), (True, 0.75), ("", 0.125)),
        *((other, 0.0625) for other in (1.0, "Late", " late", "unheard of", ["late"])),
    ],
)
def test_categories_are_looked_up_as_text(category, number, encoder):
    assert encode_one(encoder, "reason", category) == number


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_category_gets_the_default_and_not_the_imputation(value, encoder):
    assert encode_one(encoder, "reason", value) == 0.0625


def test_a_model_without_tabular_fields_gets_an_empty_row():
    assert TabularEncoder((), {}, {}).encode(Record(0, {"amount": 1})).shape == (0,)


# --- anything at all

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**140), 2**140)
    | st.floats()
    | st.text(max_size=20)
    | st.from_regex(r"\A\s*[-+]?[0-9_.]*(e[-+]?[0-9]{1,3})?\s*\Z")
    | st.sampled_from(["nan", "inf", "-Infinity", "\ud800", "٣", "½", "1_000"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(values=st.dictionaries(st.sampled_from(["amount", "orders", "reason"]), json_values))
@settings(max_examples=500)
def test_any_json_value_gives_finite_numbers_or_an_invalid_record(values, encoder):
    result = row_or_error(encoder, Record(3, values))
    if isinstance(result, InvalidRecord):
        assert result.record == 3
        assert any(field in str(result) for field in ("amount", "orders"))
    else:
        assert result.dtype == np.float32
        assert np.isfinite(result).all()


def row_or_error(encoder, record):
    try:
        return encoder.encode(record)
    except InvalidRecord as err:
        return err
