from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.bench.measures import Outputs, judge, summarize_calls

RNG = np.random.default_rng(0)
PROBABILITIES = RNG.dirichlet([1, 1, 1], 40).astype(np.float32)
VECTORS = RNG.normal(size=(40, 16)).astype(np.float32)


def accuracy(own, right, precision="fp32", labels=None, batched=None):
    reference = Outputs(right, right[:8])
    found = Outputs(own, own[:8] if batched is None else batched)
    return judge(found, reference, precision, embeds=right.shape[1] > 4, labels=labels)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=40))
def test_times_are_in_order(seconds):
    times = summarize_calls(np.array(seconds).reshape(1, -1))

    assert times.calls == len(seconds)
    assert min(seconds) * 999 <= times.p50 <= times.p95 <= times.p99 <= max(seconds) * 1001
    assert times.low <= times.mean * 1.001
    assert times.typical == pytest.approx(np.mean(seconds) * 1000)


def test_times_of_known_calls():
    times = summarize_calls(np.array([[0.001, 0.003], [0.002, 0.004], [0.003, 0.008]]))

    assert (times.calls, times.rounds) == (6, 3)
    assert times.p50 == pytest.approx(3)
    assert times.typical == pytest.approx((2 + 4) / 2)
    assert (times.low, times.high) == pytest.approx((2, 5.5))
    assert times.std == pytest.approx(np.std([1, 3, 2, 4, 3, 8]))


@pytest.mark.parametrize("right", [PROBABILITIES, VECTORS])
def test_equal_outputs_are_right(right):
    result = accuracy(right.copy(), right)

    assert result.wrong is None
    assert (result.max_diff, result.agreement, result.batched_diff) == (0, 1, 0)
    assert result.cosine_min == pytest.approx(1)


@pytest.mark.parametrize("right", [PROBABILITIES, VECTORS])
@pytest.mark.parametrize("spoil", [
    lambda right: np.roll(right, 1, axis=0),
    lambda right: np.full_like(right, np.nan),
    lambda right: right[:-1],
    lambda right: right[:, ::-1],
])  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_other_outputs_are_wrong_in_every_precision(right, spoil, precision):
    assert accuracy(spoil(right), right, precision, batched=right[:8]).wrong


@pytest.mark.parametrize("right", [PROBABILITIES, VECTORS])
def test_a_batch_whose_rows_are_mixed_up_is_wrong(right):
    result = accuracy(right.copy(), right, "int8", batched=right[:8][::-1])

    assert result.wrong
    assert result.max_diff == 0 < result.batched_diff


def test_rounding_is_allowed_by_precision_alone():
    noisy = PROBABILITIES + np.float32(5e-3) * np.array([1, -1, 0], np.float32)

    assert accuracy(noisy, PROBABILITIES, "fp16").wrong is None
    assert "more than 0.0001" in (accuracy(noisy, PROBABILITIES, "fp32").wrong or "")


def test_f1_of_vectors_is_that_of_the_nearest_texts_label():
    vectors = np.array([[1, 0, 0, 0, 0.1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0.1], [0, 1, 0, 0, 0]], np.float32)

    kept = accuracy(vectors, vectors, labels=[0, 0, 1, 1], batched=vectors)

    assert kept.f1 == kept.f1_reference == 1


def test_f1_that_falls_is_refused():
    labels = PROBABILITIES.argmax(1).tolist()
    worse = PROBABILITIES.copy()
    close = np.flatnonzero(np.abs(np.diff(np.sort(worse, axis=1)[:, 1:], axis=1))[:, 0] < 0.1)
    worse[close] = np.roll(np.sort(worse[close], axis=1), 0, axis=1)

    result = accuracy(worse, PROBABILITIES, "int8", labels=labels)

    assert result.wrong
    assert (result.f1 or 0) <= (result.f1_reference or 0)


def test_scaled_times_keep_their_counts():
    times = summarize_calls(np.array([[0.001, 0.003], [0.002, 0.004]]))

    twice = times.scaled(2)

    assert (twice.calls, twice.rounds) == (4, 2)
    assert twice.p50 == pytest.approx(2 * times.p50)
    assert twice.typical == pytest.approx(2 * times.typical)
