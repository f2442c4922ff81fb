from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from hugging_face import directory, encoder  # noqa: E402  needs torch
from skewed import fail, open_skewed  # noqa: E402
from trimodal.bench.analysis import Analysis, best  # noqa: E402
from trimodal.bench.asked import Request, read_beside, read_texts  # noqa: E402
from trimodal.bench.candidates import PYTORCH, REFERENCE, Bench, Candidates, graph_files, total_bytes  # noqa: E402
from trimodal.bench.cells import make_plan  # noqa: E402
from trimodal.bench.encoder_model import read_encoder  # noqa: E402
from trimodal.bench.engines import make_fp16, make_int8, make_weights_only  # noqa: E402
from trimodal.bench.findings import Findings  # noqa: E402
from trimodal.bench.huggingface import TextModel, export_text_model  # noqa: E402
from trimodal.bench.looks import STYLES  # noqa: E402
from trimodal.bench.pictures import draw, to_bytes  # noqa: E402
from trimodal.bench.progress import Progress  # noqa: E402
from trimodal.bench.report_html import to_html  # noqa: E402
from trimodal.bench.tables import to_markdown  # noqa: E402
from trimodal.bench.toolkit import TransformerOptimizationToolkit, write_report  # noqa: E402
from trimodal.errors import ArtifactError, SettingsError  # noqa: E402
from trimodal.loading.hardware import detect, no_gpu  # noqa: E402

TESTS = Path(__file__).parents[2]
TEXTS = ["the item was late", "refund it please", "order shipped , order lost", "no !", "thanks we are sorry for that"]
LABELS = [1, 1, 0, 0, 0]
COLUMNS = {
    "variant", "engine", "precision", "traffic", "batch_size", "p50_ms", "p95_ms", "p99_ms", "mean_ms", "std_ms",
    "low_ms", "high_ms", "calls", "throughput", "speedup", "size_mb", "peak_memory_mib", "load_seconds",
    "accuracy_max_diff", "accuracy_agreement", "accuracy_cosine_mean", "accuracy_f1", "scores",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return directory("bert", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    return read_encoder(folder, tmp_path_factory.mktemp("export"), TEXTS)


@pytest.fixture(scope="module")
def toolkit(folder):
    made = TransformerOptimizationToolkit(folder)
    made.frame = made.run_full_analysis(TEXTS, [1, 4], sequence_lengths=[8, 64], labels=LABELS, budget=1000)
    return made


@pytest.fixture(scope="module")
def findings(toolkit) -> Findings:
    return toolkit.findings


def test_the_frame_has_a_row_for_each_variant_traffic_and_batch_size(toolkit):
    frame = toolkit.frame

    assert set(frame.columns) >= COLUMNS
    assert {REFERENCE, PYTORCH, "onnx-fused", "onnx-fp16", "onnx-int8", "onnx-int8-weights", "onnx-int4"} <= set(
        frame["variant"]
    )
    assert not frame.duplicated(["variant", "traffic", "batch_size"]).any()
    whole = frame[frame["variant"] == REFERENCE]
    expected = {(traffic, size) for traffic in ("mix", "S=8", "S=13") for size in (1, 4)}
    assert set(zip(whole["traffic"], whole["batch_size"], strict=True)) == expected


def test_the_frames_numbers_are_consistent(toolkit):
    frame = toolkit.frame

    assert (frame["p50_ms"] <= frame["p95_ms"]).all()
    assert (frame["p95_ms"] <= frame["p99_ms"]).all()
    assert (frame["low_ms"] <= frame["high_ms"]).all()
    np.testing.assert_allclose(frame["throughput"], 1000 * frame["batch_size"] / frame["typical_ms"])
    assert (frame.loc[frame["variant"] == PYTORCH, "speedup"] == 1).all()
    assert (frame["peak_memory_mib"] > 10).all()
    assert (frame["accuracy_records"] == len(TEXTS)).all()


def test_exact_variants_are_right(toolkit):
    exact = toolkit.frame[toolkit.frame["precision"] == "fp32"]

    assert (exact["scores"] == "ok").all()
    assert (exact["accuracy_agreement"] == 1).all()
    assert (exact["accuracy_cosine_min"] > 0.9999).all()


def test_what_is_not_measured_has_a_reason(toolkit):
    skipped = toolkit.frame.attrs["skipped"]

    assert "the output reads every token" in skipped["rebuilt-fp32"]
    assert all(skipped.values())
    assert set(skipped).isdisjoint(toolkit.frame["variant"])
    if detect().gpu is None:
        assert skipped["cuda-fp16"].startswith("not measured: there is no GPU; on a machine with one")
    assert "S=64 is not timed: the model takes 40 tokens" in toolkit.frame.attrs["notes"]


def test_the_report_is_one_file_that_refers_to_nothing_else(findings):
    pictures = {name: to_bytes(figure, "svg") for name, figure in draw(findings).items()}
    report = to_html(findings, pictures)

    assert {"speedup", "throughput", "latency", "memory", "frontier", "waterfall", "roofline"} == pictures.keys()
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+/", report)
    parser = Tags()
    parser.feed(report)
    parser.close()
    assert parser.open == []
    assert len(parser.sources) == len(pictures)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in parser.sources)
    for text in ("What did not help", "Not measured, and why", findings.hardware.processor, "onnxruntime"):
        assert text in report


class Tags(HTMLParser):
    """Checks that every element is closed, and collects images."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_variant_has_a_look_of_its_own(findings):
    names = {one.candidate.name for one in findings.measured} | findings.skipped.keys()

    assert names - {"rebuilt-int8"} <= STYLES.keys()
    assert len(set(STYLES.values())) == len(STYLES)


def test_results_are_written_and_the_log_grows(findings, tmp_path):
    findings.write(tmp_path, {})
    files = write_report(findings, tmp_path)

    assert {path.suffix for path in files} == {".json", ".md", ".html", ".png"}
    plain = json.loads((tmp_path / f"toolkit-tiny-{findings.date}.json").read_text(encoding="utf-8"))
    assert plain["machine"]["cores"] >= 1
    assert plain["versions"]["onnxruntime"]
    assert len(plain["rows"]) == len(findings.rows())
    log = (tmp_path / "toolkit-log.md").read_text(encoding="utf-8")
    assert log.count(f"## {findings.date} tiny") == 2


def test_the_markdown_sets_pytorch_against_onnx_and_others_figures_beside(findings):
    beside = {"source": "an older table", "rows": [{"batch": 1, "pytorch_ms": 10, "onnx_ms": 4}], "note": "On a GPU."}

    text = to_markdown(replace(findings, beside=beside))

    assert "| lengths | batch | pytorch-fp32 ms | onnx-fp32 ms | ratio |" in text
    assert "| batch | an older table | onnx-fp32, S=13 fixed | fastest with right outputs, S=13" in text
    row = re.search(r"\| 1 \| 10\.0 / 4\.0 = 2\.50 × \|(.*)\|", text)[1].split("|")
    ratios = [float(cell.split("=")[1].strip(" ×")) for cell in row]
    assert len(ratios) == 4
    assert ratios[1] >= ratios[0] > 0
    assert "= ratio. On a GPU." in text
    assert "frozen to 13 tokens" in text


KINDS = ("other rows", "slightly", "nan", "short", "batched")
"""Of wrong numbers; see `skewed`."""


def test_variants_that_give_wrong_numbers_or_none_are_caught(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    plain = _plain_candidate(model, tmp_path)
    skewed = [replace(plain, name=kind, open=partial(open_skewed, plain.open, kind)) for kind in KINDS]
    hungry = replace(plain, name="hungry", open=partial(fail, plain.open, ""))
    dying = replace(plain, name="dying", open=partial(open_skewed, plain.open, "dies"))
    skipped = {}

    analysis = Analysis(make_plan(model, [1, 4], [21], quick=True), 1000, Progress(), skipped)
    measured = analysis.run([plain, *skewed, hungry, dying], 8 << 30)

    wrong = {one.candidate.name: one.accuracy.wrong for one in measured}
    assert wrong.keys() == {plain.name, *KINDS}
    assert wrong.pop(plain.name) is None
    assert all(wrong.values()), wrong
    assert best(measured, "mix", 4).candidate.name == plain.name
    assert skipped["hungry"] == "MemoryError: "
    assert skipped["dying"].startswith("failed in S=21, batch 4: its process ended with status -9")


def test_variants_that_do_not_fit_together_are_measured_in_groups(model, tmp_path):
    plain = _plain_candidate(model, tmp_path)
    analysis = Analysis(make_plan(model, [1], [], quick=True), 1000, Progress(), {})

    measured = analysis.run([plain, replace(plain, name="one"), replace(plain, name="other")], memory=1)

    assert [one.candidate.name for one in measured] == [plain.name, "one", "other"]
    assert all(one.times.keys() == {("mix", 1)} and one.peak_mib > 0 for one in measured)
    assert analysis.notes == ["Memory: 2 groups of variants, one after another; times are scaled by onnx-fp32's."]


def test_without_time_the_realistic_mix_is_timed_all_the_same(model, tmp_path):
    analysis = Analysis(make_plan(model, [1, 4], [8], quick=True), 1e-9, Progress(), {})

    (measured,) = analysis.run([_plain_candidate(model, tmp_path)], 8 << 30)

    assert measured.times.keys() == {("mix", 1)}
    assert measured.times["mix", 1].calls >= 4
    assert len(analysis.notes) == 3
    assert all("is not timed: about" in note for note in analysis.notes)


def _plain_candidate(model, folder):
    from trimodal.bench import engines

    into = Candidates()
    engines._add_plain(Bench(model, detect(gpu=no_gpu), 1, folder, "again"), into)
    return into.found[0]


def test_int8_and_fp16_files_are_small(tmp_path):
    model = TextModel(encoder("bert", vocab_size=8000, hidden_size=256, intermediate_size=1024, num_hidden_layers=2))
    source = tmp_path / "model.onnx"
    export_text_model(model, source)
    whole = total_bytes(graph_files(source))

    makes = {
        "int8": (partial(make_int8, reduced=False), 0.27),
        "int8-weights": (partial(make_weights_only, bits=8), 0.27),
        "int4": (partial(make_weights_only, bits=4), 0.22),
        "fp16": (make_fp16, 0.51),
    }
    for name, (make, limit) in makes.items():
        target = tmp_path / name / "model.onnx"
        target.parent.mkdir()
        make(source, target)
        assert total_bytes(graph_files(target)) <= limit * whole


def test_a_model_in_memory_is_exported(tmp_path):
    path = TransformerOptimizationToolkit(encoder("distilbert")).export_onnx(out=tmp_path / "model.onnx")

    assert path.stat().st_size > 1000


def test_a_tokenizers_output_is_traced_with(tmp_path):
    toolkit = TransformerOptimizationToolkit(encoder("bert"))
    ids = torch.randint(5, 60, (1, 13))

    path = toolkit.export_onnx({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tmp_path / "model.onnx")

    shapes = [[axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in onnx.load(path).graph.input]
    assert shapes == [["batch", "tokens"]] * 2
    with pytest.raises(ArtifactError, match="holds input_ids and attention_mask"):
        toolkit.export_onnx({"input_ids": ids}, tmp_path / "other.onnx")


def test_a_single_text_is_taken_with_the_toolkits_own(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("trimodal.bench.toolkit.analyse", lambda request, _: asked.append(request) or 1 / 0)

    with pytest.raises(ZeroDivisionError):
        TransformerOptimizationToolkit(folder).run_full_analysis("the item was late")

    assert asked[0].texts[0] == "the item was late"
    assert len(asked[0].texts) > 30


def test_what_is_no_model_is_refused():
    with pytest.raises(ArtifactError, match="takes a directory or a transformers model"):
        TransformerOptimizationToolkit(42)


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_sizes": [0]}, "--batch-sizes must be at least 1"),
    ({"lengths": [2]}, "--sequence-lengths must be at least 3"),
    ({"texts": ["a", "b"], "labels": [1]}, "one label for each text"),
    ({"texts": ["a"]}, "Two texts at least"),
])  # fmt: skip
def test_bad_requests_are_named(changes, message, folder):
    from trimodal.bench.study import analyse

    with pytest.raises(SettingsError, match=message):
        analyse(Request(folder, **changes), Progress())


def test_texts_are_read_with_and_without_labels(tmp_path):
    plain, labelled, odd = (tmp_path / name for name in ("a.txt", "b.jsonl", "c.jsonl"))
    plain.write_text("one\n\ntwo\n", encoding="utf-8")
    labelled.write_text('{"text": "one", "label": 1}\n{"text": "two", "label": 0}\n', encoding="utf-8")
    odd.write_text('{"words": "one"}\n', encoding="utf-8")

    assert read_texts(plain) == (["one", "two"], None)
    assert read_texts(labelled) == (["one", "two"], [1, 0])
    with pytest.raises(ArtifactError, match=r"c\.jsonl holds neither"):
        read_texts(odd)


def test_figures_that_are_none_are_refused(tmp_path):
    (tmp_path / "beside.json").write_text('{"rows": []}', encoding="utf-8")

    with pytest.raises(ArtifactError, match="holds no rows"):
        read_beside(tmp_path / "beside.json")


INTERRUPTED = """
import os, signal, sys, time
from trimodal.bench.progress import Cancelled, ended_by_signals
try:
    with ended_by_signals():
        exec("os.kill(os.getpid(), signal.SIGINT)\\ntime.sleep(9)")
except Cancelled:
    sys.exit(130)
"""


def test_ctrl_c_in_code_that_is_run_from_a_text_is_not_remembered(tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED, encoding="utf-8")
    command = [sys.executable, "-m", "interrupted"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    done = subprocess.run(
        command, check=False, env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip

    assert done.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_leaves_nothing_behind(number, folder, tmp_path):
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "trimodal.cli", "optimize", str(folder), "--out", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
        process_group=0,
        # ignored where the tests run in the background of a script
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    assert "reading the model" in process.stderr.readline()
    assert "making" in process.stderr.readline()
    time.sleep(0.3)

    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    assert errors.endswith("cancelled; nothing is left behind\n")
    assert not out.exists()
    assert not list(temporary.glob("trimodal*/**/*"))
