"""Finds BERT encoders in an ONNX graph by their structure, whatever the exporter called things.

The graph is reduced to its *anchors*: products with a weight (`Linear`) and layer normalizations (`Norm`), each with
the anchors that it directly depends on. In a BERT encoder these dependencies have one form only::

    embedding ─▶ norm ─▶ query, key, value ─▶ output ─┬▶ norm ─▶ inner ─▶ outer ─┬▶ norm   (a layer; repeated)
                   └──────────────────────────────────┘    └─────────────────────┘

so eager and SDPA attention, decomposed and whole layer normalizations, and the names and opset do not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from trimodal.errors import OptimizationError
from trimodal.loading.passes.view import SHAPE_ONLY, Array, GraphView, attribute

_PATH = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
"""Operators between the token ids and their look-up."""


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


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    attention_norm: Norm
    inner: Linear
    outer: Linear
    output_norm: Norm


@dataclass(frozen=True, slots=True)
class Encoder:
    """A BERT encoder, found in a graph.

    Attributes:
        ids: the graph's input of token ids.
        words: name of the word embeddings, `[V, H]`.
        lookup: the tensor of looked-up word embeddings.
        embedding_norm: the first normalization; its source is the sum of all embeddings.
        layers: the layers, first to last.
        pooler: the product on the first token, or None.
        pooled: the tensor `[rows, H]` made of the first token: after the pooler's tanh where there is one.
        activation: `gelu`, `gelu_tanh` or `relu`.
        heads: attention heads.
        hidden: width H.
        inner: width of the feed-forward layer.
        vocabulary: rows V of the word embeddings.
        sequence: the graph reads other tokens of the last layer than the first, too.
    """

    ids: str
    words: str
    lookup: str
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    pooler: Linear | None
    pooled: str
    activation: str
    heads: int
    hidden: int
    inner: int
    vocabulary: int
    sequence: bool


def find_encoder(view: GraphView, ids: str) -> Encoder:
    """Finds the encoder that reads the input `ids`.

    Raises:
        OptimizationError: there is no encoder of the form above; the text says what is missing.
    """
    lookup = _lookup(view, ids)
    anchors = _Anchors(view, lookup.output[0])
    norm = anchors.norm({_EMBEDDING})
    if norm is None:
        raise OptimizationError("no layer normalization follows the word embeddings")
    layers: list[Layer] = []
    heads: set[int] = set()
    activations: set[str] = set()
    current = norm
    while len(triple := anchors.of_every_token(current)) == 3:
        layer = _layer(anchors, current, triple, len(layers))
        heads.add(_heads(view, layer.query))
        activations.add(_activation(view, layer))
        layers.append(layer)
        current = layer.output_norm
    if not layers:
        raise OptimizationError("no attention layer follows the embeddings")
    if len(heads) > 1 or len(activations) > 1:
        raise OptimizationError("the layers have different numbers of heads or activations")
    vocabulary, hidden = view.shape(lookup.input[0]) or (0, 0)
    pooler, pooled, sequence = _pooled(view, anchors, current)
    return Encoder(
        ids=ids,
        words=lookup.input[0],
        lookup=lookup.output[0],
        embedding_norm=norm,
        layers=tuple(layers),
        pooler=pooler,
        pooled=pooled,
        activation=activations.pop(),
        heads=heads.pop(),
        hidden=hidden,
        inner=linear_shape(view, layers[0].inner)[1],
        vocabulary=vocabulary,
        sequence=sequence,
    )


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


_EMBEDDING = "<embedding>"
"""Stands for the looked-up word embeddings among the anchors."""


@dataclass(slots=True)
class _Anchors:
    """The anchors after the embeddings, found by the anchors that they depend on.

    Attributes:
        view: the graph.
        start: the looked-up word embeddings.
        origin: tensor to the outputs of the anchors that it directly depends on.
        by_origin: the same, turned around, for linears and norms.
    """

    view: GraphView
    start: str
    origin: dict[str, frozenset[str]] = field(default_factory=dict)
    by_linear: dict[frozenset[str], list[Linear]] = field(default_factory=dict)
    by_norm: dict[frozenset[str], list[Norm]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origin[self.start] = frozenset({_EMBEDDING})
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
        return self.by_linear.get(frozenset(before), [])

    def linear(self, before: Collection[str]) -> Linear | None:
        found = self.linears(before)
        return found[0] if len(found) == 1 else None

    def of_every_token(self, norm: Norm) -> list[Linear]:
        """Returns the linears that read all tokens, so not a pooler among what a head reads of the last layer."""
        producers = [
            (linear, self.view.producers.get(self.view.source(linear.source))) for linear in self.linears({norm.output})
        ]
        return [linear for linear, node in producers if node is None or not _takes_first_token(self.view, node)]

    def norm(self, before: Collection[str]) -> Norm | None:
        found = self.by_norm.get(frozenset(before), [])
        return found[0] if len(found) == 1 else None


def _lookup(view: GraphView, ids: str) -> onnx.NodeProto:
    """Finds the look-up of the word embeddings."""
    waiting = [ids]
    while waiting:
        name = waiting.pop()
        for node in view.consumers.get(name, []):
            if node.op_type == "Gather" and node.input[1] == name and len(view.shape(node.input[0]) or ()) == 2:
                return node
            if node.op_type in _PATH and node.input[0] == name:
                waiting.append(node.output[0])
    raise OptimizationError("the token ids are not looked up in a table of embeddings")


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


def _layer(anchors: _Anchors, before: Norm, triple: Sequence[Linear], index: int) -> Layer:
    query, key, value = _roles(anchors, triple, index)
    output = anchors.linear({query.output, key.output, value.output})
    first = None if output is None else anchors.norm({output.output, before.output})
    inner = None if first is None else anchors.linear({first.output})
    outer = None if inner is None else anchors.linear({inner.output})
    last = None if first is None or outer is None else anchors.norm({outer.output, first.output})
    if output is None or first is None or inner is None or outer is None or last is None:
        raise OptimizationError(f"layer {index} is not that of BERT with normalization after each addition")
    return Layer(query, key, value, output, first, inner, outer, last)


def _roles(anchors: _Anchors, triple: Sequence[Linear], index: int) -> tuple[Linear, Linear, Linear]:
    """Tells query, key and value apart: query × key are the scores, and what multiplies them is the value."""
    by_output = {linear.output: linear for linear in triple}
    every = frozenset(by_output)
    for node in anchors.view.nodes:
        if node.op_type != "MatMul":
            continue
        left, right = (anchors.origin.get(name, frozenset()) for name in node.input)
        if len(left) == len(right) == 1 and left != right and left | right < every:
            ((value,), (query,), (key,)) = every - left - right, left, right
            return by_output[query], by_output[key], by_output[value]
    raise OptimizationError(f"layer {index} has no product of queries and keys")


def _heads(view: GraphView, query: Linear) -> int:
    """Reads the number of heads from how the queries are reshaped: `[…, heads, width of a head]`.

    A `Gemm` is followed by another reshape, back to `[…, H]`, so the narrowest of several in a row counts.
    """
    hidden = linear_shape(view, query)[1]
    widths: list[int] = []
    waiting = list(view.readers(query.output))
    while waiting:
        node = waiting.pop()
        if node.op_type == "Reshape":
            waiting += view.readers(node.output[0])
            width = _last_dimension(view, node.input[1])
            widths += [width] if width and hidden % width == 0 else []
    if not widths:
        raise OptimizationError("the width of an attention head cannot be read from the graph")
    return hidden // min(widths)


def _last_dimension(view: GraphView, name: str) -> int | None:
    value = view.constant(name)
    node = view.producers.get(view.source(name))
    if value is None and node is not None and node.op_type == "Concat":
        value = view.constant(node.input[-1])
    return int(value.reshape(-1)[-1]) if value is not None and value.size and value.reshape(-1)[-1] > 0 else None


def _activation(view: GraphView, layer: Layer) -> str:
    nodes, _ = view.before({layer.outer.source}, {layer.inner.output})
    operators = {node.op_type for node in nodes}
    if "Gelu" in operators:
        kinds = {attribute(node, "approximate", b"none") for node in nodes if node.op_type == "Gelu"}
        return "gelu_tanh" if b"tanh" in kinds else "gelu"
    for formula, name in (({"Erf", "Mul"}, "gelu"), ({"Tanh", "Mul", "Add"}, "gelu_tanh"), ({"Relu"}, "relu")):
        if formula <= operators:
            return name
    raise OptimizationError("the activation of the feed-forward layers is none of gelu and relu")


def _pooled(view: GraphView, anchors: _Anchors, last: Norm) -> tuple[Linear | None, str, bool]:
    """Finds what is made of the first token: (pooler, tensor, whether other tokens are read too)."""
    readers = [node for node in view.readers(last.output) if node.op_type not in SHAPE_ONLY]
    picks = [node for node in readers if _takes_first_token(view, node)]
    if len(picks) != 1:
        raise OptimizationError("the last layer is not read by its first token")
    sequence = len(readers) > 1
    pooler = anchors.linear({last.output})
    if pooler is not None and view.source(pooler.source) == picks[0].output[0]:
        tanh = [node for node in view.readers(pooler.output) if node.op_type == "Tanh"]
        if len(tanh) == 1 == len(list(view.readers(pooler.output))):
            return pooler, tanh[0].output[0], sequence
    return None, picks[0].output[0], sequence


def _takes_first_token(view: GraphView, node: onnx.NodeProto) -> bool:
    index = view.constant(node.input[1]) if node.op_type == "Gather" else None
    return index is not None and index.shape == () and int(index) == 0 and attribute(node, "axis", 0) == 1
