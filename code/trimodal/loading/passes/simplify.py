"""Simplifies a graph as a whole, for encoders that are not known: folds what is constant, drops what does nothing."""

from __future__ import annotations

from pathlib import Path

import onnx

from trimodal.errors import OptimizationError


def simplify_graph(model: onnx.ModelProto, path: Path) -> tuple[int, int]:
    """Writes the simplified graph, its weights in a file beside it.

    Args:
        model: the graph; it stays as it is.
        path: the file to write; its weights go to `<path>.data`.

    Returns:
        Nodes before and after.

    Raises:
        OptimizationError: onnxslim is not installed or fails, or there is nothing to simplify.
    """
    try:
        import onnxslim
    except ImportError as err:
        raise OptimizationError("onnxslim is not installed") from err

    before = len(model.graph.node)
    own = onnx.ModelProto()
    own.CopyFrom(model)
    try:
        simplified = onnxslim.slim(own)
    except Exception as err:  # whatever it stumbles over in a graph
        raise OptimizationError(f"onnxslim failed ({type(err).__name__})") from err
    after = len(simplified.graph.node)
    if after >= before:
        raise OptimizationError(f"there is nothing to simplify in {before} nodes")
    onnx.save(simplified, path, save_as_external_data=True, location=f"{path.name}.data")
    return before, after
