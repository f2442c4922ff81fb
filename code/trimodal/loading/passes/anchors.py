"""The anchors of a graph: products with a weight and layer normalizations, and which depends directly on which."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx

from trimodal.errors import OptimizationError
from trimodal.loading.passes.view import SHAPE_ONLY, Array, GraphView, attribute


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with a weight, and its bias.

    Attributes:
        source: the tensor that is multiplied.
        output: the result, bias included.
        weight: name of the constant.
        transposed: the constant is `[out, in]` instead of `[in, out]`.
        bias: name of the constant `[out]`, or None.
    """

    source: str
    output: str
    weight: str
    transposed: bool
    bias: str | None


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer normalization.

    Attributes:
        source: the tensor that is normalized.
        output: the result.
        scale: name of the constant `[H]`.
        bias: name of the constant `[H]`.
        epsilon: what is added to the variance.
    """

    source: str
    output: str
    scale: str
    bias: str
    epsilon: float


def linear_shape(view: GraphView, linear: Linear) -> tuple[int, int]:
    """Returns (inputs, outputs) of a product."""
    rows, columns = view.shape(linear.weight) or (0, 0)
    return (columns, rows) if linear.transposed else (rows, columns)


def weight(view: GraphView, linear: Linear) -> Array:
    """Returns a product's weight, float32 `[in, out]`."""
    value = view.constant(linear.weight)
    if value is None:
        raise OptimizationError("a weight is not constant")
    return np.asarray(value.T if linear.transposed else value, np.float32)


def bias(view: GraphView, linear: Linear) -> Array:
    """Returns a product's bias, float32 `[out]`; zeros where it has none."""
    value = None if linear.bias is None else view.constant(linear.bias)
    size = linear_shape(view, linear)[1]
    return np.zeros(size, np.float32) if value is None else np.asarray(value, np.float32).reshape(size)


EMBEDDING = "<embedding>"
"""Stands for the looked-up word embeddings among the anchors."""


@dataclass(slots=True)
class Anchors:
    """The anchors after the embeddings, found by the anchors that they depend on.

    Attributes:
        view: the graph.
        start: the looked-up word embeddings.
        origin: tensor to the outputs of the anchors that it directly depends on.
        by_linear: anchors to the products that depend directly on them.
        by_norm: anchors to the normalizations that do.
    """

    view: GraphView
    start: str
    origin: dict[str, frozenset[str]] = field(default_factory=dict)
    by_linear: dict[frozenset[str], list[Linear]] = field(default_factory=dict)
    by_norm: dict[frozenset[str], list[Norm]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origin[self.start] = frozenset({EMBEDDING})
        inside: dict[str, str] = {}  # the product before its bias is the linear itself
        for node in self.view.nodes:
            if node.op_type in SHAPE_ONLY or self.start in node.output:
                continue
            before = frozenset().union(*(self.origin.get(name, frozenset()) for name in node.input))
            if not before:
                continue
            anchor = _linear(self.view, node) or _norm(self.view, node)
            if anchor is not None and node.output[0] not in inside:
                source = self.origin.get(anchor.source, frozenset())
                if isinstance(anchor, Linear):
                    self.by_linear.setdefault(source, []).append(anchor)
                    inside[anchor.output] = anchor.output
                else:
                    self.by_norm.setdefault(source, []).append(anchor)
                before = frozenset({anchor.output})
            for name in node.output:
                self.origin[name] = before

    def linears(self, before: Collection[str]) -> list[Linear]:
        """Returns the products that depend directly on these anchors."""
        return self.by_linear.get(frozenset(before), [])

    def linear(self, before: Collection[str]) -> Linear | None:
        """Returns the one product that depends directly on these anchors, or None."""
        found = self.linears(before)
        return found[0] if len(found) == 1 else None

    def of_every_token(self, norm: Norm) -> list[Linear]:
        """Returns the linears that read all tokens, so not a pooler among what a head reads of the last layer."""
        producers = [
            (linear, self.view.producers.get(self.view.source(linear.source))) for linear in self.linears({norm.output})
        ]
        return [linear for linear, node in producers if node is None or not takes_first_token(self.view, node)]

    def norm(self, before: Collection[str]) -> Norm | None:
        """Returns the one normalization that depends directly on these anchors, or None."""
        found = self.by_norm.get(frozenset(before), [])
        return found[0] if len(found) == 1 else None


def _linear(view: GraphView, node: onnx.NodeProto) -> Linear | None:
    """Reads a product with a constant matrix, with the bias that is added next."""
    if node.op_type not in ("MatMul", "Gemm") or len(view.shape(node.input[1]) or ()) != 2:
        return None
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0):
            return None
        added = node.input[2] if len(node.input) > 2 else None
        return Linear(node.input[0], node.output[0], node.input[1], bool(attribute(node, "transB", 0)), added)
    readers = view.consumers.get(node.output[0], [])
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = [name for name in readers[0].input if name != node.output[0]] or [""]
        if len(view.shape(other) or ()) == 1:
            return Linear(node.input[0], readers[0].output[0], node.input[1], transposed=False, bias=other)
    return Linear(node.input[0], node.output[0], node.input[1], transposed=False, bias=None)


def _norm(view: GraphView, node: onnx.NodeProto) -> Norm | None:
    """Reads a layer normalization over the last axis: the operator, or the last `Add` of its decomposition."""
    if node.op_type == "LayerNormalization" and len(node.input) == 3 and attribute(node, "axis", -1) in (-1, 2):
        source, scale, shift = node.input
        return Norm(source, node.output[0], scale, shift, attribute(node, "epsilon", 1e-5))
    if node.op_type != "Add":
        return None
    product, shift = _operands(view, node)
    multiply = view.producers.get(product or "")
    if shift is None or multiply is None or multiply.op_type != "Mul":
        return None
    quotient, scale = _operands(view, multiply)
    divide = view.producers.get(quotient or "")
    if scale is None or divide is None or divide.op_type != "Div":
        return None
    centred, root = (view.producers.get(name) for name in divide.input)
    if centred is None or root is None or centred.op_type != "Sub" or root.op_type != "Sqrt":
        return None
    variance = view.producers.get(root.input[0])
    value = None if variance is None else next((v for n in variance.input if (v := view.constant(n)) is not None), None)
    return None if value is None else Norm(centred.input[0], node.output[0], scale, shift, float(value))


def _operands(view: GraphView, node: onnx.NodeProto) -> tuple[str | None, str | None]:
    """Returns (variable, constant vector) of a node of two operands, in either order."""
    constants = [name for name in node.input if len(view.shape(name) or ()) == 1]
    variables = [name for name in node.input if name not in view.constants]
    return (variables[0], constants[0]) if len(constants) == len(variables) == 1 else (None, None)


def takes_first_token(view: GraphView, node: onnx.NodeProto) -> bool:
    """Tells whether a node picks the first token of every row."""
    index = view.constant(node.input[1]) if node.op_type == "Gather" else None
    return index is not None and index.shape == () and int(index) == 0 and attribute(node, "axis", 0) == 1
