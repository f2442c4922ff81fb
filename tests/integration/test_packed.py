"""Encoders are served with packed weights where that is proven, and as they were built where it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimodal.loading.load import load_pipeline
from trimodal.loading.samples import make_features
from trimodal.serving.steps import always, finish, never

FULL = """
import os
import trimodal.loading.packing as m
right = m.open_built
def full(built, folder, tuning, **options):
    for part in built.texts if tuning.pack_into else ():
        os.symlink("/dev/full", tuning.pack_into / f"{part.file}.data")
    return right(built, folder, tuning, **options)
m.open_built = full
"""

OTHER_OUTPUTS = """
import trimodal.loading.packing as m
right = m._outputs
m._outputs = lambda runner, probes: [
    [array + (runner.crowded is not None) for array in outputs] for outputs in right(runner, probes)
]
"""

FAULTS = {
    "disk full": (FULL, "primary.onnx cannot be saved with packed weights by onnxruntime"),
    "other outputs": (OTHER_OUTPUTS, "packed weights change the outputs of an encoder"),
}


@pytest.fixture
def asgi(settings):
    """The settings of one process that works on several requests at once."""
    return replace(settings, server="asgi", workers=None, intra_op_threads=2, encoder_cache=0)


def describe(status):
    """Returns what an entry says of its model."""
    return json.loads((Path(status["entry"]) / "manifest.json").read_text())["built"]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_both_sets_of_packed_encoders_give_one_score(asgi, inject, precision):
    inject()

    pipeline = load_pipeline(replace(asgi, precision=precision))

    assert pipeline.status["level"] == 1
    assert describe(pipeline.status)["packed"]
    assert "not packed" not in pipeline.status["report"]
    runner = pipeline.runner
    assert runner.crowded is not None
    records = make_features(_Artifacts(pipeline), 1000, seed=3)
    expected = finish(runner.steps(records, always))
    np.testing.assert_array_equal(finish(runner.steps(records, never)), expected)


class _Artifacts:
    """As much of a model directory as making records up needs."""

    def __init__(self, pipeline):
        self.config = self
        self.max_tokens = pipeline.features.primary.max_tokens
        self.max_chunks = 3
        self.tabular = pipeline.schema.tabular


def test_several_workers_have_one_set_of_packed_encoders_each(settings, inject):
    inject()

    pipeline = load_pipeline(replace(settings, workers=2, intra_op_threads=2))

    assert describe(pipeline.status)["packed"]
    assert pipeline.runner.crowded is None


@pytest.mark.parametrize("server", ["mms", "asgi"])
def test_weights_that_are_opened_once_are_not_packed(settings, inject, server):
    inject()

    pipeline = load_pipeline(replace(settings, server=server, workers=1, intra_op_threads=2))

    assert not describe(pipeline.status)["packed"]
    assert pipeline.runner.crowded is None


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_cannot_be_packed_are_served_as_they_were_built(asgi, inject, served, fault):
    lines, cause = FAULTS[fault]
    inject(lines)

    status = served(replace(asgi, strict=True), 1, "rebuild-fp32")

    assert status["causes"] == {}
    assert f"- rebuild-fp32: its weights are not packed: {cause}" in status["report"]
    assert not describe(status)["packed"]
    assert sorted(path.name for path in Path(status["entry"]).glob("primary*")) == [
        "primary.onnx",
        "primary.onnx.data",
    ]
    assert load_pipeline(asgi).runner.crowded is None
