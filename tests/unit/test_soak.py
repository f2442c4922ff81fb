from __future__ import annotations

import json

import pytest

from soak_run import DEMO, judge, main
from soak_traffic import CSV, JSON, LINES, Golden, Seen, bad_requests


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
    """What `judge` reads of a run, its first fifth to warm up: what grows does so in its second half."""

    def __init__(self, memory=100.0, milliseconds=10.0, seconds=100):
        at = [float(second) for second in range(seconds)]
        sizes = [(second, (100.0 if second < seconds / 2 else memory, 20, 10)) for second in at]
        latency = [
            (second + part / 20, 10.0 if second < seconds / 2 else milliseconds) for second in at for part in range(20)
        ]
        self.seen = Seen(sizes=sizes, latency=latency)


@pytest.mark.parametrize(
    ("traffic", "left", "complaint"),
    [
        (Traffic(), (100.0, 20, 10), None),
        (Traffic(), (100.0, 19, 9), None),
        (Traffic(memory=103.9), (100.0, 20, 10), None),
        (Traffic(memory=104.0), (100.0, 20, 10), "memory grew from 100.0 to 104.0 MiB"),
        (Traffic(memory=101.9, seconds=1000), (100.0, 20, 10), None),
        (Traffic(memory=102.0, seconds=1000), (100.0, 20, 10), "memory grew from 100.0 to 102.0 MiB"),
        (Traffic(), (100.0, 21, 10), "file descriptors grew from 20 to 21"),
        (Traffic(), (100.0, 20, 11), "threads grew from 10 to 11"),
        (Traffic(milliseconds=29.0), (100.0, 20, 10), None),
        (Traffic(milliseconds=31.0), (100.0, 20, 10), "the 99th percentile grew from 10.0 to 31.0 ms"),
    ],
)
def test_growth_is_told(traffic, left, complaint):
    judge(traffic, 20.0, (100.0, 20, 10), left)
    assert traffic.seen.wrong == ([] if complaint is None else [complaint])


def test_a_window_that_others_disturb_does_not_count():
    traffic = Traffic()
    traffic.seen.latency = [(at, 500.0 if at > 95 else ms) for at, ms in traffic.seen.latency]
    judge(traffic, 20.0, (100.0, 20, 10), (100.0, 20, 10))
    assert traffic.seen.wrong == []


def test_every_bad_request_is_refused_for_its_own_reason(golden):
    assert {status for *_, status in bad_requests(golden)} == {400, 404, 406, 413, 415, 422}


def test_a_run_that_is_too_short_to_judge_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["soak", "--minutes", "0.5"])

    with pytest.raises(SystemExit, match="2"):
        main()

    assert "--minutes must be at least 1" in capsys.readouterr().err
