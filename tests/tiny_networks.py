"""Real BERT networks, small enough to be exported within a test; imported only where torch is installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from trimodal.loading.passes.encoders import Encoder, find_encoder
from trimodal.loading.passes.view import GraphView
from trimodal.network import NetworkConfig, TrimodalNetwork, input_names, synthetic_inputs

TEXTS, FIELDS = ("chat", "events"), ("amount", "count")
NAMES = input_names(TEXTS, FIELDS)
LAYERS = (2, 3)
HEADS, HIDDEN, INNER, VOCABULARY, TOKENS = 4, 32, 64, 50, 48

Array = np.ndarray[Any, Any]

torch.set_num_threads(1)  # threads that wait for each other would take longer than these tiny products


def bert(layers: int = 1, **changes: Any) -> BertConfig:
    """Returns the configuration of a tiny encoder; large weights, so that anything wrong would show."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": TOKENS,
        "initializer_range": 0.2,
    }
    return BertConfig(**(sizes | changes))


def spread(module: nn.Module) -> nn.Module:
    """Draws biases and the scales of norms, which are zeros and ones at first, so that a lost one would show."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module.eval()


def tiny_network() -> TrimodalNetwork:
    """Returns a network of two layers in one encoder and three in the other."""
    torch.manual_seed(3)
    network = TrimodalNetwork(NetworkConfig(bert(LAYERS[0]), bert(LAYERS[1]), len(FIELDS), 8, 12, 2))
    spread(network)
    return network


@dataclass(frozen=True)
class Export:
    """An exported network."""

    path: Path

    @cached_property
    def view(self) -> GraphView:
        return GraphView(onnx.load(self.path))

    def encoder(self, side: int) -> Encoder:
        return find_encoder(self.view, f"{TEXTS[side]}_input_ids")


def export_network(exporter: str, path: Path) -> Export:
    """Exports the network: `eager-17` and the like by TorchScript with that opset, or `dynamo`."""
    network = tiny_network()
    attention, _, opset = exporter.partition("-")
    for text in (network.primary_text_subnetwork, network.secondary_text_subnetwork):
        text.bert.set_attn_implementation(attention if opset else "sdpa")
    example = synthetic_inputs(network.config, (2, 3, 7), (2, 4, 9), seed=0)
    if opset:
        return trace(network, path, [torch.from_numpy(array) for array in example], NAMES, opset=int(opset))
    auto = torch.export.Dim.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(torch.from_numpy(array) for array in example),
            os.fspath(path),
            input_names=NAMES,
            output_names=["probs"],
            dynamic_shapes=((*[dict.fromkeys(range(3), auto)] * 4, *[{0: auto}] * len(FIELDS)),),
            dynamo=True,
            verbose=False,
        )
    return Export(path)


def trace(module: nn.Module, path: Path, inputs: Sequence[Tensor], names: Sequence[str], *, opset: int = 17) -> Export:
    """Exports any module by TorchScript; every axis but the last of floating point inputs is dynamic."""
    axes = {
        name: {axis: f"{name}_{axis}" for axis in range(value.ndim - value.is_floating_point())}
        for name, value in zip(names, inputs, strict=True)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(inputs), os.fspath(path), input_names=list(names), output_names=["probs"],
            dynamic_axes=axes, opset_version=opset, dynamo=False,
        )  # fmt: skip
    return Export(path)


class OneText(nn.Module):
    """One encoder over `[B, T]`, and a product of what is made of its first token."""

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.bert = BertModel(config, add_pooling_layer=pooler)
        self.pooler = pooler
        self.head = nn.Linear(config.hidden_size, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self.bert(input_ids=ids, attention_mask=mask)
        first = output.pooler_output if self.pooler else output.last_hidden_state[:, 0]
        return torch.softmax(self.head(first), dim=-1)

    def export(self, path: Path) -> Export:
        ids = torch.arange(14).reshape(2, 7)
        return trace(self, path, (ids, torch.ones_like(ids)), NAMES[:2])


def session(model: onnx.ModelProto | Path) -> onnxruntime.InferenceSession:
    """Opens a graph to run on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = os.fspath(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def original(view: GraphView, *outputs: str) -> onnxruntime.InferenceSession:
    """Opens a graph that also gives tensors of its inside."""
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    return session(model)


def text_feed(ids: Array, rank: int = 3) -> dict[str, Array]:
    """Returns inputs of a graph whose both texts are `ids`, unpadded, `[R, T]`, as chunks of one record."""
    ids = ids[None] if rank == 3 else ids
    feed = {name: ids if name.endswith("ids") else np.ones_like(ids) for name in NAMES[:4]}
    return feed | {name: np.zeros((len(ids), 1), np.float32) for name in FIELDS}


def random_ids(seed: int, rows: int, tokens: int) -> Array:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, tokens))
