from __future__ import annotations

from dataclasses import dataclass, field

from trimodal.bench.cells import make_plan


@dataclass
class Texts:
    """A model of which only texts are asked."""

    max_tokens: int = 100
    items: list[list[int]] = field(default_factory=lambda: [[1, 2, 3], [4, 5]])

    def mix(self, count):
        return [[0] * (10 + place % 3) for place in range(count)]

    def fixed(self, count, tokens):
        return [[0] * tokens for _ in range(count)]

    def lengths(self, item):
        return [len(item)]


def test_the_mix_comes_first_and_then_the_cheapest():
    plan = make_plan(Texts(), [16, 1], [64, 8], quick=False)

    order = [(cell.traffic, cell.batch) for cell in plan.cells]
    assert order == [("mix", 1), ("mix", 16), ("S=8", 1), ("S=64", 1), ("S=8", 16), ("S=64", 16)]


def test_every_cell_has_batches_of_its_size_and_length():
    plan = make_plan(Texts(), [1, 4], [8], quick=False)

    for cell in plan.cells:
        batches = [plan.batches[place] for place in cell.places]
        assert batches
        assert all(len(batch) == cell.batch for batch in batches)
        assert cell.tokens == sum(len(item) for batch in batches for item in batch)
        if cell.traffic == "S=8":
            assert all(len(item) == 8 for batch in batches for item in batch)
    assert [plan.batches[place] for place in plan.judged] == [[[1, 2, 3]], [[4, 5]]]


def test_lengths_beyond_the_models_are_left_out_and_told():
    plan = make_plan(Texts(), [1], [8, 512], quick=True)

    assert {cell.traffic for cell in plan.cells} == {"mix", "S=8"}
    assert plan.notes == ["S=512 is not timed: the model takes 100 tokens"]
