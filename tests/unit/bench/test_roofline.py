from __future__ import annotations

import pytest

from trimodal.bench.models import Work, encoder_work
from trimodal.bench.roofline import measure_roof


def test_the_work_of_bert_base_is_that_of_its_weights_and_its_attention():
    work = encoder_work(layers=12, hidden=768, inner=3072, tokens=128)

    assert work.weights == 84_934_656  # 85 million, without embeddings, biases and norms
    assert work.operations == pytest.approx(2 * 84_934_656 * 128 + 4 * 12 * 128**2 * 768)


def test_weights_are_read_once_by_all_records_of_a_call():
    one = encoder_work(2, 32, 64, 10)

    both = one + encoder_work(2, 32, 64, 20)

    assert both.weights == one.weights
    assert both.activations == pytest.approx(3 * one.activations)
    assert Work() + one == one


def test_the_roof_is_measured():
    roof = measure_roof(1)

    assert 0.1 < roof.fp32 < 1e5
    assert 0.1 < roof.int8 < 1e6
    assert 0.1 < roof.bandwidth < 1e4
