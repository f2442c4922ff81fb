from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trimodal.metrics.quality import count_quality
from trimodal.records import EncodedText, Features, Record
from trimodal.serving.tabular import RiskTable, TabularEncoder

texts = st.builds(
    EncodedText,
    st.just([[1]]),
    unmarked=st.booleans(),
    cut_messages=st.integers(0, 5),
    dropped_chunks=st.integers(0, 5),
)
features = st.builds(
    Features, st.just(0), texts, texts, st.just(np.zeros(1, np.float32)), st.integers(0, 9), st.integers(0, 9)
)


class Recorded:
    def __init__(self):
        self.sums = {}

    def record(self, name, value=1.0, /, **dimensions):
        key = (name, *dimensions.values())
        self.sums[key] = self.sums.get(key, 0) + value


@given(st.lists(features, min_size=1, max_size=5))
def test_everything_is_counted_and_nothing_where_nothing_happened(items):
    recorder = Recorded()

    count_quality(items, np.full((len(items), 2), 0.5, np.float32), recorder)

    expected = {
        ("TextsTruncated", "primary"): sum(item.primary.cut_messages for item in items),
        ("TextsTruncated", "secondary"): sum(item.secondary.cut_messages for item in items),
        ("ChunksDropped", "primary"): sum(item.primary.dropped_chunks for item in items),
        ("ChunksDropped", "secondary"): sum(item.secondary.dropped_chunks for item in items),
        ("UnmarkedTexts", "primary"): sum(item.primary.unmarked for item in items),
        ("UnmarkedTexts", "secondary"): sum(item.secondary.unmarked for item in items),
        ("ImputedValues",): sum(item.imputed for item in items),
        ("UnknownCategories",): sum(item.unknown for item in items),
        ("Score",): 0.5 * len(items),
    }
    assert recorder.sums == {key: value for key, value in expected.items() if value}


def test_the_score_is_that_of_class_1_or_of_the_most_probable_one():
    item = Features(0, EncodedText([[1]]), EncodedText([[1]]), np.zeros(1, np.float32))
    for row, score in (([0.75, 0.25], 0.25), ([0.5, 0.125, 0.375], 0.5)):
        recorder = Recorded()
        count_quality([item], np.array([row], np.float32), recorder)
        assert recorder.sums == {("Score",): score}


def test_missing_values_and_unknown_categories_are_told_apart():
    encoder = TabularEncoder(("amount", "carrier", "count"), {"amount": 3.0}, {"carrier": RiskTable({"dhl": 0.1}, 0.5)})

    def gaps(**values):
        return encoder.gaps(Record(0, values))

    assert gaps(amount=1, carrier="dhl", count=2) == (0, 0)
    assert gaps(amount=None, carrier="ups", count=float("nan")) == (2, 1)
    assert gaps() == (3, 0)
