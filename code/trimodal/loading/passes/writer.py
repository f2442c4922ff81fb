"""Writes ONNX graphs node by node, their weights streamed into a file beside them that can be memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trimodal.loading.passes.view import Array

OPSET = 17
MICROSOFT = "com.microsoft"
_IR_VERSION = 8
_ALIGNMENT = 4096
"""Offsets in the weights' file are whole pages, so that ONNX Runtime maps them instead of reading them."""

_INLINE = 1024
"""Bytes up to which a tensor stays in the graph's own file."""


class GraphWriter:
    """A graph being written; used as a context manager, which closes the weights' file."""

    def __init__(self, path: Path) -> None:
        """Starts a graph.

        Args:
            path: the graph's file; its weights go to `<path>.data`.
        """
        self.path = path
        self.weights = path.with_name(path.name + ".data")
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._file = self.weights.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._file.close()

    def node(self, kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Adds a node of one output; returns the output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def split(self, source: str, outputs: Sequence[str], sizes: Sequence[int]) -> Sequence[str]:
        """Cuts the last axis into parts; returns their names."""
        lengths = self.constant(f"{source}/sizes", np.array(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [source, lengths], list(outputs), name=f"{source}/split", axis=-1))
        return outputs

    def constant(self, name: str, value: Array) -> str:
        """Adds a tensor; returns its name."""
        if value.nbytes <= _INLINE:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return name
        value = np.ascontiguousarray(value)
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", self.weights.name), ("offset", self._file.tell()), ("length", value.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        self._file.write(value.data)
        self.initializers.append(tensor)
        return name

    def save(self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]) -> None:
        """Writes the graph's file; without a weight beside it where none is large."""
        graph = helper.make_graph(self.nodes, self.path.stem, list(inputs), list(outputs), self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        self._file.close()
        if not self.weights.stat().st_size:
            self.weights.unlink()
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION), self.path)
