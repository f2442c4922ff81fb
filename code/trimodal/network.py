"""The trimodal network and its export to ONNX: the only module that imports torch and transformers.

::

    primary   [B, C, T] ─▶ [B·C, T] ─▶ BERT ─▶ pooler ─▶ mean over C ─▶ Linear ─┐
    secondary [B, C, T] ─▶ [B·C, T] ─▶ BERT ─▶ pooler ─▶ mean over C ─▶ Linear ─┼▶ concat ─▶ merge
    fields    F of [B, 1] ─▶ LayerNorm ─▶ Linear ─▶ ReLU ───────────────────────┘

    merge: ReLU ─▶ Linear ─▶ ReLU ─▶ Linear ─▶ softmax

The parameters have the names of `model.pth`, so that a directory's state dict loads unchanged. The
mean over the chunks has no mask: all records of a batch must have the same number of chunks, else
a score depends on its neighbours.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from trimodal.errors import TrimodalError
from trimodal.loading.weights import bert_arguments, check_tensors

PARITY_TOLERANCE = 1e-5
"""Largest difference of a probability between PyTorch and its export: float32 rounding only."""

_PARITY_SHAPES = tuple(product((1, 3), ((1, 5), (2, 33)), ((1, 33), (2, 5))))
"""Batch size, then (chunks, tokens) of the primary and of the secondary text."""

_LOSS_ENTRIES = ("loss_op.", "class_weights_tensor")

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


class TextSubnetwork(nn.Module):
    """One text's encoder: the mean of its chunks' pooled outputs, projected to D."""

    def __init__(self, config: BertConfig, branch_dim: int, dropout: float) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.head_layer = nn.Sequential(nn.Dropout(dropout), nn.Linear(config.hidden_size, branch_dim))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes int64 `[B, C, T]` ids and mask to float32 `[B, D]`."""
        _, chunks, tokens = input_ids.shape
        rows = input_ids.reshape(-1, tokens), attention_mask.reshape(-1, tokens)
        pooled = self.bert(input_ids=rows[0], attention_mask=rows[1]).pooler_output
        by_record = pooled.reshape(-1, chunks, pooled.shape[-1])
        projected: Tensor = self.head_layer(by_record.mean(dim=1))
        return projected


class TabularSubnetwork(nn.Module):
    """The tabular branch."""

    def __init__(self, fields: int, branch_dim: int) -> None:
        super().__init__()
        self.embedding_layer = nn.Sequential(nn.LayerNorm(fields), nn.Linear(fields, branch_dim), nn.ReLU())

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

        The sizes of the heads come from the shapes; entries of the training's loss are ignored.

        Raises:
            NetworkError: names or shapes are not those of this network.
        """
        own = {name: value for name, value in state.items() if not name.startswith(_LOSS_ENTRIES)}
        try:
            branch_dim, fields = own["tab_subnetwork.embedding_layer.1.weight"].shape
            classes, merge_dim = own["final_merge_network.5.weight"].shape
        except KeyError as err:
            raise NetworkError(f"the state dict has no {err}: another kind of network") from err
        network = cls(NetworkConfig(primary, secondary, fields, branch_dim, merge_dim, classes))
        try:
            network.load_state_dict(own)
        except RuntimeError as err:
            raise NetworkError(f"the state dict does not fit the network: {err}") from err
        return network.eval()

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
            inputs: int64 `[B, C, T]` ids and mask of the primary text, the same of the secondary
                text with a C and T of its own, then float32 `[B, 1]` for each tabular field.

        Returns:
            Probabilities, float32 `[B, classes]`.
        """
        return torch.softmax(self.logits(*inputs), dim=-1)

    def predict(self, inputs: Sequence[Array]) -> npt.NDArray[np.float32]:
        """Scores numpy inputs, shaped as for `forward`, without gradients."""
        with torch.inference_mode():
            probs = self(*(torch.from_numpy(array) for array in inputs))
        scores: npt.NDArray[np.float32] = probs.numpy()
        return scores


class TorchSession:
    """Scores with PyTorch, behind the interface of an `onnxruntime.InferenceSession`."""

    def __init__(self, network: TrimodalNetwork, texts: tuple[str, str], fields: Sequence[str], threads: int) -> None:
        """Prepares a network.

        Args:
            network: the network, in evaluation mode.
            texts: names of the primary and the secondary text field.
            fields: names of the tabular fields, in the order of the network's inputs.
            threads: threads of one operator, for the whole process.
        """
        self._network = network
        self._names = input_names(texts, fields)
        torch.set_num_threads(threads)

    def run(self, _output_names: Sequence[str], input_feed: Mapping[str, npt.NDArray[Any]]) -> list[Array]:
        """Returns the probabilities, float32 `[B, classes]`, of inputs named as in the ONNX file."""
        return [self._network.predict([input_feed[name] for name in self._names])]


def load_network(path: Path, primary: Mapping[str, Any], secondary: Mapping[str, Any]) -> TrimodalNetwork:
    """Loads `model.pth`, in evaluation mode.

    Args:
        path: the state dict; nothing but tensors is read from it.
        primary: the first text's BERT configuration, as in a `config.json` of transformers.
        secondary: the second text's.

    Raises:
        NetworkError: the file is not a state dict of this network.
    """
    try:
        state = check_tensors(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as err:
        raise NetworkError(f"{path.name} is not a state dict") from err
    except ValueError as err:
        raise NetworkError(f"{path.name} cannot be used: {err}") from err
    try:
        first = BertConfig(**bert_arguments(primary, state, "primary_text_subnetwork"))
        second = BertConfig(**bert_arguments(secondary, state, "secondary_text_subnetwork"))
        return TrimodalNetwork.from_state_dict(state, first, second)
    except (ValueError, KeyError, TypeError) as err:  # an activation, say, that transformers does not know
        raise NetworkError(str(err) if isinstance(err, ValueError) else "config.json does not make a BERT") from err


def input_names(texts: tuple[str, str], fields: Sequence[str]) -> list[str]:
    """Names of the ONNX inputs in their order: ids and mask of each text, then the fields."""
    parts = ("input_ids", "attention_mask")
    return [f"{text}_{part}" for text in texts for part in parts] + list(fields)


def export_onnx(  # noqa: PLR0913  each is a fact of its own
    network: TrimodalNetwork,
    texts: tuple[str, str],
    fields: Sequence[str],
    path: Path,
    *,
    opset: int = 17,
    attention: str = "eager",
) -> float:
    """Writes the network as one ONNX file (< 2 GB) that is proven to give the same answers.

    Args:
        network: the network; it is put into evaluation mode, with the attention asked for.
        texts: names of the primary and the secondary text field.
        fields: names of the tabular fields, in the order of the network's inputs.
        path: the file to write.
        opset: version of the ONNX operators.
        attention: `eager`, whose graphs ONNX Runtime's own optimizer can fuse, or `sdpa`, which it cannot.

    Returns:
        The largest difference of a probability from PyTorch, see `check_parity`.

    Raises:
        NetworkError: the file differs or does not run; it is left in place for study.
    """
    names = input_names(texts, fields)
    # No two axes of the example are alike and none is 1: none can pass for another or be frozen.
    example = synthetic_inputs(network.config, (2, 3, 7), (2, 4, 9), seed=0)
    network.eval()
    for text in (network.primary_text_subnetwork, network.secondary_text_subnetwork):
        text.bert.set_attn_implementation(attention)
    with warnings.catch_warnings():  # of shapes that may be frozen: parity is checked at others
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(torch.from_numpy(array) for array in example),
            os.fspath(path),
            input_names=names,
            output_names=["probs"],
            dynamic_axes=_dynamic_axes(names),
            opset_version=opset,
            dynamo=False,  # ONNX Runtime's fusion knows the TorchScript exporter's graphs
        )
    return check_parity(network, path)


def check_parity(network: TrimodalNetwork, path: Path) -> float:
    """Returns the largest difference of a probability between a network and an ONNX file.

    Both score padded random records of several batch sizes, chunks and lengths.

    Raises:
        NetworkError: a shape does not run, or the difference is over `PARITY_TOLERANCE`.
    """
    import onnxruntime  # here, because serving with PyTorch must not need it

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    worst = 0.0
    for batch, first, second in _PARITY_SHAPES:
        inputs = synthetic_inputs(network.config, (batch, *first), (batch, *second), seed=batch)
        try:
            (probs,) = session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as err:  # ONNX Runtime's errors share no public base
            shape = f"batch {batch}, chunks and tokens {first} and {second}"
            raise NetworkError(f"{path.name} does not run with {shape}") from err
        worst = max(worst, float(np.abs(probs - network.predict(inputs)).max()))
        if not worst <= PARITY_TOLERANCE:  # so written that NaN fails too
            raise NetworkError(f"{path.name} differs from PyTorch by {worst:.2e}")
    return worst


def synthetic_inputs(config: NetworkConfig, *shapes: tuple[int, int, int], seed: int) -> list[Array]:
    """Random inputs in the network's order, right-padded, for the two texts' `(B, C, T)`."""
    rng = np.random.default_rng(seed)
    inputs: list[Array] = []
    for bert, shape in zip((config.primary, config.secondary), shapes, strict=True):
        lengths = rng.integers(2, shape[2], size=shape[:2], endpoint=True)
        mask = (np.arange(shape[2]) < lengths[..., None]).astype(np.int64)
        inputs += [rng.integers(1, bert.vocab_size, size=shape) * mask, mask]
    return [*inputs, *rng.normal(0, 10, (config.fields, shapes[0][0], 1)).astype(np.float32)]


def _dynamic_axes(names: Sequence[str]) -> dict[str, dict[int, str]]:
    """Names the batch, chunk and token axes; each text has chunk and token axes of its own."""
    axes = {name: {0: "batch"} for name in [*names, "probs"]}
    for name, side in zip(names, ("primary", "primary", "secondary", "secondary"), strict=False):
        axes[name] |= {1: f"{side}_chunks", 2: f"{side}_tokens"}
    return axes
