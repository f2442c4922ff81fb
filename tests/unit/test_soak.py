from __future__ import annotations

import argparse
import json

import pytest

from soak_traffic import CSV, DEMO, JSON, LINES, Golden, Seen, findings


@pytest.fixture
def golden():
    return Golden(DEMO)


def answer(scores, accept):
    found = [{"legacy-score": repr(score)} for score in scores]
    if accept == CSV:
        return "".join(f"{score:.4f},0,0\n" for score in scores).encode()
    return (json.dumps({"predictions": found}) if accept == JSON else "\n".join(map(json.dumps, found))).encode()


@pytest.mark.parametrize("accept", [JSON, LINES, CSV])
def test_right_answers_pass(accept, golden):
    assert golden.check([3, 0], accept, answer([golden.scores[3], golden.scores[0]], accept)) is None


@pytest.mark.parametrize("accept", [JSON, LINES, CSV])
@pytest.mark.parametrize(
    "change", [lambda scores: [scores[0] + 1e-3, scores[1]], lambda scores: scores[::-1], lambda scores: scores[:1]]
)
def test_wrong_answers_do_not(accept, change, golden):
    right = [golden.scores[3], golden.scores[0]]
    assert golden.check([3, 0], accept, answer(change(right), accept)) is not None


def test_an_answer_that_changes_in_its_last_digit_is_wrong(golden):
    assert golden.check([0], JSON, answer([golden.scores[0]], JSON)) is None
    assert "as at first" in golden.check([0], JSON, answer([golden.scores[0] + 1e-9], JSON))


class Traffic:
    """What `findings` reads of a run of 100 seconds."""

    sent = 1000

    def __init__(self, monkeypatch, sizes):
        self.begun = 0.0
        self.seen = Seen(sizes=sizes)
        monkeypatch.setattr("soak_traffic.time.monotonic", lambda: 100.0)


@pytest.mark.parametrize(
    ("growth", "complaint"),
    [
        ((0, 0, 0), None),
        ((1.9, 0, 0), None),
        ((2.5, 0, 0), "memory"),
        ((0, 1, 0), "descriptors"),
        ((0, 0, 1), "threads"),
    ],
)
def test_growth_is_told(growth, complaint, monkeypatch):
    first, last = (100.0, 20, 10), tuple(value + more for value, more in zip((100.0, 20, 10), growth, strict=True))
    sizes = [(float(second), *(first if second < 50 else last)) for second in range(100)]
    traffic = Traffic(monkeypatch, sizes)
    found = findings(argparse.Namespace(server="asgi", clients=1, kills=0), traffic, last[0:3])
    if complaint is None:
        assert found["wrong"] == []
    else:
        assert complaint in found["wrong"][0]
