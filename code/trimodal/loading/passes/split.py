"""Cuts the graph in three: one part for each text, and a head that joins them, whatever the head is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from trimodal.errors import OptimizationError
from trimodal.loading.passes.view import SHAPE_ONLY, GraphView, operands, reads_batch_size


@dataclass(frozen=True, slots=True)
class Text:
    """The inputs of one text: ids and mask."""

    ids: str
    mask: str


def find_cuts(view: GraphView, text: Text, others: Sequence[str]) -> list[str]:
    """Finds where tensors stop depending on one text alone.

    Args:
        view: the graph.
        text: the text.
        others: all other inputs.

    Returns:
        The last tensors that depend on this text and on no other input.

    Raises:
        OptimizationError: there are none, or a cut would leave most of the work in the head.
    """
    own = view.reached_by_value({text.ids, text.mask}) - view.reached(others)
    outputs = {value.name for value in view.model.graph.output}
    cuts: list[str] = []
    for node in view.nodes:
        if node.op_type in SHAPE_ONLY or own.issuperset(filter(None, node.output)):
            continue
        cuts += [name for name in dict.fromkeys(operands(node)) if name in own and name not in cuts]
    if not cuts or not set(cuts).isdisjoint({text.ids, text.mask}) or not own.isdisjoint(outputs):
        raise OptimizationError("no tensor depends on one text alone where the texts are joined")
    return cuts


def write_text_part(view: GraphView, text: Text, cuts: Sequence[str], path: Path) -> set[str]:
    """Writes the part of one text: its ids and mask to the cut tensors.

    Returns:
        The inputs that it reads.

    Raises:
        OptimizationError: the part reads other inputs.
    """
    nodes, given = view.before(cuts)
    nodes = [_with_own_batch(node, given, text) for node in nodes]
    given = {name for node in nodes for name in operands(node) if name in view.inputs}
    if not given <= {text.ids, text.mask}:
        raise OptimizationError("a text's part of the graph reads other inputs")
    inputs = [value for value in view.model.graph.input if value.name in given]
    _write(view, nodes, inputs, cuts, path)
    return given


def write_head(
    view: GraphView, cuts: Mapping[str, Sequence[int | str] | None], texts: Sequence[Text], path: Path
) -> list[str]:
    """Writes the head: cut tensors and tabular inputs to the output.

    Args:
        view: the graph.
        cuts: the cut tensors with their shapes, None where it is not known.
        texts: the texts, whose own inputs the head may read for their shapes alone.
        path: the file to write.

    Returns:
        The texts' inputs that the head reads for their shapes.

    Raises:
        OptimizationError: the head needs more of a text than the cut tensors.
    """
    output = view.model.graph.output[0].name if len(view.model.graph.output) == 1 else "probs"
    nodes, given = view.before({output}, stop=set(cuts))
    names = {name for text in texts for name in (text.ids, text.mask)}
    if missing := set(cuts) - given:
        raise OptimizationError(f"the output does not depend on {len(missing)} of the cut tensors")
    shapes = sorted(given & names)
    head = GraphView(_model(view, nodes, [], [output]))
    reached = head.reached_by_value(shapes) - set(shapes)
    if output in reached:
        raise OptimizationError("the head reads a text itself, beside its encoder's output")
    inputs = [_open_axes(value) for value in view.model.graph.input if value.name in given]
    types = _types(view)
    inputs += [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in cuts.items()
    ]
    _write(view, nodes, inputs, [output], path)
    return shapes


def _with_own_batch(node: onnx.NodeProto, inputs: Collection[str], text: Text) -> onnx.NodeProto:
    """Reads the batch's size, which all inputs share, from the text's own ids; exporters may use any input."""
    if not reads_batch_size(node) or node.input[0] not in inputs:
        return node
    own = onnx.NodeProto()
    own.CopyFrom(node)
    own.input[0] = text.ids
    return own


def _types(view: GraphView) -> dict[str, int]:
    """Infers the element types of the graph's tensors, without its weights; not all can be inferred."""
    weights = [helper.make_tensor_value_info(name, t.data_type, t.dims) for name, t in view.initializers.items()]
    inputs = [value for value in view.model.graph.input if value.name not in view.initializers]
    graph = helper.make_graph(view.nodes, "types", [*inputs, *weights], list(view.model.graph.output))
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=view.model.opset_import))
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


def _open_axes(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Returns an input whose axes may have any size."""
    kind = value.type.tensor_type
    return helper.make_tensor_value_info(value.name, kind.elem_type, [None] * len(kind.shape.dim))


def _write(
    view: GraphView, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: Sequence[str], path: Path
) -> None:
    model = _model(view, nodes, inputs, outputs)
    weights = path.name + ".data"
    (path.parent / weights).unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=weights, size_threshold=1024)


def _model(
    view: GraphView, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: Sequence[str]
) -> onnx.ModelProto:
    read = {name for node in nodes for name in operands(node)}
    weights = [tensor for name, tensor in view.initializers.items() if name in read]
    known = {value.name: value for value in view.model.graph.output}
    results = [known.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(nodes, "part", inputs, results, weights)
    return helper.make_model(graph, opset_imports=view.model.opset_import, ir_version=view.model.ir_version)
