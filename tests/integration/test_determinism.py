"""The same records give the same bits at a level, whatever the threads, and whatever else is asked or remembered.

Levels, rungs and processors differ from each other by rounding: what serves is chosen by measuring, once for a cache.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from trimodal.loading.load import load_pipeline

LEVELS = {
    (1, "rebuild-fp32"): {},
    (1, "rebuild-int4"): {"precision": "int4"},
    (2, "tuned"): {"fusion": False},
    (3, "baseline"): {"fusion": False},
    (4, "pytorch"): {},
}


@pytest.fixture(params=LEVELS, ids=lambda level: f"level {level[0]}, {level[1]}")
def load(request, settings, monkeypatch):
    """Loads the model at one level: `load(threads, encoder_cache)`."""
    level, rung = request.param
    if level == 3:
        import trimodal.loading.load as module

        opened = module.open_model
        monkeypatch.setattr(module, "open_model", lambda artifacts, pad, _tuning=None: opened(artifacts, pad))
    if level == 4:
        (settings.model_dir / "model.onnx").write_bytes(b"torn")

    def run(threads, encoder_cache=0):
        changes = {"intra_op_threads": threads, "encoder_cache": encoder_cache, **LEVELS[request.param]}
        pipeline = load_pipeline(replace(settings, **changes))
        assert pipeline.status["rung"] == {"baseline": "tuned"}.get(rung, rung), pipeline.status
        return pipeline

    return run


@pytest.fixture
def records(settings):
    """The demo's recorded ones, and one with several chunks of several lengths."""
    lines = (settings.model_dir / "golden.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    found = [json.loads(line)["record"] for line in lines]
    long = " ".join(record["dialogue"] for record in found[:6])
    return [*found, found[0] | {"dialogue": long}]


def scores(pipeline, records):
    body, _ = pipeline.answer(json.dumps(records).encode(), "application/json", "application/json")
    return [row["legacy-score"] for row in json.loads(body)["predictions"]]  # the shortest text of the very bits


def test_the_same_records_give_the_same_bits(load, records):
    one = load(1)
    alone = [score for record in records for score in scores(one, [record])]

    assert len(set(alone)) > 10
    assert scores(one, records) == alone
    assert scores(one, records[::-1]) == alone[::-1]
    other = load(2, encoder_cache=100)
    for _ in range(2):  # the second time remembered, where the level remembers
        assert scores(other, records) == alone
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda part: scores(one, part), [records, records[:7], records[7:20]] * 2))
    assert answers == [alone, alone[:7], alone[7:20]] * 2


def test_int8_gives_the_same_bits_again(settings, records):
    """Of one cache and number of threads: which of the INT8 rungs serves is chosen by measuring."""
    first, again = (
        load_pipeline(replace(settings, intra_op_threads=1, encoder_cache=entries, precision="int8"))
        for entries in (0, 100)
    )
    assert first.status["precision"] == "int8", first.status
    assert again.status["rung"] == first.status["rung"]

    alone = [score for record in records for score in scores(first, [record])]

    assert len(set(alone)) > 10
    for pipeline in (first, again, again):
        assert scores(pipeline, records) == alone
        assert scores(pipeline, records[::-1]) == alone[::-1]
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda part: scores(again, part), [records, records[:7], records[7:20]] * 2))
    assert answers == [alone, alone[:7], alone[7:20]] * 2
