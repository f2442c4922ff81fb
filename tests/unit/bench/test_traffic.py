from __future__ import annotations

from statistics import mean, median

import numpy as np
import pytest

from trimodal.bench.traffic import PRIMARY, SECONDARY, draw_lengths, fixed, realistic, repeating, saved_tokens
from trimodal.records import EncodedText, Features

CLS, SEP = 2, 3


@pytest.fixture
def samples():
    """Records of one and of two chunks."""
    return [
        Features(
            index=place,
            primary=EncodedText([[CLS, 10 + place, 20, 21, SEP], [CLS, 30, SEP]]),
            secondary=EncodedText([[CLS, 40 + place, 50, SEP]]),
            tabular=np.array([place], np.float32),
        )
        for place in range(5)
    ]


@pytest.mark.parametrize("count", [24, 48])
def test_lengths_are_those_of_real_traffic(count):
    primary, secondary = (draw_lengths(count, *shape) for shape in (PRIMARY, SECONDARY))

    assert (round(mean(primary)), median(primary), max(primary)) == (101, 80, 315)
    assert round(mean(secondary)) == 68
    assert min(*primary, *secondary) >= 3


def test_the_mix_has_these_lengths(samples):
    traffic = realistic(samples, 24, 512)

    primary, secondary = traffic.lengths
    assert sorted(primary) == draw_lengths(24, *PRIMARY)
    assert sorted(secondary) == draw_lengths(24, *SECONDARY)
    assert traffic.note == ""
    assert traffic.to_json()["primary"] == {"mean": 101.0, "median": 80.0, "max": 315}


def test_long_and_short_texts_meet_in_any_order(samples):
    primary, secondary = realistic(samples, 24, 512).lengths

    assert abs(np.corrcoef(primary, secondary)[0, 1]) < 0.5
    assert primary != sorted(primary)


def test_the_mix_is_the_same_each_time(samples):
    assert realistic(samples, 24, 512).lengths == realistic(samples, 24, 512).lengths
    assert realistic(samples, 24, 512, seed=1).lengths != realistic(samples, 24, 512).lengths


def test_a_model_of_shorter_texts_gets_them_cut_and_that_is_said(samples):
    traffic = realistic(samples, 24, 128)

    assert max(max(side) for side in traffic.lengths) == 128
    cut = sum(size > 128 for shape in (PRIMARY, SECONDARY) for size in draw_lengths(24, *shape))
    assert traffic.note == f"{cut} of 48 texts are cut to max_sen_len=128"


def test_texts_of_a_fixed_length(samples):
    traffic = fixed(samples, 3, 32)

    assert (traffic.name, traffic.lengths) == ("S=32", ([32] * 3, [32] * 3))


def test_words_are_the_samples_own_between_the_special_tokens(samples):
    for item in fixed(samples, 5, 32).requests:
        (chunk,) = item.primary.chunks
        assert (chunk[0], chunk[-1]) == (CLS, SEP)
        assert {CLS, SEP}.isdisjoint(chunk[1:-1])


def test_no_two_requests_have_the_same_text(samples):
    requests = fixed(samples, 5, 32).requests

    assert len({tuple(item.primary.chunks[0]) for item in requests}) == 5


def test_half_of_the_shipment_texts_repeat(samples):
    mix = realistic(samples, 24, 512)

    traffic = repeating(mix)

    texts = [tuple(item.secondary.chunks[0]) for item in traffic.requests]
    assert len(texts) == 24
    assert len(set(texts)) == 12
    assert [item.primary for item in traffic.requests] == [item.primary for item in mix.requests]


def test_what_a_cache_could_save_is_counted_in_tokens(samples):
    traffic = repeating(fixed(samples * 2, 8, 20))

    assert saved_tokens(traffic) == pytest.approx(16 / 12)
