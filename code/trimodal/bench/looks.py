"""How each variant looks, in every picture alike: a colour and a mark.

The colours are Paul Tol's “muted” scheme and a few beside it, which colour-blind readers can tell apart; the marks, one
for each family, help where it is printed grey.
"""

from __future__ import annotations

from collections.abc import Mapping

from trimodal.bench.candidates import NAIVE, PYTORCH, REFERENCE

STYLES: Mapping[str, tuple[str, str]] = {
    PYTORCH: ("#CC6677", "o"),
    "pytorch-bf16": ("#882255", "o"),
    NAIVE: ("#999999", "X"),
    REFERENCE: ("#332288", "s"),
    "onnx-fused": ("#4477AA", "s"),
    "onnx-fp16": ("#88CCEE", "s"),
    "onnx-int8": ("#117733", "D"),
    "onnx-int8-weights": ("#66CCAA", "D"),
    "onnx-int4": ("#999933", "D"),
    "openvino-fp32": ("#AA4499", "^"),
    "openvino-bf16": ("#661100", "^"),
    "rebuilt-fp32": ("#111111", "P"),
    "rebuilt-int8-static": ("#44AA99", "P"),
    "rebuilt-int8-mixed": ("#6699CC", "P"),
    "rebuilt-int4": ("#DDCC77", "P"),
    "rebuilt-openvino-fp32": ("#B07AA1", "v"),
    "rebuilt-openvino-bf16": ("#7A3B2E", "v"),
    "cuda-fp32": ("#E8601C", "*"),
    "cuda-fp16": ("#F6C141", "*"),
    "cuda-graph-fp16": ("#D1BBD7", "*"),
    "tensorrt-fp16": ("#4EB265", "*"),
}
OTHER = ("#555555", "h")


def look(name: str) -> tuple[str, str]:
    """Returns a variant's colour and mark."""
    return STYLES.get(name, OTHER)
