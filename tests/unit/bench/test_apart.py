from __future__ import annotations

import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest

from trimodal.bench import apart
from trimodal.bench.apart import WARM_SECONDS, Worker, call_apart
from trimodal.errors import OptimizationError

DOUBLING = "type('Doubling', (), {'run': lambda self, items: (print('noise'), [2 * i for i in items])[1]})()"
"""Opened by `eval`, because the other process cannot import a test."""


def test_a_call_comes_back_from_another_process():
    assert call_apart(partial(os.getppid)) == os.getpid()


def test_a_calls_failure_names_its_kind_and_not_a_path():
    with pytest.raises(OptimizationError, match="ZeroDivisionError: "):
        call_apart(partial(divmod, 1, 0))


def test_a_killed_process_is_told():
    with pytest.raises(OptimizationError, match="its process ended with status -9"):
        call_apart(partial(eval, "__import__('os').kill(__import__('os').getpid(), 9)"))


def test_a_worker_times_and_scores_its_batches_in_its_own_process():
    worker = Worker(partial(eval, DOUBLING), [[1, 2], [3]])
    try:
        seconds, memory = worker.opened()
        assert 0 <= seconds < 60
        assert memory > 1
        assert worker.scores(0) == [2, 4]
        assert worker.time(1) >= 0
        assert worker.peak() >= memory * 0.9
    finally:
        worker.close()


def test_a_worker_that_fails_is_told_when_it_is_asked():
    worker = Worker(partial(eval, DOUBLING), [[None]])
    try:
        worker.opened()
        with pytest.raises(OptimizationError, match="TypeError"):
            worker.time(0)
    finally:
        worker.close()


def test_a_closed_worker_leaves_no_process():
    worker = Worker(partial(eval, DOUBLING), [[1]])
    worker.opened()
    number = worker._process.pid

    worker.close()

    with pytest.raises(ProcessLookupError):
        os.kill(number, signal.SIGCONT)


def test_a_short_call_is_timed_once_its_process_is_warm(monkeypatch):
    now = [0.0]
    calls = []

    def run(items):
        now[0] += items[0]
        calls.append(items[0])
        return len(calls)

    short, long = 0.4 * WARM_SECONDS, 3 * WARM_SECONDS
    opening = partial(SimpleNamespace, run=run)
    messages = iter([(opening, [[short], [long]]), ("time", 0), ("scores", 0), ("time", 1), ("scores", 0)])
    answers = []
    monkeypatch.setattr(apart, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    with pytest.raises(StopIteration):
        apart._work(lambda: next(messages), answers.append)

    assert answers[1:] == [pytest.approx(short), 5, pytest.approx(long), 7]  # cold, twice to get warm, timed, scores
