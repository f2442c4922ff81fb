from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.serving.calibrate import Calibrator, interpolate

TABLE = ((0.2, 0.1), (0.4, 0.5), (0.8, 0.6))


def rows(*values):
    return np.array(values, np.float32)


# --- one table


@pytest.mark.parametrize(
    ("score", "calibrated"),
    [
        (0.0, 0.1),
        (0.2, 0.1),
        (0.3, 0.3),
        (0.4, 0.5),
        (0.5, 0.525),
        (0.8, 0.6),
        (1.0, 0.6),
    ],
)
def test_clamped_at_both_ends_and_linear_between(score, calibrated):
    assert interpolate(score, TABLE) == pytest.approx(calibrated, abs=1e-12)


@pytest.mark.parametrize("score", [0.0, 0.5, 0.7, 1.0])
def test_a_table_of_one_pair_is_a_constant(score):
    assert interpolate(score, ((0.5, 0.9),)) == 0.9


def test_the_first_bracketing_interval_counts_where_a_raw_score_stands_twice():
    table = ((0.0, 0.0), (0.5, 0.2), (0.5, 0.8), (1.0, 1.0))
    assert interpolate(0.5, table) == pytest.approx(0.2)
    assert interpolate(0.75, table) == pytest.approx(0.9)


def test_an_interval_without_width_gives_its_first_value():
    assert interpolate(0.5, ((0.1, 0.0), (0.4, 0.3), (0.5, 0.3), (0.5, 0.7), (0.9, 1.0))) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("score", "calibrated"),
    [
        (0.05, 0.1),  # below the first pair
        (0.5, 0.5),  # by 0.1 to 0.6; the interval 0.3 to 0.9, and that of the sorted table, come later
        (0.7, 0.6),  # by 0.3 to 0.9
        (0.95, 0.9),  # above the last pair
    ],
)
def test_an_unsorted_table_is_read_in_its_own_order(score, calibrated):
    assert interpolate(score, ((0.1, 0.1), (0.6, 0.6), (0.3, 0.0), (0.9, 0.9))) == pytest.approx(calibrated)


def test_the_ends_are_those_of_the_tables_own_order():
    table = ((0.4, 0.3), (0.1, 0.0), (0.9, 1.0), (0.6, 0.7))
    assert interpolate(0.2, table) == 0.3
    assert interpolate(0.8, table) == 0.7


def test_an_interval_is_entered_at_its_lower_raw_score():
    falling_then_rising = ((0.2, 0.3), (0.1, 0.4), (0.8, 0.9))
    assert interpolate(0.5, falling_then_rising) == pytest.approx(0.4 + 0.4 * 0.5 / 0.7)


pairs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8)


@given(table=pairs, score=st.floats(0, 1))
def test_a_calibrated_score_stays_within_the_table(table, score):
    values = [y for _, y in table]
    assert min(values) - 1e-9 <= interpolate(score, tuple(table)) <= max(values) + 1e-9


# --- binary


def test_without_a_calibrator_scores_stay_as_they_are():
    probabilities = rows([0.25, 0.75], [0.9, 0.1])
    np.testing.assert_array_equal(Calibrator().calibrate(probabilities), probabilities)


def test_a_binary_table_calibrates_class_one():
    calibrated = Calibrator(binary=TABLE).calibrate(rows([0.7, 0.3], [0.1, 0.9]))
    assert calibrated.dtype == np.float32
    np.testing.assert_allclose(calibrated, [[0.7, 0.3], [0.4, 0.6]], atol=1e-6)


def test_the_binary_table_wins_over_those_of_classes():
    calibrator = Calibrator(binary=TABLE, classes={1: ((0.0, 0.9), (1.0, 0.9))})
    assert calibrator.calibrate(rows([0.7, 0.3]))[0, 1] == pytest.approx(0.3)


def test_the_probabilities_themselves_are_not_changed():
    probabilities = rows([0.7, 0.3])
    Calibrator(binary=TABLE).calibrate(probabilities)
    Calibrator(classes={0: TABLE}).calibrate(probabilities)
    np.testing.assert_array_equal(probabilities, rows([0.7, 0.3]))


# --- several classes


def test_each_class_is_calibrated_and_the_row_renormalised():
    double = ((0.0, 0.0), (1.0, 2.0))
    half = ((0.0, 0.0), (1.0, 0.5))
    calibrated = Calibrator(classes={0: double, 1: half, 2: half}).calibrate(rows([0.2, 0.4, 0.4], [0.0, 0.5, 0.5]))
    assert calibrated.dtype == np.float32
    np.testing.assert_allclose(calibrated, [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]], atol=1e-6)


def test_a_class_without_a_table_enters_with_its_probability():
    calibrated = Calibrator(classes={2: ((0.0, 0.0), (1.0, 2.0))}).calibrate(rows([0.5, 0.25, 0.25]))
    np.testing.assert_allclose(calibrated, [[0.4, 0.2, 0.4]], atol=1e-6)


def test_a_row_that_is_calibrated_to_nothing_keeps_its_probabilities():
    nothing = ((0.0, 0.0), (0.5, 0.0), (1.0, 1.0))
    calibrator = Calibrator(classes={0: nothing, 1: nothing, 2: nothing})
    calibrated = calibrator.calibrate(rows([0.2, 0.3, 0.5], [0.0, 0.25, 0.75]))
    np.testing.assert_allclose(calibrated, [[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]], atol=1e-6)


def test_a_binary_table_does_not_touch_three_classes():
    probabilities = rows([0.2, 0.3, 0.5])
    np.testing.assert_array_equal(Calibrator(binary=TABLE).calibrate(probabilities), probabilities)


@given(
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    tables=st.dictionaries(st.integers(0, 2), pairs.map(tuple), max_size=3),
)
def test_calibrated_rows_sum_to_one(probabilities, tables):
    total = sum(probabilities)
    row = rows([p / total for p in probabilities] if total > 1e-6 else [1, 0, 0])
    assert Calibrator(classes=tables).calibrate(row).sum() == pytest.approx(1, abs=1e-5)
