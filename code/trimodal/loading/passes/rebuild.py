"""Writes a BERT encoder anew from its weights, in the form that runs fastest, row by row without a mask.

Rows of one run have exactly equal lengths, so nothing is padded and nothing masked; the last layer is computed for
the first token only, because nothing reads the others. Both save work that no general optimizer may leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from trimodal.errors import OptimizationError
from trimodal.loading.passes.anchors import Linear, Norm, bias, weight
from trimodal.loading.passes.encoders import Encoder, Layer
from trimodal.loading.passes.standard import standard_attention, standard_gelu, standard_mask
from trimodal.loading.passes.view import Array, GraphView, operands
from trimodal.loading.passes.writer import MICROSOFT, GraphWriter

IDS, MASK = "input_ids", "attention_mask"
"""Inputs of a rebuilt encoder, int64 `[R, T]`, the mask where it takes one; its output has its name of the graph."""

Product = Callable[[GraphWriter, str, str, Array, Array], str]
"""Writes a product with a weight: (writer, input, name, weight `[in, out]`, bias `[out]`) → name of the result."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was written, read back from the file.

    Attributes:
        layers: layers of the encoder.
        attention: fused attention operators among the nodes.
    """

    layers: int
    attention: int


def float_product(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
    """Writes a product in fp32."""
    product = writer.node("MatMul", [source, writer.constant(f"{name}/weight", matrix)], f"{name}/product")
    return writer.node("Add", [product, writer.constant(f"{name}/bias", shift)], f"{name}/sum")


def rebuild_encoder(  # noqa: PLR0913  each is a fact of its own
    view: GraphView, encoder: Encoder, positions: Array, path: Path, product: Product, *, standard: bool = False
) -> Rebuilt:
    """Writes one encoder: `input_ids`, int64 `[R, T]`, to the pooled first token, float32 `[R, H]`.

    Args:
        view: the graph that holds the encoder.
        encoder: where it is.
        positions: what is added to the word embeddings, float32 `[P, H]`, from `position_table`.
        path: the file to write.
        product: how to write the products with weights.
        standard: use the standard's operators alone, for engines that fuse by themselves, and take a mask, because
            they prepare themselves for every length that they see and so want lengths rounded up.

    Raises:
        OptimizationError: the encoder's other tokens are read too.
    """
    if encoder.sequence:
        raise OptimizationError("the head reads the whole sequence of an encoder, not its first token alone")
    with GraphWriter(path) as writer:
        rebuilder = _Rebuilder(view, encoder, writer, product, standard=standard)
        state = rebuilder.embed(positions)
        for index, layer in enumerate(encoder.layers):
            state = rebuilder.layer(layer, f"layer{index}", state, first_only=index == len(encoder.layers) - 1)
        rebuilder.pool(state)
        writer.save(
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"])
                for name in ((IDS, MASK) if standard else (IDS,))
            ],
            [helper.make_tensor_value_info(encoder.pooled, TensorProto.FLOAT, ["rows", encoder.hidden])],
        )
    written = onnx.load(path, load_external_data=False)
    attention = sum(node.op_type in ("MultiHeadAttention", "Softmax") for node in written.graph.node)
    return Rebuilt(len(encoder.layers), attention)


_FIRST = (("start", 0), ("end", 1), ("axis", 1))
"""Bounds of the first token on the token axis."""


@dataclass(frozen=True, slots=True)
class _Rebuilder:
    """Writes the parts of one encoder; each method returns the name of its result."""

    view: GraphView
    encoder: Encoder
    writer: GraphWriter
    product: Product
    standard: bool

    def embed(self, positions: Array) -> str:
        writer = self.writer
        if self.standard:
            standard_mask(writer, MASK)
        looked_up = writer.node("Gather", [writer.constant("words", self.value(self.encoder.words)), IDS], "words/rows")
        shape = writer.node("Shape", [IDS], "positions/end", start=1)
        start, axis = (writer.constant(f"positions/{name}", np.array([0], np.int64)) for name in ("start", "axis"))
        placed = writer.node("Slice", [writer.constant("positions", positions), start, shape, axis], "positions/rows")
        return self.norm(self.encoder.embedding_norm, writer.node("Add", [looked_up, placed], "embedding"), "norm")

    def layer(self, layer: Layer, name: str, state: str, *, first_only: bool) -> str:
        """Writes one layer, `[R, T, H]` to the same; with `first_only` to `[R, 1, H]`."""
        writer, hidden = self.writer, self.encoder.hidden
        triple = [f"{name}/{part}" for part in ("query", "key", "value")]
        if first_only:
            merged = self.linear(state, f"{name}/key_value", layer.key, layer.value)
            key, value = writer.split(merged, triple[1:], [hidden] * 2)
            bounds = [writer.constant(f"{name}/{part}", np.array([place], np.int64)) for part, place in _FIRST]
            state = writer.node("Slice", [state, *bounds], f"{name}/first")
            query = self.linear(state, f"{name}/first_query", layer.query)
        else:
            merged = self.linear(state, f"{name}/query_key_value", layer.query, layer.key, layer.value)
            query, key, value = writer.split(merged, triple, [hidden] * 3)
        context = self.attend((query, key, value), f"{name}/context")
        output = self.linear(context, f"{name}/output", layer.output)
        state = self.norm(layer.attention_norm, writer.node("Add", [output, state], f"{name}/attended"), f"{name}/norm")
        active = self.activate(self.linear(state, f"{name}/inner", layer.inner), f"{name}/active")
        fed = writer.node("Add", [self.linear(active, f"{name}/outer", layer.outer), state], f"{name}/fed")
        return self.norm(layer.output_norm, fed, f"{name}/output_norm")

    def attend(self, triple: tuple[str, str, str], name: str) -> str:
        if self.standard:
            return standard_attention(self.writer, triple, name, (self.encoder.heads, self.encoder.hidden))
        heads = self.encoder.heads
        return self.writer.node("MultiHeadAttention", triple, name, domain=MICROSOFT, num_heads=heads)

    def pool(self, state: str) -> str:
        """Writes the pooler, where there is one: `[R, 1, H]` to the encoder's output `[R, H]`."""
        writer, encoder = self.writer, self.encoder
        axis = writer.constant("token_axis", np.array([1], np.int64))
        first = writer.node("Squeeze", [state, axis], "first_token" if encoder.pooler else encoder.pooled)
        if encoder.pooler is None:
            return first
        matrix, shift = weight(self.view, encoder.pooler), bias(self.view, encoder.pooler)
        return writer.node("Tanh", [float_product(writer, first, "pooler", matrix, shift)], encoder.pooled)

    def linear(self, source: str, name: str, *linears: Linear) -> str:
        """Writes products of one input as one."""
        matrix = np.concatenate([weight(self.view, linear) for linear in linears], axis=1)
        shift = np.concatenate([bias(self.view, linear) for linear in linears])
        return self.product(self.writer, source, name, matrix, shift)

    def norm(self, norm: Norm, source: str, name: str) -> str:
        scale, shift = (
            self.writer.constant(f"{name}/{part}", self.value(constant))
            for part, constant in (("scale", norm.scale), ("bias", norm.bias))
        )
        return self.writer.node("LayerNormalization", [source, scale, shift], name, axis=-1, epsilon=norm.epsilon)

    def activate(self, source: str, name: str) -> str:
        if self.encoder.activation == "relu":
            return self.writer.node("Relu", [source], name)
        kind = "Gelu" if self.encoder.activation == "gelu" else "FastGelu"
        if self.standard:
            return standard_gelu(self.writer, source, name, exact=self.encoder.activation == "gelu")
        return self.writer.node(kind, [source], name, domain=MICROSOFT)

    def value(self, name: str) -> Array:
        return np.asarray(self.view.constant(name), np.float32)


def position_table(view: GraphView, encoder: Encoder, tokens: int) -> Array:
    """Computes what the graph adds to the word embeddings of a text: positions and token types.

    It runs the graph's own nodes on two texts of `tokens` tokens, so no exporter's way of writing them matters.

    Returns:
        float32 `[tokens, H]`.

    Raises:
        OptimizationError: it cannot be computed, or depends on the token ids.
    """
    target = encoder.embedding_norm.source
    nodes, given = view.before({target})
    words = view.constant(encoder.words)
    if words is None or target in view.reached_by_value(given - {encoder.ids}):  # others may give the batch's size
        raise OptimizationError("the embeddings depend on more than the token ids")
    (source,) = [value for value in view.model.graph.input if value.name == encoder.ids]
    others = [value for value in view.model.graph.input if value.name in given and value.name != encoder.ids]
    read = {name for node in nodes for name in operands(node)}
    graph = helper.make_graph(
        nodes,
        "embeddings",
        [source, *others],
        [helper.make_tensor_value_info(target, TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(words[:2].copy(), name)
            if name == encoder.words
            else tensor  # two words are asked for
            for name, tensor in view.initializers.items()
            if name in read
        ],
    )
    model = helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=min(view.model.ir_version, 10))
    feed = {value.name: _zeros(value) for value in others}
    like = _zeros(source)
    tables = []
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for token in (0, 1):
            ids = np.full((*like.shape[:-1], tokens), token, like.dtype)
            (total,) = session.run(None, feed | {encoder.ids: ids})
            tables.append(total.reshape(-1, tokens, encoder.hidden)[0] - np.asarray(words[token], np.float32))
    except Exception as err:  # ONNX Runtime's errors share no base
        raise OptimizationError(f"the embeddings of {tokens} tokens cannot be computed") from err
    if np.abs(tables[0] - tables[1]).max() > 1e-5 * max(1.0, float(np.abs(tables[0]).max())):
        raise OptimizationError("what is added to the word embeddings depends on the words")
    table: Array = tables[0]
    return table


def _zeros(value: onnx.ValueInfoProto) -> Array:
    """Returns zeros for an input, one along each axis that is not fixed."""
    kind = value.type.tensor_type
    return np.zeros([dim.dim_value or 1 for dim in kind.shape.dim], helper.tensor_dtype_to_np_dtype(kind.elem_type))
