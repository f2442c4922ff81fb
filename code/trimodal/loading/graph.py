"""Opens the ONNX graph and finds out what it takes: inputs, types, axes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike

from trimodal.errors import ArtifactError
from trimodal.loading.artifacts import Artifacts
from trimodal.records import Schema
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput

_TYPES: dict[str, DTypeLike] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}


_MOST_TOKENS = 1_000_000


class Interface(Protocol):
    """What tells a graph's inputs and outputs, as an `onnxruntime.InferenceSession` does."""

    def get_inputs(self) -> Sequence[Any]:
        """Returns the inputs, each with `name`, `type` and `shape`."""

    def get_outputs(self) -> Sequence[Any]:
        """Returns the outputs."""


def open_session(
    artifacts: Artifacts, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Opens `model.onnx` on the CPU.

    Args:
        artifacts: the model directory.
        options: how to run it; the default session where they are None.

    Raises:
        ArtifactError: the file cannot be opened as an ONNX model.
    """
    onnxruntime.disable_telemetry_events()
    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = _open(artifacts, options)
    if _texts_share_an_axis(session, artifacts.schema):
        options.enable_mem_reuse = False  # it takes axes of one name for equally long, and the texts are not
        session = _open(artifacts, options)
    return session


def _texts_share_an_axis(session: onnxruntime.InferenceSession, schema: Schema) -> bool:
    """Tells whether the chunk or token axes of the two texts bear one name, as some exporters give them."""
    shapes = {node.name: node.shape for node in session.get_inputs()}

    def axes(field: str) -> set[str]:
        inputs = (f"{field}_input_ids", f"{field}_attention_mask")
        return {axis for name in inputs for axis in shapes.get(name, [])[1:] if isinstance(axis, str)}

    return bool(axes(schema.primary) & axes(schema.secondary))


def _open(artifacts: Artifacts, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(artifacts.graph), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # the library's exceptions share no base
        first = str(err).partition("\n")[0].replace(f"{artifacts.graph.parent}{os.sep}", "")  # no path leaves the host
        reason = first[:300] or type(err).__name__
        if "xternal data path" in reason:
            raise ArtifactError(
                "model.onnx names weights that are not in the model directory; put them beside it, and export it again "
                "where it names them by an absolute path."
            ) from err
        raise ArtifactError(
            f"model.onnx cannot be loaded: it is damaged, incomplete or not an ONNX model; export it again. ({reason})"
        ) from err


def find_layout(session: Interface, schema: Schema) -> GraphLayout:
    """Matches the graph's inputs with the model's fields.

    Raises:
        ArtifactError: an input is missing, unknown, or of a shape or type that cannot be fed.
    """
    inputs = {node.name: node for node in session.get_inputs()}
    primary, primary_batch = _text_input(inputs, schema.primary)
    secondary, secondary_batch = _text_input(inputs, schema.secondary)
    tabular, tabular_batches = _tabular_inputs(inputs, schema.tabular)
    if inputs:
        raise ArtifactError(f"model.onnx has the unknown input {next(iter(inputs))}; export it in the documented form.")
    batches = {size for size in (primary_batch, secondary_batch, *tabular_batches) if size is not None}
    if len(batches) > 1:
        raise ArtifactError("model.onnx: the inputs have different fixed batch sizes; export it with one.")
    return check_layout(GraphLayout(primary, secondary, tabular, _output(session), batches.pop() if batches else None))


def check_layout(layout: GraphLayout) -> GraphLayout:
    """Returns a layout whose inputs are of a type and size that can be fed.

    Raises:
        ArtifactError: they are not.
    """
    for text in (layout.primary, layout.secondary):
        tokens = (layout.batch or 1) * (text.chunks or 1) * (text.tokens or 1)
        if tokens > _MOST_TOKENS:
            raise ArtifactError(
                f"model.onnx: {text.ids} has axes fixed to {tokens} tokens, which every text would be filled up to; "
                "export it with dynamic axes."
            )
    types = [layout.primary.dtype, layout.secondary.dtype, *(column.dtype for column in layout.tabular)]
    if any(np.dtype(kind) not in _TYPES.values() for kind in types):
        raise ArtifactError("model.onnx has inputs that are neither integers nor floating point numbers.")
    return layout


def _text_input(inputs: dict[str, Any], field: str) -> tuple[TextInput, int | None]:
    """Takes the two inputs of a text; returns them with their fixed batch size."""
    ids, mask = f"{field}_input_ids", f"{field}_attention_mask"
    for name in (ids, mask):
        if name not in inputs:
            raise ArtifactError(f"model.onnx has no input {name}; export it with the names of hyperparameters.json.")
    shape, dtype = inputs[ids].shape, _dtype(inputs.pop(ids), integer=True)
    node = inputs.pop(mask)
    if len(shape) not in (2, 3) or len(node.shape) != len(shape) or _dtype(node, integer=True) != dtype:
        raise ArtifactError(f"model.onnx: {ids} and {mask} must both be integer tensors [B, C, T] or [B, T].")
    sizes = []
    for own, other in zip(map(_fixed, shape), map(_fixed, node.shape), strict=True):
        if own is not None and other is not None and own != other:
            raise ArtifactError(f"model.onnx: {ids} and {mask} have different fixed sizes; export it again.")
        sizes.append(other if own is None else own)
    chunked = len(sizes) == 3
    return TextInput(ids, mask, dtype, chunked, sizes[1] if chunked else 1, sizes[-1]), sizes[0]


def _tabular_inputs(inputs: dict[str, Any], fields: Sequence[str]) -> tuple[tuple[TabularInput, ...], list[int | None]]:
    """Takes the tabular inputs: one of each field, or a single one of all."""
    named = [field for field in fields if field in inputs]
    if named and len(named) < len(fields):
        missing = next(field for field in fields if field not in inputs)
        raise ArtifactError(f"model.onnx has no input {missing}, which hyperparameters.json lists in tab_field_list.")
    if named or not fields:
        nodes: list[tuple[Any, tuple[int, ...]]] = [(inputs.pop(field), (index,)) for index, field in enumerate(fields)]
    elif len(inputs) == 1:
        nodes = [(inputs.pop(next(iter(inputs))), tuple(range(len(fields))))]
    else:
        raise ArtifactError("model.onnx has no tabular inputs named as tab_field_list, and no single one instead.")
    return tuple(_tabular_input(node, columns) for node, columns in nodes), [_fixed(n.shape[0]) for n, _ in nodes]


def _tabular_input(node: Any, columns: tuple[int, ...]) -> TabularInput:
    flat = len(node.shape) == 1 and len(columns) == 1
    width = None if flat or len(node.shape) != 2 else _fixed(node.shape[1])
    if not flat and (len(node.shape) != 2 or width not in (None, len(columns))):
        raise ArtifactError(f"model.onnx: the input {node.name} must be a tensor [B, {len(columns)}].")
    return TabularInput(node.name, _dtype(node, integer=False), columns, flat)


def _output(session: Interface) -> str:
    nodes = {node.name: node for node in session.get_outputs()}
    if "probs" not in nodes and len(nodes) > 1:
        raise ArtifactError("model.onnx has several outputs and none is named probs; name the probabilities probs.")
    node = nodes.get("probs") or next(iter(nodes.values()))
    if node.shape is not None and len(node.shape) not in (0, 2):  # 0: the exporter left it open
        raise ArtifactError(f"model.onnx: the output {node.name} must be a tensor [B, K] of probabilities.")
    return str(node.name)


def _dtype(node: Any, *, integer: bool) -> DTypeLike:
    dtype = _TYPES.get(node.type)
    if dtype is None or ("int" in node.type) != integer:
        kind = "an integer" if integer else "a floating point"
        raise ArtifactError(f"model.onnx: the input {node.name} must be {kind} tensor.")
    return dtype


def _fixed(axis: object) -> int | None:
    """Returns the size of a fixed axis; None for a dynamic one."""
    return axis if isinstance(axis, int) and axis > 0 else None
