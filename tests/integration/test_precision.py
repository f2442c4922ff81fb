"""A lossy precision is served where it keeps the scores, and refused, with its figures, where outliers spoil them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from trimodal.loading.artifacts import read_artifacts
from trimodal.network import NetworkConfig, TrimodalNetwork, export_onnx
from trimodal.settings import Settings

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"
INT8 = ("rebuild-int8-static", "rebuild-int8-dynamic", "rebuild-int8-mixed")


def network(outlier):
    """Twelve layers a text, and `outlier` times the scale of a few channels: what trained encoders are like."""
    torch.manual_seed(5)
    encoder = BertConfig(
        vocab_size=1600, hidden_size=48, num_hidden_layers=12, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=128,
    )  # fmt: skip
    made = TrimodalNetwork(NetworkConfig(encoder, encoder, 9, 8, 16, 2)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                parameter.normal_(0, 0.15)
            if name.endswith("LayerNorm.weight"):
                parameter[:3] *= outlier
    return made


@pytest.fixture(params=[1, 20], ids=["no outliers", "outliers"])
def case(request, tmp_path):
    """The settings of a model whose scores bear INT8, and of one whose scores do not."""
    path = tmp_path / "model"
    shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("model.*", "golden.jsonl", "optimized", "config.json"))
    schema = read_artifacts(DEMO).schema
    export_onnx(network(request.param), (schema.primary, schema.secondary), schema.tabular, path / "model.onnx")
    settings = Settings(
        model_dir=path, optimized_dir=tmp_path / "cache", workers=1, intra_op_threads=1, precision="int8"
    )
    return request.param == 1, settings


def test_int8_is_served_or_refused_by_what_it_does_to_the_scores(case, served, refused):
    easy, settings = case

    status = served(settings, 1, INT8[0] if easy else "rebuild-fp32")

    assert status["precision"] == ("int8" if easy else "fp32")
    assert status["causes"].keys() == (set() if easy else {"quantization"})
    if easy:
        return
    for rung in INT8:
        assert f"| {rung} | refused | 24/24 |" in status["report"]
        assert f"{rung}: " in status["causes"]["quantization"]
    assert "of the labels agree, less than 99%" in status["causes"]["quantization"]
    refused(replace(settings, strict=True), "quantization")
