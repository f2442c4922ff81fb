from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from trimodal.errors import ArtifactError
from trimodal.loading.load import load_pipeline, open_reference
from trimodal.loading.verify import replay_golden
from trimodal.metrics.shadow import QUEUE_RECORDS, Shadow, shadowed
from trimodal.records import EncodedText, Features
from trimodal.settings import Settings

DEMO = Path(__file__).parents[3] / "scripts" / "models" / "demo"


class Recorded:
    def __init__(self):
        self.points = []

    def record(self, name, value=1.0, /, **dimensions):
        self.points.append((name, value, dimensions))

    def count(self):
        return Counter(name for name, _, _ in self.points)

    def values(self, name):
        return [value for which, value, _ in self.points if which == name]


class Scorer:
    """Gives `probability` for class 1 of every record."""

    def __init__(self, probability, gate=None):
        self.probability, self.gate = probability, gate

    def run(self, features):
        if self.gate is not None:
            self.gate.wait()
        return np.array([[1 - self.probability, self.probability]] * len(features), np.float32)

    def steps(self, features, _alone):
        yield
        return self.run(features)


def records(count):
    text = EncodedText([[1, 2]])
    return [Features(index, text, text, np.zeros(2, np.float32)) for index in range(count)]


@contextmanager
def shadow(served, open_reference, rate=1.0, draw=lambda: 0.5):
    recorder = Recorded()
    made = Shadow(served, open_reference, recorder, rate, draw)
    try:
        yield made, recorder
    finally:
        made.close(30)
        assert not made._thread.is_alive()


def eventually(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_differs_is_recorded_and_the_answer_is_the_runners():
    with shadow(Scorer(0.75), lambda: Scorer(0.25)) as (made, recorder):
        answer = made.run(records(3))
        eventually(lambda: recorder.count()["LabelFlip"] == 3)

    assert answer.tolist() == [[0.25, 0.75]] * 3
    assert recorder.values("ScoreDrift") == [0.5] * 3
    assert recorder.count() == {"ShadowChecked": 3, "ScoreDrift": 3, "LabelFlip": 3}


def test_equal_scores_flip_nothing():
    with shadow(Scorer(0.75), lambda: Scorer(0.75)) as (made, recorder):
        made.run(records(2))
        eventually(lambda: recorder.count()["ShadowChecked"] == 2)

    assert recorder.values("ScoreDrift") == [0, 0]
    assert "LabelFlip" not in recorder.count()


def test_a_reference_that_hangs_costs_records_and_not_requests():
    gate = threading.Event()
    with shadow(Scorer(0.75), lambda: Scorer(0.75, gate)) as (made, recorder):
        for _ in range(5):
            assert len(made.run(records(100))) == 100
        # one may be with the reference, the queue holds its bound, the rest is skipped and counted
        assert 500 - QUEUE_RECORDS - 1 <= recorder.count()["ShadowSkipped"] <= 500 - QUEUE_RECORDS
        gate.set()


@pytest.mark.parametrize("error", [ArtifactError("model.onnx cannot be loaded."), MemoryError(), RuntimeError("x")])
def test_a_reference_that_cannot_be_opened_ends_the_check_and_not_the_service(error, caplog):
    def fail():
        raise error

    with shadow(Scorer(0.75), fail) as (made, recorder):
        made.run(records(1))
        eventually(lambda: not made._thread.is_alive())
        assert len(made.run(records(2))) == 2

    assert recorder.points == []
    assert [record.message for record in caplog.records] == ["the shadow check ends"]
    assert caplog.records[0].exc_info is None


def test_it_waits_while_a_request_runs():
    gate = threading.Event()
    with shadow(Scorer(0.75, gate), lambda: Scorer(0.25)) as (made, recorder):
        request = threading.Thread(target=made.run, args=(records(1),))
        gate.set()
        made.run(records(1))
        gate.clear()
        request.start()
        eventually(lambda: made._running == 1)
        time.sleep(0.3)
        seen = recorder.count()["ShadowChecked"]
        gate.set()
        request.join()
        eventually(lambda: recorder.count()["ShadowChecked"] == 2)

    assert seen <= 1  # what was being compared when the request came


@examples(max_examples=25)  # a quarter of a second each: the thread that compares waits for idle time
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20), st.floats(0, 1))
def test_as_many_are_drawn_as_the_rate_says(draws, rate):
    numbers = iter(draws)
    with shadow(Scorer(0.75), lambda: Scorer(0.75), rate, lambda: next(numbers)) as (made, recorder):
        drawn = sum(number < rate for number in draws)
        made.run(records(len(draws)))
        eventually(lambda: recorder.count()["ShadowChecked"] == drawn)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("shadow") / "model"
    shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("optimized"))
    return Settings(model_dir=path, optimized_dir=path.parent / "cache", workers=1, intra_op_threads=1)


@pytest.fixture(scope="module")
def pipeline(settings):
    return load_pipeline(settings)


def test_the_demo_model_stays_proven(settings, pipeline):
    recorder = Recorded()
    checked = shadowed(pipeline, recorder, 1.0, lambda: open_reference(settings))
    try:
        assert replay_golden(checked, settings.model_dir / "golden.jsonl").refusal is None
        eventually(lambda: sum(recorder.count()[name] for name in ("ShadowChecked", "ShadowSkipped")) == 64)
    finally:
        checked.runner.close(60)

    assert recorder.count()["ShadowChecked"] >= QUEUE_RECORDS
    assert 0 <= max(recorder.values("ScoreDrift")) <= 1e-4
    assert recorder.count()["LabelFlip"] == 0


def test_it_is_off_by_default_and_where_nothing_was_optimized(pipeline, caplog):
    caplog.set_level("INFO")
    plain = replace(pipeline, status={**pipeline.status, "entry": None, "rung": "tuned"})

    assert shadowed(pipeline, Recorded(), 0.0, lambda: Scorer(1)) is pipeline
    assert shadowed(plain, Recorded(), 1.0, lambda: Scorer(1)) is plain
    assert "no shadow check" in caplog.text
