from __future__ import annotations

import logging
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimodal.errors import InferenceFailed
from trimodal.serving.runner import MAX_PADDING, MAX_RUN_TOKENS

TOLERANCE = 1e-6
VARIANTS = [
    {},
    {"batch": 1},
    {"batch": 4},
    {"tokens": 16},
    {"chunks": 3},
    {"batch": 3, "chunks": 3, "tokens": 16},
    {"tabular": "single"},
    {"tabular": "flat"},
    {"integer": "int32"},
    {"floating": "double"},
    {"classes": 3},
]
NAMES = [",".join(f"{key}={value}" for key, value in variant.items()) or "dynamic" for variant in VARIANTS]

chunk = st.lists(st.integers(5, 60), min_size=2, max_size=12)
text = st.lists(chunk, min_size=1, max_size=3)
number = st.floats(-1e4, 1e4, width=32)
record = st.tuples(text, text, st.tuples(number, number))
single_chunk_record = st.tuples(st.lists(chunk, min_size=1, max_size=1), st.lists(chunk, min_size=1, max_size=1))


def span(length, start=5):
    """One chunk of as many different ids as asked for."""
    return [start + i % 40 for i in range(length)]


def assert_neighbours_do_not_matter(runner, records, make_features):
    features = [make_features(*parts, index=i) for i, parts in enumerate(records)]
    alone = np.concatenate([runner.run([item]) for item in features])
    together = runner.run(features)
    doubled = runner.run([item for item in features for _ in range(2)])
    order = list(range(len(features)))
    random.Random(len(features)).shuffle(order)
    shuffled = runner.run([features[i] for i in order])
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(doubled, np.repeat(alone, 2, axis=0), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(shuffled, alone[order], rtol=0, atol=TOLERANCE)


@given(records=st.lists(record, min_size=1, max_size=8))
@settings(max_examples=80)
def test_a_score_never_depends_on_its_neighbours(records, make_runner, make_features):
    assert_neighbours_do_not_matter(make_runner(), records, make_features)


@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
@given(records=st.lists(record, min_size=1, max_size=7))
@settings(max_examples=10)
def test_nor_with_fixed_axes_other_types_or_other_tabular_inputs(variant, records, make_runner, make_features):
    assert_neighbours_do_not_matter(make_runner(**variant), records, make_features)


@pytest.mark.parametrize("variant", [{}, {"batch": 2}, {"tokens": 16}, {"integer": "int32", "tabular": "single"}])
@given(records=st.lists(single_chunk_record, min_size=1, max_size=7))
@settings(max_examples=10)
def test_nor_without_a_chunk_axis(variant, records, make_runner, make_features):
    assert_neighbours_do_not_matter(make_runner(chunked=False, **variant), records, make_features)


@pytest.mark.parametrize(
    "variant",
    [
        {"batch": 4},
        {"tokens": 16},
        {"tabular": "single"},
        {"tabular": "flat"},
        {"integer": "int32"},
        {"floating": "double"},
    ],
)
def test_variants_that_hold_the_same_network_give_the_same_scores(variant, make_runner, make_features):
    records = [make_features([span(n)], [span(14 - n)], (n, -n), index=n) for n in range(2, 12)]
    np.testing.assert_allclose(make_runner(**variant).run(records), make_runner().run(records), rtol=0, atol=TOLERANCE)


def test_one_chunk_scores_the_same_with_and_without_a_chunk_axis(make_runner, make_features):
    records = [make_features([span(n)], [span(3)], (n, 1.0), index=n) for n in range(2, 9)]
    with_axis, without = make_runner().run(records), make_runner(chunked=False).run(records)
    np.testing.assert_allclose(without, with_axis, rtol=0, atol=TOLERANCE)


def test_the_graph_tells_records_apart(make_runner, make_features):
    base = make_features([span(6)], [span(4)], (1.0, 2.0))
    others = [
        make_features([span(6, start=6)], [span(4)], (1.0, 2.0)),  # other tokens
        make_features([span(7)], [span(4)], (1.0, 2.0)),  # a longer text
        make_features([span(6)[::-1]], [span(4)], (1.0, 2.0)),  # another order
        make_features([span(6), span(3)], [span(4)], (1.0, 2.0)),  # another chunk
        make_features([span(6)], [span(4, start=9)], (1.0, 2.0)),  # another second text
        make_features([span(6)], [span(4)], (1.0, 90.0)),  # another number
    ]
    scores = make_runner().run([base, *others])[:, 1]
    assert (abs(scores[1:] - scores[0]) > 1e-4).all()


def test_answers_keep_the_order_of_the_records(make_runner, make_features, probe):
    shapes = [(3, 9), (1, 4), (2, 6), (1, 12), (3, 5), (1, 4), (2, 2)]
    features = [
        make_features([span(tokens)] * chunks, tabular=(place, -place), index=place)
        for place, (chunks, tokens) in enumerate(shapes)
    ]
    seen = probe(make_runner("probe"), features)
    assert [row["amount"] for row in seen] == list(range(len(shapes)))
    assert [row["orders"] for row in seen] == [-place for place in range(len(shapes))]
    assert [row["chat_mask"] for row in seen] == [chunks * tokens for chunks, tokens in shapes]


def test_only_equal_chunk_counts_run_together(make_runner, make_features, probe):
    counts = [(1, 1), (2, 1), (1, 2), (1, 1), (2, 2), (2, 1), (1, 1)]
    features = [make_features([span(4)] * a, [span(4)] * b, index=i) for i, (a, b) in enumerate(counts)]
    seen = probe(make_runner("probe"), features)
    assert [(row["chat_chunks"], row["events_chunks"]) for row in seen] == counts
    together = Counter(counts)
    assert [row["chat_rows"] for row in seen] == [together[count] for count in counts]


def test_a_run_is_padded_only_to_its_longest_text(make_runner, make_features, probe):
    features = [make_features([span(n)], [span(m)], index=n) for n, m in ((8, 10), (9, 9), (10, 10))]
    for row in probe(make_runner("probe"), features):
        assert (row["chat_rows"], row["chat_tokens"], row["events_tokens"]) == (3, 10, 10)


def test_a_chunk_is_padded_to_the_longest_chunk_of_its_own_text(make_runner, make_features, probe):
    (row,) = probe(make_runner("probe", pad_id=1), [make_features([[7] * 9, [7] * 4], [[8, 8]])])
    assert (row["chat_chunks"], row["chat_tokens"], row["events_tokens"]) == (2, 9, 2)
    assert row["chat_mask"] == 13
    assert row["chat_ids"] == 13 * 7 + 5 * 1  # five places of padding, of the tokenizer's own id
    assert row["events_ids"] == 16


def test_texts_of_very_different_lengths_run_apart(make_runner, make_features, probe):
    features = [make_features([span(n)], [span(2)], index=n) for n in (200, 4, 200, 4)]
    assert [row["chat_tokens"] for row in probe(make_runner("probe"), features)] == [200, 4, 200, 4]


@given(lengths=st.lists(st.tuples(st.integers(2, 600), st.integers(2, 600)), min_size=1, max_size=14))
@settings(max_examples=60)
def test_padding_and_size_of_a_run_are_bounded(lengths, make_runner, make_features, probe):
    features = [make_features([span(a)], [span(b)], index=i) for i, (a, b) in enumerate(lengths)]
    for row, (a, b) in zip(probe(make_runner("probe"), features), lengths, strict=True):
        assert (row["chat_mask"], row["events_mask"]) == (a, b)
        assert row["chat_tokens"] >= a
        assert row["events_tokens"] >= b
        padded = row["chat_rows"] * (row["chat_tokens"] + row["events_tokens"])
        assert padded <= MAX_PADDING * row["run_mask"]
        assert padded <= MAX_RUN_TOKENS or row["chat_rows"] == 1


def test_a_large_request_runs_in_several_parts(make_runner, make_features, probe):
    features = [make_features([span(500)], [span(500)], index=i) for i in range(10)]
    assert sorted(row["chat_rows"] for row in probe(make_runner("probe"), features)) == [2, 2, *[4] * 8]


def test_a_record_over_the_size_of_a_run_runs_alone(make_runner, make_features, probe):
    features = [make_features([span(1200)] * 3, [span(1200)] * 3, index=i) for i in range(3)]
    assert [row["chat_rows"] for row in probe(make_runner("probe"), features)] == [1, 1, 1]


def test_a_fixed_batch_is_filled_up_and_only_the_asked_records_are_answered(make_runner, make_features, probe):
    features = [make_features([span(5)], tabular=(i, 0), index=i) for i in range(6)]
    seen = probe(make_runner("probe", batch=4), features)
    assert [row["amount"] for row in seen] == list(range(6))
    assert {row["chat_rows"] for row in seen} == {4}
    assert [row["run_mask"] for row in seen] == [4 * 7] * 6  # filled up with records, not with empty rows


def test_fixed_axes_are_padded_to(make_runner, make_features, probe):
    features = [make_features([span(5), span(3)], index=0), make_features([span(6)], index=1)]
    first, second = probe(make_runner("probe", chunks=3, tokens=16), features)
    for row in (first, second):
        assert (row["chat_chunks"], row["chat_tokens"], row["events_chunks"], row["events_tokens"]) == (3, 16, 3, 16)
    assert (first["chat_mask"], second["chat_mask"]) == (8, 6)


def test_a_fixed_token_axis_does_not_split_runs(make_runner, make_features, probe):
    features = [make_features([span(n)], [span(2)], index=n) for n in (2, 5, 9, 16)]
    assert [row["chat_rows"] for row in probe(make_runner("probe", tokens=16), features)] == [4, 4, 4, 4]


@pytest.mark.parametrize("tabular", ["fields", "single", "flat"])
@pytest.mark.parametrize("floating", ["float", "float16", "double"])
def test_tabular_values_arrive_in_the_type_and_shape_of_the_graph(tabular, floating, make_runner, make_features, probe):
    features = [make_features([span(4)], tabular=(1.5 + i, -2.25 - i), index=i) for i in range(3)]
    seen = probe(make_runner("probe", tabular=tabular, floating=floating), features)
    assert [(row["amount"], row["orders"]) for row in seen] == [(1.5 + i, -2.25 - i) for i in range(3)]


def test_probabilities_are_float32_and_sum_to_one(make_runner, make_features):
    scores = make_runner(classes=3).run([make_features([span(n)], index=n) for n in range(2, 30)])
    assert scores.dtype == np.float32
    assert scores.shape == (28, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=0, atol=1e-5)


def test_a_failing_graph_is_an_error_without_detail(make_runner, make_features, caplog):
    unknown_token = make_features([[5, 98765]])  # beyond the graph's table of vectors
    with caplog.at_level(logging.ERROR), pytest.raises(InferenceFailed) as caught:
        make_runner().run([unknown_token])
    assert str(caught.value) == "The model failed on this request."
    assert caught.value.status == 500
    assert caught.value.__cause__ is not None
    (logged,) = caplog.records
    assert logged.getMessage() == "inference failed: InvalidArgument"
    assert logged.exc_info is None  # the text of the cause holds token ids


@pytest.mark.parametrize("batch", [None, 4])
def test_an_output_that_is_no_number_names_its_record(batch, make_runner, make_features):
    numbers = [4.0, 9.0, -1.0, 16.0, 25.0]
    features = [make_features([span(5)], tabular=(n, 1.0), index=i) for i, n in enumerate(numbers)]
    with pytest.raises(InferenceFailed, match="record 2") as caught:
        make_runner("root", batch=batch).run(features)
    assert caught.value.record == 2


def test_a_finished_failure_does_not_spoil_the_next_run(make_runner, make_features):
    runner = make_runner()
    good = make_features([span(5)])
    before = runner.run([good])
    with pytest.raises(InferenceFailed):
        runner.run([make_features([[98765, 5]]), good])
    np.testing.assert_array_equal(runner.run([good]), before)
