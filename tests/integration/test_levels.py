"""Each level below the first is taken where the one above it is lost; the last resort is one clear message."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import trimodal.loading.load as loading
from trimodal.errors import ArtifactError
from trimodal.loading.load import load_pipeline
from trimodal.loading.prepare import prepare

NO_TUNED = """
import trimodal.loading.load as m
right = m.open_session
def open_session(artifacts, options=None):
    if options is not None:
        raise m.ArtifactError("model.onnx cannot be opened with these options")
    return right(artifacts)
m.open_session = open_session
"""


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "NoSuchExecutionProvider"])
def test_a_provider_that_is_missing_costs_what_only_it_brings(settings, served, refused, provider):
    settings = replace(settings, providers=(provider, "CPUExecutionProvider"))
    words = {"CUDAExecutionProvider": "cuda-fp32: "}.get(
        provider, f"the execution provider {provider} is not available"
    )

    status = served(settings, 1, "rebuild-fp32")

    assert list(status["causes"]) == ["providers"]
    assert words in status["causes"]["providers"]
    refused(replace(settings, strict=True), "providers: ", words)

    alone = replace(settings, fusion=False)
    assert words in served(alone, 2, "tuned")["causes"]["providers"]
    refused(replace(alone, strict=True), "providers: ", words)


@pytest.fixture
def chosen(settings, tmp_path, inject):
    """An entry as the main process has left it to the workers: (its folder, the settings of a worker)."""
    inject()
    selection = prepare(settings, 1)
    told = replace(settings, run_dir=tmp_path / "run")
    told.run_dir.mkdir()
    selection.write(told.run_dir)
    return selection.entry, told


def test_an_entry_that_cannot_be_opened_by_a_worker_is_level_2(chosen, served, refused):
    """Between the main process's check and the worker's start."""
    entry, told = chosen
    (entry / "primary.onnx").write_bytes(b"")

    status = served(told, 2, "tuned")

    assert "primary.onnx cannot be opened" in status["causes"]["level 1"]
    refused(replace(told, strict=True), "level 1 is lost", "primary.onnx cannot be opened")


@pytest.mark.parametrize("part", ["weights", "proof"])
def test_an_entry_that_gives_other_scores_than_proven_is_level_2(chosen, served, refused, part):
    """As with a damaged library: every file may be what it was."""
    entry, told = chosen
    if part == "weights":
        weights = np.fromfile(entry / "primary.onnx.data", np.float32)
        (weights * np.float32(1.05)).tofile(entry / "primary.onnx.data")
    else:
        manifest = json.loads((entry / "manifest.json").read_text())
        manifest["probes"] = np.add(manifest["probes"], [0.001, -0.001]).tolist()
        (entry / "manifest.json").write_text(json.dumps(manifest))

    status = served(told, 2, "tuned")

    assert "does not give the scores that it was proven to give" in status["causes"]["level 1"]
    refused(replace(told, strict=True), "level 1 is lost")


def test_tuned_options_that_change_the_scores_are_level_3(settings, inject, served, refused):
    (settings.model_dir / "golden.jsonl").unlink()
    inject(
        "import trimodal.loading.load as m\nright = m.open_model\n"
        "class Off:\n"
        "    def __init__(self, runner): self.runner = runner\n"
        "    def run(self, features): return self.runner.run(features) + 0.1\n"
        "m.open_model = lambda a, p, t=None: Off(right(a, p, t)) if t is not None else right(a, p)"
    )

    status = served(settings, 3, "baseline")

    assert "tuned options change the scores" in status["causes"]["optimization"]
    refused(replace(settings, strict=True), "tuned options change the scores")


def test_a_tuned_session_that_cannot_be_opened_is_level_3(settings, inject, served, refused):
    inject(NO_TUNED)

    status = served(settings, 3, "baseline")

    assert "cannot be opened with these options" in status["causes"]["optimization"]
    refused(replace(settings, strict=True), "cannot be opened with these options")


def test_a_tuned_session_that_a_worker_cannot_open_is_level_3(settings, inject, served, refused, monkeypatch):
    inject("import trimodal.loading.build as m\nm.rebuild_encoder = m._stock = fail")
    right = loading.open_session

    def open_session(artifacts, options=None):
        if options is not None:
            raise ArtifactError("model.onnx cannot be opened with these options")
        return right(artifacts)

    monkeypatch.setattr(loading, "open_session", open_session)

    status = served(settings, 3, "baseline")

    assert "ZeroDivisionError in build" in status["causes"]["fusion"]
    assert "cannot be opened with these options" in status["causes"]["level 2"]
    refused(replace(settings, strict=True), "fusion: ")


def test_a_torn_graph_is_served_by_pytorch(settings, served, refused):
    graph = settings.model_dir / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:50_000])

    status = served(settings, 4, "pytorch")

    assert status["engine"] == "torch"
    assert "model.onnx cannot be loaded" in status["causes"]["level 3"]
    refused(replace(settings, strict=True), "is lost")


def test_nothing_usable_is_one_clear_message(settings):
    for name in ("model.onnx", "model.pth"):
        (settings.model_dir / name).write_bytes(b"nothing")

    with pytest.raises(ArtifactError, match=r"^model\.onnx cannot be loaded: it is damaged") as caught:
        load_pipeline(settings)

    assert "\n" not in str(caught.value)
    assert str(settings.model_dir) not in str(caught.value)
