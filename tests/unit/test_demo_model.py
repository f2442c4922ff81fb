from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.tokenizer import load_tokenizer
from trimodal.records import Record
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.tabular import TabularEncoder
from trimodal.serving.text import TextEncoder

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"
LARGEST = 6_000_000
"""Bytes of the directory: it lives in the repository and travels in every test."""


@pytest.fixture(scope="module")
def golden():
    lines = (DEMO / "golden.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@pytest.fixture(scope="module")
def artifacts():
    return read_artifacts(DEMO)


@pytest.fixture(scope="module")
def features(artifacts, golden):
    config, tokenizer = artifacts.config, load_tokenizer(DEMO, artifacts.config.tokenizer)
    limits = config.max_tokens, config.max_chunks
    encoder = FeatureEncoder(
        artifacts.schema,
        TextEncoder(tokenizer, config.primary_steps, *limits),
        TextEncoder(tokenizer, config.secondary_steps, *limits),
        TabularEncoder(config.tabular, artifacts.imputation, artifacts.risk_tables),
    )
    return [encoder.encode(Record(i, line["record"])) for i, line in enumerate(golden)]


def alone(text):
    """Ids and mask of one text, each chunk padded to the longest of them."""
    longest = max(len(chunk) for chunk in text.chunks)
    ids = np.array([[chunk + [0] * (longest - len(chunk)) for chunk in text.chunks]], np.int64)
    mask = np.array([[[1] * len(c) + [0] * (longest - len(c)) for c in text.chunks]], np.int64)
    return [ids, mask]


def test_directory_is_small_and_complete():
    names = {file.relative_to(DEMO).as_posix() for file in DEMO.rglob("*") if file.is_file()}
    names = {name for name in names if not name.startswith("optimized/")}  # what starts here have left
    assert sum((DEMO / name).stat().st_size for name in names) <= LARGEST
    assert names == {
        "README.md",
        "calibration/percentile_score.json",
        "config.json",
        "feature_columns.txt",
        "golden.jsonl",
        "hyperparameters.json",
        "impute_dict.json",
        "model.onnx",
        "model.pth",
        "model_artifacts.pth",
        "tokenizer.json",
    }


def test_golden_records_are_whole_and_varied(golden, features, artifacts):
    assert len(golden) == 64
    fields = {*artifacts.schema.fields, artifacts.schema.id_name} - {None}
    for line in golden:
        assert set(line) == {"record", "probs", "label"}
        assert fields == set(line["record"])
        assert line["label"] in {0, 1}
        assert sum(line["probs"]) == pytest.approx(1, abs=1e-6)
    assert 16 <= sum(line["label"] for line in golden) <= 48
    assert sum(None in line["record"].values() for line in golden) >= 8
    assert sum(len(f.primary.chunks) > 1 for f in features) >= 8
    assert {len(f.primary.chunks) for f in features} >= {1, 2}


def test_golden_probabilities_are_what_the_graph_gives_each_record_alone(golden, features):
    session = onnxruntime.InferenceSession(DEMO / "model.onnx", providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    for line, case in zip(golden, features, strict=True):
        inputs = [*alone(case.primary), *alone(case.secondary), *case.tabular.reshape(-1, 1, 1)]
        (probs,) = session.run(None, dict(zip(names, inputs, strict=True)))
        np.testing.assert_allclose(probs[0], line["probs"], atol=1e-5, rtol=0)


def test_golden_labels_agree_with_the_scores(golden):
    right = sum((line["probs"][1] > 0.5) == bool(line["label"]) for line in golden)
    assert right >= 0.75 * len(golden)


def test_percentiles_rise(artifacts):
    table = artifacts.calibrator.binary
    assert table is not None
    raw, percentile = np.array(table).T
    assert (np.diff(raw) > 0).all()
    assert (np.diff(percentile) > 0).all()
    assert (percentile[0], percentile[-1]) == (0, 1)


def test_weights_give_the_graphs_answers():
    pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from trimodal.network import PARITY_TOLERANCE, check_parity, load_network

    bert = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    network = load_network(DEMO / "model.pth", bert, bert)
    assert check_parity(network, DEMO / "model.onnx") <= PARITY_TOLERANCE
