"""Writes a graph's products with weights in 4 bits; ONNX Runtime's own tool needs packages that are not here."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from trimodal.loading.passes.quantize import INT4_BLOCK, pack_int4
from trimodal.loading.passes.writer import MICROSOFT

_SMALLEST = 32
"""Rows of a weight from which 4 bits save memory."""


def quantize_products(model: onnx.ModelProto) -> int:
    """Replaces the weights of `MatMul` nodes in place; returns how many.

    A weight that other nodes read, too, stays for them.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    replaced: dict[str, list[str]] = {}
    for node in graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] < _SMALLEST:
            continue
        if tensor.name not in replaced:
            packed, scale = pack_int4(numpy_helper.to_array(tensor))
            parts = {f"{tensor.name}/int4": packed, f"{tensor.name}/scale": scale}
            graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in parts.items())
            replaced[tensor.name] = list(parts)
        attributes = {"K": tensor.dims[0], "N": tensor.dims[1], "bits": 4, "block_size": INT4_BLOCK}
        node.op_type, node.domain = "MatMulNBits", MICROSOFT
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        node.input[1:] = replaced[tensor.name]
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return len(replaced)
