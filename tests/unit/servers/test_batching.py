"""Requests run together: each gets its own scores, whatever its neighbours do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from trimodal.errors import InferenceFailed
from trimodal.records import EncodedText, Features
from trimodal.servers.batching import Batcher, pays
from trimodal.serving.steps import finish

BAD = 13.0


def records(*values):
    text = EncodedText([[1, 2]])
    return [Features(index, text, text, np.array([value], np.float32)) for index, value in enumerate(values)]


class Runner:
    """Gives back each record's own value; fails where one of them is bad."""

    def __init__(self):
        self.sizes = []
        self.lock = threading.Lock()

    def run(self, features):
        with self.lock:
            self.sizes.append(len(features))
        if any(item.tabular[0] == BAD for item in features):
            raise InferenceFailed("bad")
        return np.stack([np.array([0, item.tabular[0]], np.float32) for item in features])

    def steps(self, features, _alone):
        yield
        return self.run(features)


def together(batcher, *requests):
    with ThreadPoolExecutor(len(requests)) as pool:
        return [future.result()[:, 1].tolist() for future in [pool.submit(batcher.run, r) for r in requests]]


def test_requests_run_together_and_each_gets_its_own_scores():
    runner = Runner()
    requests = [records(n, n + 0.5) for n in range(4)]
    assert together(Batcher(runner, 8, 60.0), *requests) == [[n, n + 0.5] for n in range(4)]
    assert runner.sizes == [8]


def test_a_batch_is_never_larger_than_allowed():
    runner = Runner()
    requests = [records(n, n) for n in range(10)]
    assert together(Batcher(runner, 3, 0.01), *requests) == [[n, n] for n in range(10)]
    assert max(runner.sizes) <= 3


def test_a_large_request_runs_by_itself():
    runner = Runner()
    batcher = Batcher(runner, 4, 60.0)
    assert len(batcher.run(records(*range(9)))) == 9
    assert len(finish(batcher.steps(records(*range(9)), lambda: False))) == 9
    assert runner.sizes == [9, 9]


def test_a_lone_request_does_not_wait():
    runner = Runner()
    assert finish(Batcher(runner, 4, 60.0).steps(records(1), lambda: True))[0, 1] == 1


def test_a_bad_record_costs_its_own_request():
    batcher = Batcher(Runner(), 2, 60.0)
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(batcher.run, records(1)), pool.submit(batcher.run, records(BAD))
        assert good.result()[0, 1] == 1
        with pytest.raises(InferenceFailed):
            bad.result()


@pytest.mark.parametrize(
    ("rung", "precision", "expected"),
    [
        ("cuda-fp16", "fp16", True),
        ("tensorrt-fp16", "fp16", True),
        ("rebuild-fp32", "fp32", False),
        ("cuda-int8", "int8", False),
        ("openvino-bf16", "bf16", False),
    ],
)
def test_where_it_pays(rung, precision, expected):
    assert pays({"rung": rung, "precision": precision}) == expected


def test_of_a_users_own_model_nothing_is_known():
    assert not pays({})
