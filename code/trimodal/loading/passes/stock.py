"""Fuses an encoder with ONNX Runtime's own optimizer, and counts what it really fused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from trimodal.errors import OptimizationError

_ATTENTION = ("Attention", "MultiHeadAttention")


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


def count_fused(path: Path) -> dict[str, int]:
    """Counts the operators of ONNX Runtime's own domain in a file, its weights not read."""
    model = onnx.load(path, load_external_data=False)
    return dict(Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft"))


def fuse_stock(source: Path, target: Path, *, heads: int, hidden: int, layers: int) -> Fusion:
    """Fuses one encoder.

    Args:
        source: the graph.
        target: the file to write; its weights go beside it.
        heads: attention heads; the optimizer's own detection fails silently, so they are given.
        hidden: width of a token.
        layers: attention layers that the graph has.

    Raises:
        OptimizationError: the optimizer failed or fused no attention layer.
    """
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    noisy = logging.getLogger("onnxruntime.transformers")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        fused = optimizer.optimize_model(
            str(source), model_type="bert", num_heads=heads, hidden_size=hidden, optimization_options=options, opt_level=0
        )
        fused.save_model_to_file(str(target), use_external_data_format=True)
    except Exception as err:  # the optimizer raises what it likes
        raise OptimizationError(f"onnxruntime's optimizer failed ({type(err).__name__})") from err
    finally:
        noisy.setLevel(level)
    operators = count_fused(target)
    attention = sum(operators.get(name, 0) for name in _ATTENTION)
    if not attention:
        raise OptimizationError(f"the optimizer fused 0 of {layers} attention layers")
    return Fusion(attention, layers, operators)
