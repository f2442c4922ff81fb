from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from trimodal.errors import InvalidRecord
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import read_golden
from trimodal.metrics.instrumented import measured, timed
from trimodal.records import Payload
from trimodal.settings import Settings

DEMO = Path(__file__).parents[3] / "scripts" / "models" / "demo"


class Recorded:
    def __init__(self):
        self.points = []

    def record(self, name, value=1.0, /, **dimensions):
        self.points.append((name, value, dimensions))

    def values(self, name, **dimensions):
        return [value for which, value, own in self.points if (which, own) == (name, dimensions)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return load_pipeline(Settings(model_dir=DEMO, optimized_dir=folder, workers=1, intra_op_threads=1))


@pytest.fixture
def rows():
    return [record for record, _ in read_golden(DEMO / "golden.jsonl")[:5]]


def test_answers_stay_and_stages_are_recorded(pipeline, rows):
    recorder = Recorded()
    wrapped = measured(pipeline, recorder)

    answers = [wrapped.predict(Payload(part)).raw.tolist() for part in (rows[:2], rows[2:])]

    assert answers == [pipeline.predict(Payload(part)).raw.tolist() for part in (rows[:2], rows[2:])]
    for stage in ("tokenize", "inference"):
        times = recorder.values("StageLatency", Stage=stage)
        assert len(times) == 2
        assert min(times) > 0
    assert recorder.values("Records") == recorder.values("BatchSize") == [2, 3]
    assert len(recorder.values("Score")) == 5


def test_the_encoder_cache_is_counted(pipeline, rows):
    recorder = Recorded()
    wrapped = measured(pipeline, recorder)
    for _ in range(2):
        wrapped.predict(Payload(rows[:1]))

    lookups = sum(recorder.values("EncoderCacheLookups"))
    hits = sum(recorder.values("EncoderCacheHits"))
    assert lookups == pipeline.runner.cache.hits + pipeline.runner.cache.misses
    assert hits == pipeline.runner.cache.hits >= 2  # both texts of the second request


def test_a_refused_request_leaves_no_time_behind(pipeline, rows):
    recorder = Recorded()
    wrapped = measured(pipeline, recorder)
    with pytest.raises(InvalidRecord):
        wrapped.predict(Payload([rows[0], {**rows[1], "net_conc_amt": "many"}]))

    assert wrapped.features.take() == 0
    assert recorder.points == []


def test_a_timed_handler_keeps_its_parameters_and_its_error():
    recorder = Recorded()

    def handler(body, content_type, context):
        raise ValueError(f"{body} {content_type} {context}")

    wrapped = timed(handler, "decode", recorder)

    assert len(inspect.signature(wrapped).parameters) == 3
    with pytest.raises(ValueError, match=r"^a b c$"):
        wrapped("a", "b", "c")
    assert len(recorder.values("StageLatency", Stage="decode")) == 1
