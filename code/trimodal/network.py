"""The trimodal network in PyTorch and its export to ONNX; the only module that imports torch and transformers.

::

    primary   ids, mask [B, C, T] ─▶ [B·C, T] ─▶ BERT ─▶ pooler ─▶ mean over C ─▶ Linear ─┐
    secondary ids, mask [B, C, T] ─▶ [B·C, T] ─▶ BERT ─▶ pooler ─▶ mean over C ─▶ Linear ─┼▶ concat ─▶ ReLU ─▶ Linear
    fields    F × [B, 1]          ─▶ LayerNorm ─▶ Linear ─▶ ReLU ─────────────────────────┘   ─▶ ReLU ─▶ Linear ─▶ softmax

The names of the parameters are those of `model.pth`, so that a directory's state dict loads unchanged. The mean over
the chunks has no mask: every record of a batch must have the same number of chunks, else its score depends on the others.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from trimodal.errors import TrimodalError

TEXT_INPUTS = 4
"""Inputs that come before the tabular fields: ids and mask of each text."""

PARITY_TOLERANCE = 1e-5
"""Largest difference of a probability between PyTorch and its export: float32 rounding, and nothing else."""

_NOT_THE_NETWORK = ("loss_op.", "class_weights_tensor")
_POSITION_IDS = ".embeddings.position_ids"

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class NetworkError(TrimodalError):
    """A state dict does not belong to this network, or an export does not reproduce it."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Sizes of the network.

    Attributes:
        primary: configuration of the first text's BERT.
        secondary: configuration of the second text's BERT.
        fields: number of tabular fields, F.
        branch_dim: outputs of each of the three branches, D.
        merge_dim: width of the hidden layer after the concatenation.
        classes: number of classes.
        dropout: dropout of the heads while training.
    """

    primary: BertConfig
    secondary: BertConfig
    fields: int
    branch_dim: int
    merge_dim: int
    classes: int
    dropout: float = 0.1

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], primary: BertConfig, secondary: BertConfig
    ) -> NetworkConfig:
        """Reads the sizes of the heads from the shapes in a state dict.

        Raises:
            NetworkError: the state dict lacks a head of this network.
        """
        try:
            branch_dim, fields = state["tab_subnetwork.embedding_layer.1.weight"].shape
            classes, merge_dim = state["final_merge_network.5.weight"].shape
        except KeyError as err:
            raise NetworkError(f"the state dict has no {err}: another kind of network") from err
        return cls(primary, secondary, fields, branch_dim, merge_dim, classes)


class TextSubnetwork(nn.Module):
    """One text's encoder: the mean of its chunks' pooled outputs, projected to the branch's width."""

    def __init__(self, config: BertConfig, branch_dim: int, dropout: float) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(config.hidden_size, branch_dim)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes int64 `[B, C, T]` ids and mask to float32 `[B, D]`."""
        tokens = input_ids.shape[2]
        hidden = self.bert(
            input_ids=input_ids.reshape(-1, tokens),
            attention_mask=attention_mask.reshape(-1, tokens),
        )
        pooled = hidden.pooler_output.reshape(
            -1, input_ids.shape[1], hidden.pooler_output.shape[-1]
        )
        projected: Tensor = self.head_layer(pooled.mean(dim=1))
        return projected


class TabularSubnetwork(nn.Module):
    """The tabular branch."""

    def __init__(self, fields: int, branch_dim: int) -> None:
        super().__init__()
        self.embedding_layer = nn.Sequential(
            nn.LayerNorm(fields), nn.Linear(fields, branch_dim), nn.ReLU()
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Projects float32 `[B, F]` to `[B, D]`."""
        projected: Tensor = self.embedding_layer(fields)
        return projected


class TrimodalNetwork(nn.Module):
    """The whole network; `forward` takes the inputs in the order of the ONNX file."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        dim, dropout = config.branch_dim, config.dropout
        self.tab_subnetwork = TabularSubnetwork(config.fields, dim)
        self.primary_text_subnetwork = TextSubnetwork(config.primary, dim, dropout)
        self.secondary_text_subnetwork = TextSubnetwork(config.secondary, dim, dropout)
        self.final_merge_network = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(3 * dim, config.merge_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(config.merge_dim, config.classes),
        )

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], primary: BertConfig, secondary: BertConfig
    ) -> TrimodalNetwork:
        """Builds the network that a state dict belongs to, in evaluation mode.

        Raises:
            NetworkError: names or shapes are not those of this network.
        """
        network = cls(NetworkConfig.from_state_dict(state, primary, secondary))
        network.load_weights(state)
        return network.eval()

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Loads a state dict; what belongs to the training's loss is ignored.

        Raises:
            NetworkError: names or shapes are not those of this network.
        """
        own = {k: v for k, v in state.items() if not k.startswith(_NOT_THE_NETWORK)}
        own = {k: v for k, v in own.items() if not k.endswith(_POSITION_IDS)}  # older transformers
        try:
            self.load_state_dict(own)
        except RuntimeError as err:
            raise NetworkError(f"the state dict does not fit the network: {err}") from err

    def logits(self, *inputs: Tensor) -> Tensor:
        """Returns float32 `[B, classes]` before the softmax; inputs as for `forward`."""
        primary_ids, primary_mask, secondary_ids, secondary_mask, *fields = inputs
        branches = (
            self.primary_text_subnetwork(primary_ids, primary_mask),
            self.secondary_text_subnetwork(secondary_ids, secondary_mask),
            self.tab_subnetwork(torch.cat(fields, dim=1)),
        )
        merged: Tensor = self.final_merge_network(torch.cat(branches, dim=1))
        return merged

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scores a batch whose records have the same number of chunks.

        Args:
            inputs: int64 `[B, C, T]` ids and mask of the primary text, the same of the secondary text (with a C
                and a T of its own), then one float32 `[B, 1]` for each tabular field.

        Returns:
            Probabilities, float32 `[B, classes]`.
        """
        return torch.softmax(self.logits(*inputs), dim=-1)

    def predict(self, inputs: Sequence[Array]) -> FloatArray:
        """Scores numpy inputs, shaped as for `forward`; the network should be in evaluation mode."""
        with torch.inference_mode():
            probs: FloatArray = self(*(torch.from_numpy(array) for array in inputs)).numpy()
        return probs


def load_network(
    path: Path, primary: Mapping[str, Any], secondary: Mapping[str, Any]
) -> TrimodalNetwork:
    """Loads `model.pth`, in evaluation mode.

    Args:
        path: the state dict, read with `weights_only=True`.
        primary: the first text's BERT configuration, as in a `config.json` of transformers.
        secondary: the second text's.

    Raises:
        NetworkError: the file is not a state dict of this network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as err:
        raise NetworkError(f"{path.name} is not a state dict") from err
    return TrimodalNetwork.from_state_dict(
        state, BertConfig.from_dict(dict(primary)), BertConfig.from_dict(dict(secondary))
    )


def input_names(texts: tuple[str, str], fields: Sequence[str]) -> list[str]:
    """Names of the ONNX inputs in their order: four of the texts, then the tabular fields."""
    parts = ("input_ids", "attention_mask")
    return [f"{text}_{part}" for text in texts for part in parts] + list(fields)


def export_onnx(
    network: TrimodalNetwork,
    texts: tuple[str, str],
    fields: Sequence[str],
    path: Path,
    *,
    opset: int = 17,
) -> float:
    """Writes the network as one ONNX file (< 2 GB) and proves that it gives the same probabilities.

    Args:
        network: the network to export; it is put into evaluation mode.
        texts: names of the primary and the secondary text field.
        fields: names of the tabular fields, in the order of the network's inputs.
        path: the file to write.
        opset: version of the ONNX operators.

    Returns:
        The largest difference of a probability between PyTorch and ONNX Runtime over several shapes.

    Raises:
        NetworkError: the difference is over `PARITY_TOLERANCE`, or a shape does not run; the file is left for study.
    """
    names = input_names(texts, fields)
    # The shapes of the trace are all different and none is 1: no axis is taken for another or for a constant.
    example = synthetic_inputs(network.config, (2, 3, 7), (2, 4, 9), seed=0)
    with _ready_to_trace(network.eval()):
        torch.onnx.export(
            network,
            tuple(torch.from_numpy(array) for array in example),
            os.fspath(path),
            input_names=names,
            output_names=["probs"],
            dynamic_axes=_dynamic_axes(names),
            opset_version=opset,
            dynamo=False,  # ONNX Runtime's fusion passes know the graphs of the TorchScript exporter
        )
    return check_parity(network, path)


def check_parity(network: TrimodalNetwork, path: Path) -> float:
    """Compares an ONNX file with the network over batch sizes, chunks and lengths, with padding.

    Returns:
        The largest difference of a probability.

    Raises:
        NetworkError: a shape does not run, or the difference is over `PARITY_TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    worst = 0.0
    for batch, first, second in _PARITY_SHAPES:
        inputs = synthetic_inputs(network.config, (batch, *first), (batch, *second), seed=batch)
        try:
            (probs,) = session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as err:  # ONNX Runtime's errors share no public base
            raise NetworkError(
                f"{path.name} does not run with B={batch}, {first}, {second}"
            ) from err
        worst = max(worst, float(np.abs(probs - network.predict(inputs)).max()))
    if not worst <= PARITY_TOLERANCE:  # also when it is not a number
        limit = f"{PARITY_TOLERANCE:.0e}"
        raise NetworkError(f"{path.name} differs from PyTorch by {worst:.2e}, over {limit}")
    return worst


_PARITY_SHAPES = (
    (1, (1, 5), (1, 33)),
    (1, (2, 33), (1, 5)),
    (3, (1, 33), (2, 5)),
    (3, (2, 5), (1, 5)),
)
"""Batch size, then (chunks, tokens) of the primary and of the secondary text."""


def synthetic_inputs(
    config: NetworkConfig,
    primary: tuple[int, int, int],
    secondary: tuple[int, int, int],
    *,
    seed: int,
) -> list[Array]:
    """Random inputs of the given `(B, C, T)` shapes, right-padded to different lengths, in the network's order."""
    rng = np.random.default_rng(seed)
    inputs: list[Array] = []
    for bert, shape in ((config.primary, primary), (config.secondary, secondary)):
        lengths = rng.integers(2, shape[2] + 1, size=shape[:2])
        lengths[0, 0] = shape[2]
        mask = (np.arange(shape[2]) < lengths[..., None]).astype(np.int64)
        inputs += [rng.integers(1, bert.vocab_size, size=shape, dtype=np.int64) * mask, mask]
    values = rng.normal(0, 10, size=(config.fields, primary[0], 1)).astype(np.float32)
    return [*inputs, *values]


def _dynamic_axes(names: Sequence[str]) -> dict[str, dict[int, str]]:
    """Names the batch, chunk and token axes; each text has chunk and token axes of its own."""
    axes = {name: {0: "batch"} for name in [*names, "probs"]}
    for side, inputs in (("primary", names[:2]), ("secondary", names[2:TEXT_INPUTS])):
        for name in inputs:
            axes[name] = {0: "batch", 1: f"{side}_chunks", 2: f"{side}_tokens"}
    return axes


@contextmanager
def _ready_to_trace(network: TrimodalNetwork) -> Iterator[None]:
    """Eager attention, because ONNX Runtime's fusion passes find no attention in an SDPA graph; no warnings.

    The exporter warns of shapes that it may freeze: parity is checked afterwards, at shapes other than the traced ones.
    """
    encoders = (network.primary_text_subnetwork.bert, network.secondary_text_subnetwork.bert)
    before = [encoder.config._attn_implementation for encoder in encoders]
    for encoder in encoders:
        encoder.set_attn_implementation("eager")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for encoder, implementation in zip(encoders, before, strict=True):
            encoder.set_attn_implementation(implementation)
