from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from hugging_face import KINDS, directory, encoder  # noqa: E402  needs torch
from trimodal.bench.huggingface import (  # noqa: E402
    TextModel,
    check_parity,
    export_text_model,
    load_text_model,
)
from trimodal.errors import ArtifactError, OptimizationError  # noqa: E402
from trimodal.loading.passes.stock import fuse_stock  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_exports_have_dynamic_axes_and_pytorchs_outputs(kind, attention, tmp_path):
    model = TextModel(encoder(kind))
    path = tmp_path / "model.onnx"

    assert export_text_model(model, path, attention=attention) < 1e-5

    session = onnxruntime.InferenceSession(path)
    assert [value.shape for value in session.get_inputs()] == [["batch", "tokens"]] * 2
    pad = model.model.config.pad_token_id or 0
    for batch, tokens in ((1, 1), (1, 30), (4, 9)):
        ids = np.random.default_rng(tokens).integers(pad + 1, 60, (batch, tokens))
        mask = np.ones_like(ids)
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_padding_does_not_change_an_exported_text(kind, tmp_path):
    model = TextModel(encoder(kind))
    export_text_model(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    pad = model.model.config.pad_token_id or 0
    ids = np.array([[5, 9, 11, 7]])
    padded = np.concatenate([ids, np.full((1, 5), pad)], axis=1)

    (alone,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    (within,) = session.run(None, {"input_ids": padded, "attention_mask": (padded != pad).astype(np.int64)})

    np.testing.assert_allclose(alone, within, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
def test_every_attention_layer_of_an_eager_export_is_fused(kind, tmp_path):
    export_text_model(TextModel(encoder(kind)), tmp_path / "model.onnx")

    fusion = fuse_stock(tmp_path / "model.onnx", tmp_path / "fused.onnx", heads=4, hidden=32, layers=2)

    assert fusion.complete


def test_an_export_is_traced_with_the_input_that_is_given(tmp_path):
    ids = torch.randint(2, 60, (3, 11))

    export_text_model(TextModel(encoder("bert")), tmp_path / "model.onnx", dummy_input=(ids, torch.ones_like(ids)))

    assert (tmp_path / "model.onnx").is_file()


def test_the_export_of_another_model_is_told_apart(tmp_path):
    export_text_model(TextModel(encoder("bert")), tmp_path / "model.onnx")

    with pytest.raises(OptimizationError, match="differs from PyTorch"):
        check_parity(TextModel(encoder("bert", initializer_range=0.2)), tmp_path / "model.onnx")


def test_a_classifier_gives_probabilities(tmp_path):
    model = load_text_model(directory("classifier", tmp_path / "model"))

    probabilities = model(torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.long))

    assert model.classifies
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)


def test_what_is_no_encoder_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "never heard of"}', encoding="utf-8")

    with pytest.raises(ArtifactError, match="is not a Hugging Face directory"):
        load_text_model(tmp_path)
