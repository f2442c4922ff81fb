"""Writes a graph's weights in 8 or 4 bits and leaves its activations in float32: small, and a record stays by itself.

ONNX Runtime's own tool for it needs packages that are not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trimodal.loading.passes.quantize import INT4_BLOCK, pack_int4
from trimodal.loading.passes.writer import MICROSOFT

_SMALLEST = 32
"""Rows of a weight from which it is worth it."""

_INT8_BLOCK = 128
"""Inputs that share one scale in 8 bits: three percent of the size, and a fifth of the error of one scale a column."""


@dataclass(slots=True)
class _Rewriter:
    """Rewrites one graph in place.

    Attributes:
        graph: the graph.
        bits: of a weight, 8 or 4.
        made: weight to the tensors that stand for it.
    """

    graph: onnx.GraphProto
    bits: int
    made: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, parts: dict[str, NDArray[Any]]) -> list[str]:
        if name not in self.made:
            tensors = [numpy_helper.from_array(value, f"{name}/{part}") for part, value in parts.items()]
            self.graph.initializer.extend(tensors)
            self.made[name] = [tensor.name for tensor in tensors]
        return self.made[name]

    def product(self, node: onnx.NodeProto, tensor: onnx.TensorProto) -> None:
        """Makes a `MatMulNBits` of a `MatMul` with a weight `[in, out]`."""
        inputs, outputs = tensor.dims
        block = INT4_BLOCK if self.bits == 4 else min(_INT8_BLOCK, 1 << (int(inputs).bit_length() - 1))
        if tensor.name not in self.made:
            matrix = numpy_helper.to_array(tensor)
            packed, scale = pack_int4(matrix) if self.bits == 4 else pack_int8(matrix, block)
            self.add(tensor.name, {"packed": packed, "scale": scale})
        names = self.made[tensor.name]
        node.op_type, node.domain = "MatMulNBits", MICROSOFT
        attributes = {"K": inputs, "N": outputs, "bits": self.bits, "block_size": block}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        node.input[1:] = names

    def lookup(self, node: onnx.NodeProto, tensor: onnx.TensorProto) -> list[onnx.NodeProto]:
        """Returns what looks rows of a table up in int8 and scales them, in the place of a `Gather`."""
        table = numpy_helper.to_array(tensor)
        largest = np.abs(table).max(axis=1, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
        names = self.add(tensor.name, {"rows": np.rint(table / scale).astype(np.int8), "row_scale": scale})
        output, place = node.output[0], node.input[1]
        return [
            helper.make_node("Gather", [names[0], place], [f"{output}/int8"]),
            helper.make_node("Cast", [f"{output}/int8"], [f"{output}/float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [names[1], place], [f"{output}/scale"]),
            helper.make_node("Mul", [f"{output}/float", f"{output}/scale"], [output]),
        ]


def pack_int8(matrix: NDArray[np.float32], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Packs a weight `[in, out]` as `MatMulNBits` reads 8 bits: uint8 `[out, blocks, block]` around 128, and scales."""
    inputs, outputs = matrix.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = matrix.T
    by_block = padded.reshape(outputs, blocks, block)
    largest = np.abs(by_block).max(axis=2)
    scale = np.where(largest > 0, largest / 127, 1.0).astype(np.float32)
    return (np.rint(by_block / scale[:, :, None]) + 128).astype(np.uint8), scale.reshape(-1)


def quantize_weights(model: onnx.ModelProto, bits: int) -> int:
    """Writes products' weights in so many bits and tables of embeddings in 8, in place; returns how many.

    A weight that other nodes read, too, stays for them.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    rewriter = _Rewriter(graph, bits)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        tensor = None if place is None else weights.get(node.input[place])
        if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] < _SMALLEST:
            nodes.append(node)
        elif node.op_type == "Gather":
            nodes += rewriter.lookup(node, tensor)
        else:
            rewriter.product(node, tensor)
            nodes.append(node)
    kept_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept_nodes)
    _drop_unread(graph)
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return len(rewriter.made)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
