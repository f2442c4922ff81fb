"""One text encoder in the form of Hugging Face: read from a local directory, run, exported to ONNX.

Beside `trimodal.network` the only module that imports torch and transformers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from trimodal.errors import ArtifactError, OptimizationError

IDS, MASK, OUTPUT = "input_ids", "attention_mask", "output"
"""Names of the exported graph's inputs, int64 `[B, T]`, and its output, float32 `[B, K]`."""

PARITY_TOLERANCE = 1e-4
"""Largest difference of an output from PyTorch, relative to the outputs' largest magnitude: rounding only."""

_PARITY_SHAPES = ((1, 3), (2, 17), (5, 8))
"""Batch size and tokens; none is the example's."""


class TextModel(nn.Module):
    """An encoder with one output a text: the mean of its tokens' vectors, or a classifier's probabilities."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.train(mode=False)

    @property
    def classifies(self) -> bool:
        """Whether the output is probabilities of classes."""
        return type(self.model).__name__.endswith("ForSequenceClassification")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns float32 `[B, K]` for int64 `[B, T]` ids and mask."""
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        if self.classifies:
            return torch.softmax(found.logits.float(), dim=-1)
        hidden = found.last_hidden_state.float()
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean: Tensor = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return mean


class TorchSession:
    """Runs a text model behind the interface of an ONNX Runtime session."""

    def __init__(self, model: TextModel, threads: int, *, bf16: bool) -> None:
        torch.set_num_threads(threads)
        self._model = model.bfloat16() if bf16 else model

    def run(self, _output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Returns the output of ids and mask."""
        with torch.inference_mode():
            return [self._model(*(torch.from_numpy(input_feed[name]) for name in (IDS, MASK))).numpy()]


def load_text_model(folder: Path) -> TextModel:
    """Loads an encoder; nothing is fetched, and no code of the directory is run.

    Raises:
        ArtifactError: the directory holds none.
    """
    offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **offline)
        kinds = getattr(config, "architectures", None) or []
        kind = AutoModelForSequenceClassification if any("SequenceClass" in k for k in kinds) else AutoModel
        return TextModel(kind.from_pretrained(folder, config=config, dtype=torch.float32, **offline))
    except (OSError, ValueError, RuntimeError) as err:
        reason = str(err).strip().partition("\n")[0][:200]
        raise ArtifactError(f"{folder.name} is not a Hugging Face directory of an encoder: {reason}") from err


def open_torch(folder: Path, threads: int, *, bf16: bool = False) -> TorchSession:
    """Opens a directory's encoder in PyTorch, in eager mode."""
    return TorchSession(load_text_model(folder), threads, bf16=bf16)


def export_directory(folder: Path, target: Path, *, attention: str = "eager") -> tuple[float, bool]:
    """Exports a directory's encoder; returns the largest difference, and whether it classifies."""
    model = load_text_model(folder)
    return export_text_model(model, target, attention=attention), model.classifies


def export_text_model(
    model: TextModel, target: Path, *, attention: str = "eager", dummy_input: Sequence[Tensor] | None = None
) -> float:
    """Writes an ONNX graph whose every axis is dynamic, proven to give the same outputs.

    PyTorch's scaled dot product attention is exported as it is (`sdpa`, through its mathematical form) or, as ONNX
    Runtime's fusion wants it, written out (`eager`).

    Args:
        model: the encoder.
        target: the file to write.
        attention: `eager` or `sdpa`.
        dummy_input: ids and mask to trace with, int64 `[B, T]`, or None for made-up ones.

    Returns:
        The largest difference from PyTorch, relative to the outputs' largest magnitude.

    Raises:
        OptimizationError: the graph does not run at other shapes, or differs.
    """
    model.eval()
    model.model.set_attn_implementation(attention)
    example = tuple(dummy_input) if dummy_input is not None else _inputs(model, 2, 7)
    axes = {name: {0: "batch", 1: "tokens"} for name in (IDS, MASK)} | {OUTPUT: {0: "batch"}}
    with warnings.catch_warnings():  # of shapes that may be frozen: parity is checked at others
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, example, os.fspath(target), input_names=[IDS, MASK], output_names=[OUTPUT], dynamic_axes=axes,
            opset_version=17, dynamo=False,  # ONNX Runtime's fusion knows the TorchScript exporter's graphs
        )  # fmt: skip
    return check_parity(model, target)


def check_parity(model: TextModel, path: Path) -> float:
    """Returns the largest difference between an encoder and an ONNX file, at several batch sizes and lengths.

    Raises:
        OptimizationError: a shape does not run, or the difference is over `PARITY_TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, tokens in _PARITY_SHAPES:
        ids, mask = _inputs(model, batch, tokens)
        with torch.inference_mode():
            expected = model(ids, mask).numpy()
        try:
            (found,) = session.run(None, {IDS: ids.numpy(), MASK: mask.numpy()})
        except Exception as err:  # ONNX Runtime's errors share no public base
            raise OptimizationError(f"the export does not run with batch {batch} and {tokens} tokens") from err
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
        if not worst <= PARITY_TOLERANCE:  # so written that NaN fails too
            raise OptimizationError(f"the export differs from PyTorch by {worst:.2e}")
    return worst


def _inputs(model: TextModel, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Makes up ids and mask: the first text is as long as the tensor, the others are padded."""
    config = model.model.config
    generator = torch.Generator().manual_seed(batch)
    pad = getattr(config, "pad_token_id", None) or 0
    ids = torch.randint(pad + 1, config.vocab_size, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, 1 + (row * 3) % tokens :] = 0
    return torch.where(mask.bool(), ids, torch.full_like(ids, pad)), mask
