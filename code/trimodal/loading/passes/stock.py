"""Fuses encoders with ONNX Runtime's own optimizer, and counts what it really fused: it succeeds with nothing, too."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from trimodal.errors import OptimizationError
from trimodal.loading.passes.writer import MICROSOFT

_ATTENTION = ("Attention", "MultiHeadAttention")

_USUAL_MASK = -10_000.0
"""What the optimizer adds to the score of a hidden token where it cannot read it in the graph."""

_NORMALIZATION = "LayerNormalization"
"""Fused too, but of ONNX's own domain since opset 17."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """What the optimizer did.

    Attributes:
        attention: attention layers that became one operator.
        layers: attention layers that the graph has.
        operators: fused operators by name.
    """

    attention: int
    layers: int
    operators: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether every attention layer was fused."""
        return self.attention == self.layers

    @property
    def partial(self) -> bool:
        """Whether some attention layers were fused, and some were not."""
        return 0 < self.attention < self.layers


def count_fused(path: Path) -> dict[str, int]:
    """Counts the fused operators of a file, its weights not read: ONNX Runtime's own and `LayerNormalization`.

    Raises:
        OptimizationError: it cannot be read.
    """
    nodes = _read(path, weights=False).graph.node
    return dict(Counter(n.op_type for n in nodes if n.domain == MICROSOFT or n.op_type == _NORMALIZATION))


def fuse_stock(source: Path, target: Path, *, heads: int, hidden: int, layers: int) -> Fusion:
    """Fuses the BERT encoders of a graph, one or several of equal sizes.

    Args:
        source: the graph.
        target: the file to write; its weights go to `<target>.data`.
        heads: attention heads; the optimizer's own detection fails silently, so they are given.
        hidden: width of a token.
        layers: attention layers that the graph has, of all encoders together.

    Raises:
        OptimizationError: the graph cannot be read, the optimizer failed, or it fused no attention layer.
    """
    # Without it no shapes are known, casts stay between the operators, and no attention is found.
    if find_spec("sympy") is None:
        raise OptimizationError("ONNX Runtime's optimizer needs the package sympy, which is not installed")
    model = _read(source)
    try:
        with _quiet_optimizer() as optimizer:
            masked = _mask_value(model)
            fused = optimizer.optimize_by_fusion(model, "bert", heads, hidden, _options(optimizer))
            _set_mask_value(fused.model, masked)
            fused.save_model_to_file(str(target), use_external_data_format=True)
    except Exception as err:  # the optimizer raises what it likes
        raise OptimizationError(f"ONNX Runtime's optimizer failed ({type(err).__name__})") from err
    operators = count_fused(target)
    attention = sum(operators.get(name, 0) for name in _ATTENTION)
    if not attention:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(operators.items())) or "none"
        raise OptimizationError(
            f"the optimizer fused 0 of {layers} attention layers: it knows only what an export with eager attention "
            f"looks like (operators that it fused: {counts})"
        )
    return Fusion(attention, layers, operators)


def _options(optimizer: Any) -> Any:
    """Chooses the fusions."""
    options = optimizer.FusionOptions("bert")
    options.use_raw_attention_mask()  # the alternative takes every text to be padded on the right
    options.use_raw_attention_mask()
    # SkipLayerNormalization's kernel on the CPU is slower than the two operators that it joins.
    options.enable_skip_layer_norm = False
    options.enable_bias_skip_layer_norm = False
    return options


def _mask_value(model: onnx.ModelProto) -> float:
    """Finds the number that hides a token: the lowest scalar of the graph, 0 where it has none."""
    tensors = list(model.graph.initializer)
    tensors += [item.t for node in model.graph.node if node.op_type == "Constant" for item in node.attribute]
    scalars = [t for t in tensors if t.data_type == TensorProto.FLOAT and not any(size > 1 for size in t.dims)]
    return min((float(numpy_helper.to_array(t).min()) for t in scalars if 0 not in t.dims), default=0.0)


def _set_mask_value(model: onnx.ModelProto, value: float) -> None:
    """Hides tokens by the graph's own number: the optimizer's gives other scores to a text of padding alone."""
    for node in model.graph.node:
        if value < _USUAL_MASK and node.op_type in _ATTENTION and node.domain == MICROSOFT:
            kept = [item for item in node.attribute if item.name != "mask_filter_value"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("mask_filter_value", value)])


@contextmanager
def _quiet_optimizer() -> Iterator[Any]:
    """Imports the optimizer and silences it.

    It puts its folder on the module path and imports its parts by their bare names, which their loggers bear.
    """
    import onnxruntime
    from onnxruntime.transformers import optimizer

    import_module("shape_infer_helper")  # a part that it imports later
    folder = str(Path(onnxruntime.__file__).parent)
    names = [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(folder)]
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield optimizer
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _read(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=weights)
    except Exception as err:  # protobuf, onnx and the file system raise what they like
        raise OptimizationError(f"{path.name} cannot be read as a graph ({type(err).__name__})") from err
