"""Finds BERT encoders in an ONNX graph by their structure, whatever the exporter called things.

The graph is reduced to its *anchors*: products with a weight (`Linear`) and layer normalizations (`Norm`), each with
the anchors that it directly depends on. In a BERT encoder these dependencies have one form only::

    embedding ─▶ norm ─▶ query, key, value ─▶ output ─┬▶ norm ─▶ inner ─▶ outer ─┬▶ norm   (a layer; repeated)
                   └──────────────────────────────────┘    └─────────────────────┘

so eager and SDPA attention, decomposed and whole layer normalizations, and the names and opset do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from trimodal.errors import OptimizationError
from trimodal.loading.passes.anchors import EMBEDDING, Anchors, Linear, Norm, linear_shape, takes_first_token
from trimodal.loading.passes.view import SHAPE_ONLY, GraphView, attribute

_PATH = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity")
"""Operators between the token ids and their look-up."""


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
    anchors = Anchors(view, lookup.output[0])
    norm = anchors.norm({EMBEDDING})
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


def _layer(anchors: Anchors, before: Norm, triple: Sequence[Linear], index: int) -> Layer:
    query, key, value = _roles(anchors, triple, index)
    output = anchors.linear({query.output, key.output, value.output})
    first = None if output is None else anchors.norm({output.output, before.output})
    inner = None if first is None else anchors.linear({first.output})
    outer = None if inner is None else anchors.linear({inner.output})
    last = None if first is None or outer is None else anchors.norm({outer.output, first.output})
    if output is None or first is None or inner is None or outer is None or last is None:
        raise OptimizationError(f"layer {index} is not that of BERT with normalization after each addition")
    return Layer(query, key, value, output, first, inner, outer, last)


def _roles(anchors: Anchors, triple: Sequence[Linear], index: int) -> tuple[Linear, Linear, Linear]:
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


def _pooled(view: GraphView, anchors: Anchors, last: Norm) -> tuple[Linear | None, str, bool]:
    """Finds what is made of the first token: (pooler, tensor, whether other tokens are read too)."""
    readers = [node for node in view.readers(last.output) if node.op_type not in SHAPE_ONLY]
    picks = [node for node in readers if takes_first_token(view, node)]
    if len(picks) != 1:
        raise OptimizationError("the last layer is not read by its first token")
    sequence = len(readers) > 1
    pooler = anchors.linear({last.output})
    if pooler is not None and view.source(pooler.source) == picks[0].output[0]:
        tanh = [node for node in view.readers(pooler.output) if node.op_type == "Tanh"]
        if len(tanh) == 1 == len(list(view.readers(pooler.output))):
            return pooler, tanh[0].output[0], sequence
    return None, picks[0].output[0], sequence
