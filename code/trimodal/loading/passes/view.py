"""A view of an ONNX graph: who makes a tensor, who reads it, what is constant, what depends on which input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]

_TRANSPARENT = ("Identity", "Cast", "Transpose", "Unsqueeze", "Squeeze")
"""Operators through which a weight stays a weight; exporters put them between equal tensors and their readers."""

SHAPE_ONLY = ("Shape", "Size")
"""Operators whose output depends on the shape of a tensor alone."""


class GraphView:
    """A graph with its look-ups."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.initializers: Mapping[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
        # Older exporters name the weights among the inputs, too.
        self.inputs = [value.name for value in model.graph.input if value.name not in self.initializers]
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)

    @cached_property
    def constants(self) -> frozenset[str]:
        """Names of the tensors that no input can change, as far as a weight's way to its reader goes."""
        names = set(self.initializers)
        for node in self.nodes:
            if node.op_type == "Constant" or (node.op_type in _TRANSPARENT and all(n in names for n in node.input)):
                names.update(node.output)
        return frozenset(names)

    def constant(self, name: str) -> Array | None:
        """Returns the value of a constant tensor, or None."""
        if name not in self.constants:
            return None
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producers[name]
        if node.op_type == "Constant":
            return _constant_value(node)
        values = [self.constant(operand) for operand in node.input]
        if any(value is None for value in values):
            return None
        return _apply(node, [value for value in values if value is not None])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a constant tensor without reading it where possible, or None."""
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        value = self.constant(name)
        return None if value is None else value.shape

    def source(self, name: str) -> str:
        """Follows `Identity` back to the tensor that it repeats."""
        while (node := self.producers.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        return name

    def readers(self, name: str) -> Iterator[onnx.NodeProto]:
        """Yields the nodes that read a tensor, also through `Identity`."""
        for node in self.consumers.get(name, []):
            if node.op_type == "Identity":
                yield from self.readers(node.output[0])
            else:
                yield node

    def before(self, targets: Collection[str], stop: Collection[str] = ()) -> tuple[list[onnx.NodeProto], set[str]]:
        """Finds what a set of tensors is computed from.

        Args:
            targets: the tensors.
            stop: tensors that are taken as given.

        Returns:
            The nodes in their order, and the names of graph inputs and of `stop` that they read.
        """
        wanted = set(targets) - set(stop)
        given = set(targets) & set(stop)
        nodes: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if wanted.isdisjoint(node.output):
                continue
            nodes.append(node)
            for name in operands(node):
                (given if name in stop else wanted).add(name)
        return nodes[::-1], given | {name for name in self.inputs if name in wanted}

    def reached_by_value(self, sources: Collection[str]) -> set[str]:
        """Returns the tensors whose values, not only whose shapes, depend on one of `sources`."""
        return self._reached(sources, lambda node: node.op_type in SHAPE_ONLY)

    def reached(self, sources: Collection[str]) -> set[str]:
        """Returns the tensors that depend on one of `sources` by more than the size of the batch, which all share."""
        return self._reached(sources, reads_batch_size)

    def _reached(self, sources: Collection[str], stops: Callable[[onnx.NodeProto], bool]) -> set[str]:
        reached = set(sources)
        for node in self.nodes:
            if not stops(node) and not reached.isdisjoint(operands(node)):
                reached.update(name for name in node.output if name)
        return reached


def reads_batch_size(node: onnx.NodeProto) -> bool:
    """Tells whether a node reads the size of a tensor's first axis alone."""
    return node.op_type == "Shape" and attribute(node, "start", 0) == 0 and attribute(node, "end") == 1


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Returns an attribute's value."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def operands(node: onnx.NodeProto) -> list[str]:
    """Returns the tensors that a node reads, its subgraphs included."""
    names = [name for name in node.input if name]
    for item in node.attribute:
        for graph in (item.g, *item.graphs) if item.type in (item.GRAPH, item.GRAPHS) else ():
            names += [name for inner in graph.node for name in operands(inner)]
            names += [value.name for value in graph.output]
    return names


def _constant_value(node: onnx.NodeProto) -> Array | None:
    (item,) = node.attribute or [onnx.AttributeProto()]
    value = onnx.helper.get_attribute_value(item) if node.attribute else None
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if item.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    return np.asarray(value, np.int64) if item.name in ("value_int", "value_ints") else None


def _apply(node: onnx.NodeProto, values: list[Array]) -> Array | None:
    """Computes one of the `_TRANSPARENT` operators."""
    value = values[0]
    if node.op_type == "Transpose":
        return value.transpose(attribute(node, "perm"))
    if node.op_type == "Cast":
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))
    if node.op_type == "Identity":
        return value
    axes = values[1].tolist() if len(values) > 1 else attribute(node, "axes")
    if node.op_type == "Squeeze":
        return value.squeeze(None if axes is None else tuple(axes))
    return np.expand_dims(value, tuple(axes)) if axes is not None else None
