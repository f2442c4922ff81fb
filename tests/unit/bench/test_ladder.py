from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_directories import write_model_directory as write
from trimodal.bench import ladder, variants
from trimodal.bench.ladder import measure, run_ladder
from trimodal.bench.timing import Bench, group_size, summarize
from trimodal.bench.traffic import MIX, realistic
from trimodal.bench.usual import make_usual
from trimodal.bench.variants import NAIVE, PLAIN, Variant, pytorch_variant
from trimodal.errors import ArtifactError, OptimizationError, SettingsError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.facts import ModelFacts, open_view
from trimodal.loading.load import open_model
from trimodal.loading.optimize import read_subject
from trimodal.loading.samples import Samples
from trimodal.settings import Settings

DEMO = Path(__file__).parents[3] / "scripts" / "models" / "demo"
FILES = ("config.json", "feature_columns.txt", "golden.jsonl", "hyperparameters.json", "impute_dict.json",
         "model.onnx", "tokenizer.json")  # fmt: skip
RUNGS = ("rebuild-fp32", "rebuild-int8-static", "rebuild-int8-dynamic", "rebuild-int8-mixed", "stock-fp32")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The shipped model without its PyTorch weights and without what was prepared for it."""
    path = tmp_path_factory.mktemp("models") / "demo"
    path.mkdir()
    for name in FILES:
        shutil.copy(DEMO / name, path / name)
    return path


@pytest.fixture(scope="module")
def result(demo, tmp_path_factory):
    settings = Settings(model_dir=demo, intra_op_threads=2)
    return measure(settings, tmp_path_factory.mktemp("bench"), rounds=1, lengths=[32, 512], quick=True)


@pytest.fixture(scope="module")
def subject(demo):
    artifacts = read_artifacts(demo)
    return read_subject(artifacts, open_view(artifacts.graph))


@pytest.fixture
def opener(subject):
    """Opens the graph as it is."""
    return partial(open_model, subject.artifacts, subject.pad_id)


@pytest.fixture
def bench(subject):
    few = slice(0, 4)
    samples = Samples(subject.samples.features[few])
    traffic = realistic(subject.samples.features, 3, subject.artifacts.config.max_tokens)
    return Bench(samples, [traffic], 1, {})


@dataclass
class Skewed:
    """Gives other scores than the runner that it wraps."""

    runner: Any
    skew: Any

    def run(self, features):
        return self.skew(self.runner.run(features), features)


def by_name(measured):
    return {one.variant.name: one for one in measured}


def test_every_variant_is_timed_or_has_a_reason(result):
    timed = by_name(result.measured)

    assert {NAIVE, PLAIN, "tuned", *RUNGS} <= {*timed, *result.skipped}
    assert {NAIVE, PLAIN, "tuned", "rebuild-fp32"} <= timed.keys()
    assert timed.keys().isdisjoint(result.skipped)
    assert all(result.skipped.values())
    assert result.skipped["pytorch"] == "model.pth is missing from the model directory"
    assert all(one.times.keys() == {MIX, "S=32"} for one in result.measured)
    assert all(0 < t.low <= t.high for one in result.measured for t in one.times.values())


def test_exact_variants_have_the_scores_of_the_plain_session(result):
    timed = by_name(result.measured)

    for name in (NAIVE, "tuned", "rebuild-fp32"):
        assert timed[name].wrong is None
        assert timed[name].comparison.largest < 1e-4
        assert timed[name].timed_largest < 1e-4


def test_the_usual_route_that_fails_is_told_without_a_path(subject, tmp_path):
    facts = ModelFacts()
    broken = replace(subject.artifacts, model_dir=tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": 64}', encoding="utf-8")

    with pytest.raises(OptimizationError, match=r"ONNX Runtime's tools failed \(status 1, ") as caught:
        make_usual(replace(subject, artifacts=broken), facts, tmp_path / "out.onnx")

    assert str(tmp_path) not in str(caught.value)


def test_a_quick_run_says_that_it_is_one(result):
    assert "--quick: few requests and records; a look, not a result." in result.notes


def test_a_length_beyond_the_models_is_left_out_and_that_is_said(result):
    assert "not timed: S=512: the model takes at most 128 tokens" in result.notes


def test_the_json_is_complete_and_plain(result):
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))

    assert plain["model"] == "demo"
    assert plain["machine"]["cores"] >= 1
    assert plain["versions"]["onnxruntime"]
    assert plain["auto"]["variant"] in {one["name"] for one in plain["variants"]}
    assert plain["traffics"][0]["primary"]["max"] == 128
    assert plain["cache"]["on"]["milliseconds"] > 0
    for one in plain["variants"]:
        assert one["times"][MIX]["per_second"] == pytest.approx(1000 / one["times"][MIX]["milliseconds"], rel=1e-2)


def test_every_target_is_met_or_not_or_says_why_it_is_unknown(result):
    targets = {target.name: target for target in result.targets}

    assert len(targets) == len(result.targets) >= 10
    assert all(target.note for target in result.targets)
    assert {target.state for target in result.targets} <= {"met", "not met", "not measurable here"}
    exact = targets["exact: requests/s on the mix over the naive service"]
    assert exact.value is not None
    assert "the target is set for padding to 512 tokens, this model takes 128" in exact.note
    assert targets["INT8 to OpenVINO's INT8: time, S=32"].state == "not measurable here"


def test_the_markdown_has_a_row_for_each_variant_and_target(result):
    lines = result.to_markdown().splitlines()

    for one in result.measured:
        assert sum(line.startswith(f"| {one.variant.name} ") for line in lines) == 2
    for target in result.targets:
        assert sum(line.startswith(f"| {target.name} | ") and f"| {target.state} |" in line for line in lines) == 1
    for name in result.skipped:
        assert any(line.startswith(f"- not timed: {name}: ") for line in lines)


def test_results_are_printed_and_written_where_asked(result, demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "measure", lambda *_arguments, **_options: result)
    out = tmp_path / "new" / "results"

    status = run_ladder(Settings(model_dir=demo), rounds=1, out=out, lengths=[32], quick=True)

    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == [f"ladder-demo-{result.date}.{end}" for end in ("json", "md")]
    assert capsys.readouterr().out == (out / f"ladder-demo-{result.date}.md").read_text(encoding="utf-8")
    written = json.loads((out / f"ladder-demo-{result.date}.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result.to_json()))


def test_wrong_scores_are_marked_and_meet_no_target(opener, bench, result):
    candidates = [
        Variant(PLAIN, "peer", "fp32", opener),
        Variant("rebuild-fp32", "ours", "fp32", lambda: Skewed(opener(), lambda scores, _: scores[:, ::-1])),
    ]

    measured = bench.run(candidates, 2)

    wrong = by_name(measured)["rebuild-fp32"]
    assert wrong.wrong is not None
    assert wrong.wrong.startswith("a probability differs by ")
    text = replace(result, measured=measured, traffics=bench.traffics).to_markdown()
    assert "| rebuild-fp32 | ours | fp32 | WRONG |" in text
    assert f"- WRONG: rebuild-fp32: {wrong.wrong}" in text
    targets = ladder.Judge(measured, {}, "rebuild-fp32", [MIX], 512).targets(None, "none")
    (auto,) = [one for one in targets if one.name == "auto to the fastest verified: time, mix"]
    assert auto.state == "not met"
    assert auto.value is not None
    assert auto.note == "rebuild-fp32 (its scores are WRONG: by time alone) to plain"


def test_scores_that_are_wrong_on_the_timed_requests_alone_are_found(opener, bench):
    timed = {id(item) for item in bench.traffics[0].requests}

    def skew(scores, features):
        return scores + 0.01 * (id(features[0]) in timed)

    candidates = [
        Variant(PLAIN, "peer", "fp32", opener),
        Variant("late", "ours", "fp32", lambda: Skewed(opener(), skew)),
        Variant("late-int8", "ours", "int8", lambda: Skewed(opener(), skew)),
        Variant("nan", "peer", "fp32", lambda: Skewed(opener(), lambda scores, _: scores * np.nan)),
    ]

    found = by_name(bench.run(candidates, 3))

    assert found["late"].wrong == "on the timed requests a probability differs by 0.01, more than 0.0001"
    assert found["late"].comparison.refusal is None
    assert found["late-int8"].wrong is None
    assert found["nan"].wrong == "scores are missing or not finite"


def test_a_variant_that_cannot_be_opened_or_run_is_skipped_with_its_cause(opener, bench):
    def refuse():
        raise OptimizationError("not on this host")

    def fail(_scores, _features):
        raise MemoryError

    candidates = [
        Variant(PLAIN, "peer", "fp32", opener),
        Variant("refused", "ours", "fp32", refuse),
        Variant("failed", "peer", "fp32", lambda: Skewed(opener(), fail)),
        Variant("tuned", "ours", "fp32", opener),
    ]

    measured = bench.run(candidates, 3)

    assert [one.variant.name for one in measured] == [PLAIN, "tuned"]
    assert bench.skipped == {"refused": "not on this host", "failed": "MemoryError while it was opened or run"}


def test_groups_share_the_plain_session_as_a_yardstick(opener, bench):
    candidates = [Variant(name, "ours", "fp32", opener) for name in ("a", PLAIN, "b", "c")]

    measured = bench.run(candidates, 2)

    assert [one.variant.name for one in measured] == [PLAIN, "a", "b", "c"]
    assert all(one.times[MIX].milliseconds > 0 for one in measured)


def test_without_the_plain_session_nothing_can_be_compared(opener, bench):
    with pytest.raises(OptimizationError, match="the plain session is not among the variants"):
        bench.run([Variant("tuned", "ours", "fp32", opener)], 3)


def test_the_naive_service_pads_and_the_plain_one_does_not(subject):
    naive, plain = variants._open_naive(subject).layout, variants._open_plain(subject).layout

    assert [layout.primary.tokens for layout in (naive, plain)] == [128, None]
    assert [layout.secondary.tokens for layout in (naive, plain)] == [128, None]


@pytest.mark.parametrize(("bf16", "largest"), [(False, 1e-4), (True, 3e-2)])
def test_pytorch_gives_the_same_scores(bf16, largest):
    pytest.importorskip("torch")
    artifacts = read_artifacts(DEMO)
    subject = read_subject(artifacts, open_view(artifacts.graph))
    features = subject.samples.features[:4]

    scores = pytorch_variant(subject, 1, bf16=bf16).open().run(features)

    expected = open_model(artifacts, subject.pad_id).run(features)
    assert np.abs(scores - expected).max() < largest
    assert bf16 == bool(np.abs(scores - expected).max() > 1e-6)


def test_a_model_that_no_rung_knows_is_measured_without_them(tmp_path):
    settings = Settings(model_dir=write(tmp_path / "bag"), intra_op_threads=1)
    (tmp_path / "work").mkdir()

    result = measure(settings, tmp_path / "work", rounds=1, lengths=[8], quick=True)

    assert {NAIVE, PLAIN, "tuned"} <= by_name(result.measured).keys()
    assert "the encoder of chat is not known" in result.skipped["rebuild-fp32"]
    assert result.auto[0] == "tuned"
    assert (result.cache is None) == ("openvino-fp32" in result.skipped)  # no other rung splits an unknown model


def test_a_time_is_the_mean_over_requests_of_medians_over_rounds():
    timing = summarize(np.array([[0.001, 0.002], [0.003, 0.002], [0.001, 0.005]]))

    assert timing.milliseconds == pytest.approx(1.5)
    assert (timing.low, timing.high) == (pytest.approx(1.5), pytest.approx(3.0))
    assert timing.per_second == pytest.approx(1000 / 1.5)


def test_large_models_are_opened_in_small_groups():
    gib = 1 << 30

    assert group_size(gib // 5, 13, 24 * gib) == 13
    assert group_size(gib, 13, 24 * gib) == 3
    assert group_size(gib // 5, 13, 4 * gib) == 3


@pytest.mark.parametrize(
    ("options", "words"), [({"rounds": 0}, "--rounds 0"), ({"lengths": [32, 2]}, "--lengths must be at least 3")]
)
def test_wrong_options(demo, options, words):
    arguments = {"rounds": 1, "out": None, "lengths": [32], "quick": True} | options

    with pytest.raises(SettingsError, match=words):
        run_ladder(Settings(model_dir=demo), **arguments)


def test_results_that_cannot_be_written_are_told_before_anything_is_measured(demo, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ArtifactError, match="choose another --out"):
        run_ladder(Settings(model_dir=demo), rounds=1, out=tmp_path / "file" / "x", lengths=[32], quick=True)


def test_a_directory_without_a_graph_cannot_be_measured(tmp_path):
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        run_ladder(Settings(model_dir=tmp_path), rounds=1, out=None, lengths=[32], quick=True)


def test_pytorch_runs_equal_records_together():
    """As a peer would: the container's own level runs each alone, which made a batch 50 times as slow as ONNX."""
    pytest.importorskip("torch")
    artifacts = read_artifacts(DEMO)
    subject = read_subject(artifacts, open_view(artifacts.graph))
    runner = pytorch_variant(subject, 1, bf16=False).open()
    calls = []
    session = runner.session
    counted = SimpleNamespace(run=lambda *asked: calls.append(asked) or session.run(*asked))

    scores = replace(runner, session=counted).run([subject.samples.features[0]] * 5)

    assert len(calls) == 1
    assert scores == pytest.approx(np.repeat(runner.run(subject.samples.features[:1]), 5, axis=0), abs=1e-5)
