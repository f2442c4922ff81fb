"""Attention and GELU in the standard's operators alone, for engines that fuse them by themselves."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from trimodal.loading.passes.writer import GraphWriter

HIDDEN = "hidden"
"""What is added to the scores, `[R, 1, 1, T]`: zero for tokens, a large negative number for padding."""

_LOW = -1e9
"""No exponential survives it, and it stays finite in bfloat16."""


def standard_mask(writer: GraphWriter, mask: str) -> None:
    """Writes `HIDDEN` of an attention mask, int64 `[R, T]`."""
    axes = writer.constant(f"{HIDDEN}/axes", np.array([1, 2], np.int64))
    one = writer.constant(f"{HIDDEN}/one", np.array(1, np.float32))
    low = writer.constant(f"{HIDDEN}/low", np.array(_LOW, np.float32))
    spread = writer.node("Unsqueeze", [mask, axes], f"{HIDDEN}/mask")
    real = writer.node("Cast", [spread], f"{HIDDEN}/real", to=TensorProto.FLOAT)
    padding = writer.node("Sub", [one, real], f"{HIDDEN}/padding")
    writer.node("Mul", [padding, low], HIDDEN)


def standard_attention(writer: GraphWriter, triple: tuple[str, str, str], name: str, shape: tuple[int, int]) -> str:
    """Writes attention, softmax(QKᵀ / √d + hidden) V (Vaswani et al., 2017, section 3.2.1).

    Args:
        writer: the graph.
        triple: names of query `[R, Q, H]`, key and value `[R, T, H]`.
        name: of the result, `[R, Q, H]`.
        shape: heads, and H.
    """
    heads, hidden = shape
    split = writer.constant(f"{name}/split", np.array([0, 0, heads, hidden // heads], np.int64))
    join = writer.constant(f"{name}/join", np.array([0, 0, hidden], np.int64))
    scale = writer.constant(f"{name}/scale", np.array((hidden // heads) ** -0.5, np.float32))

    def by_head(part: str, order: list[int]) -> str:
        return writer.node(
            "Transpose", [writer.node("Reshape", [part, split], f"{part}/heads")], f"{part}/moved", perm=order
        )

    query, key, value = (
        by_head(part, order) for part, order in zip(triple, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    raw = writer.node("MatMul", [query, key], f"{name}/raw")
    scores = writer.node("Add", [writer.node("Mul", [raw, scale], f"{name}/scaled"), HIDDEN], f"{name}/scores")
    shares = writer.node("Softmax", [scores], f"{name}/shares", axis=-1)
    mixed = writer.node("MatMul", [shares, value], f"{name}/mixed")
    back = writer.node("Transpose", [mixed], f"{name}/back", perm=[0, 2, 1, 3])
    return writer.node("Reshape", [back, join], name)


def standard_gelu(writer: GraphWriter, source: str, name: str, *, exact: bool) -> str:
    """Writes x Φ(x), or its approximation by tanh (Hendrycks and Gimpel, 2016, section 2)."""

    def times(left: str, factor: float, part: str) -> str:
        number = writer.constant(f"{name}/{part}/factor", np.array(factor, np.float32))
        return writer.node("Mul", [left, number], f"{name}/{part}")

    if exact:
        bent = writer.node("Erf", [times(source, 0.5**0.5, "scaled")], f"{name}/bent")
    else:
        square = writer.node("Mul", [source, source], f"{name}/square")
        cubic = times(writer.node("Mul", [square, source], f"{name}/cube"), 0.044715, "cubic")
        total = writer.node("Add", [source, cubic], f"{name}/total")
        bent = writer.node("Tanh", [times(total, (2 / np.pi) ** 0.5, "scaled")], f"{name}/bent")
    one = writer.constant(f"{name}/one", np.array(1, np.float32))
    raised = writer.node("Add", [bent, one], f"{name}/raised")
    return writer.node("Mul", [times(source, 0.5, "halved"), raised], name)
