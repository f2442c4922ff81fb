from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score as sklearn_f1

from trimodal.loading.compare import TOLERANCES, compare, f1_score

REFERENCE = np.tile(np.array([[0.8, 0.2], [0.3, 0.7]], np.float32), (50, 1))


def shifted(size, rows=slice(None)):
    scores = REFERENCE.copy()
    scores[rows] += np.array([size, -size], np.float32)
    return scores


@pytest.mark.parametrize("precision", TOLERANCES)
def test_equal_scores_pass(precision):
    result = compare(REFERENCE, REFERENCE, precision)

    assert (result.refusal, result.largest, result.agreement, result.records) == (None, 0, 1, 100)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_one_record_beyond_the_tolerance_is_refused(precision):
    limit = TOLERANCES[precision].largest

    assert compare(shifted(0.9 * limit, slice(1)), REFERENCE, precision).refusal is None
    assert "a probability differs" in (compare(shifted(1.1 * limit, slice(1)), REFERENCE, precision).refusal or "")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_many_small_differences_are_refused(precision):
    assert "on average" in (compare(shifted(0.03), REFERENCE, precision).refusal or "")


def test_labels_that_change_are_refused():
    reference = np.tile(np.array([[0.501, 0.499]], np.float32), (100, 1))
    candidate = reference.copy()
    candidate[:2] = candidate[:2, ::-1]

    result = compare(candidate, reference, "int8")

    assert result.agreement == 0.98
    assert "98.0% of the labels agree" in (result.refusal or "")


def test_a_worse_f1_is_refused():
    reference = np.repeat(np.array([[0.49, 0.51]], np.float32), 100, axis=0)
    reference[10:] = reference[10:, ::-1]
    labels = [1] * 10 + [0] * 90
    candidate = reference.copy()
    candidate[0] = candidate[0, ::-1]

    assert compare(candidate, reference, "int8").refusal is None
    result = compare(candidate, reference, "int8", labels)
    assert result.f1_reference == 1.0
    assert "F1 falls from 1.000 to 0.947" in (result.refusal or "")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_numbers_are_refused(bad):
    broken = REFERENCE.copy()
    broken[3, 1] = bad

    assert compare(broken, REFERENCE, "int8").refusal is not None
    assert compare(REFERENCE, broken, "int8").refusal is not None


def test_another_shape_is_refused():
    assert compare(REFERENCE[:, :1], REFERENCE, "fp32").refusal is not None


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(0, 1, width=32)),
    st.randoms(use_true_random=False),
)
def test_f1_is_that_of_scikit_learn(probabilities, random):
    labels = [random.randint(0, 1) for _ in probabilities]

    expected = sklearn_f1(labels, probabilities.argmax(1), zero_division=1.0)

    assert f1_score(labels, probabilities) == pytest.approx(expected)


def test_f1_of_several_classes_is_their_mean():
    probabilities = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]

    assert f1_score([0, 1, 2, 1], probabilities) == pytest.approx(
        sklearn_f1([0, 1, 2, 1], [0, 1, 2, 2], average="macro")
    )
