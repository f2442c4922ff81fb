"""Writes the products of a rebuilt encoder in INT8: weights per output channel, activations static or dynamic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimodal.loading.passes.rebuild import Product
from trimodal.loading.passes.view import Array
from trimodal.loading.passes.writer import MICROSOFT, GraphWriter


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of an activation."""

    low: float
    high: float


def dynamic_product(*, reduced: bool) -> Product:
    """Products whose activations are scaled by each run's own range; a row's score depends on its whole run.

    Args:
        reduced: keep weights within 7 bits: CPUs without VNNI add pairs of products in 16 bits, which overflow.
    """

    def product(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
        weights = _weights(writer, name, matrix, reduced=reduced)
        offset = writer.constant(f"{name}/bias", shift)
        return writer.node("DynamicQuantizeMatMul", [source, *weights, offset], f"{name}/sum", domain=MICROSOFT)

    return product


def static_product(ranges: Mapping[str, Range], *, reduced: bool) -> Product:
    """Products whose activations are scaled by ranges seen before; a row's score depends on itself alone.

    Args:
        ranges: by the product's name, from calibration.
        reduced: see `dynamic_product`.
    """

    def product(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
        weights = _weights(writer, name, matrix, reduced=reduced)
        seen = ranges[name]
        low, high = min(seen.low, 0.0), max(seen.high, 0.0)
        step = (high - low) / 255 or 1.0
        scale = writer.constant(f"{name}/input_scale", np.array(step, np.float32))
        zero = writer.constant(f"{name}/input_zero", np.array(round(-low / step), np.uint8))
        quantized = writer.node("QuantizeLinear", [source, scale, zero], f"{name}/input")
        inputs = [quantized, weights[0], scale, weights[1], zero, weights[2], writer.constant(f"{name}/bias", shift)]
        return writer.node("MatMulIntegerToFloat", inputs, f"{name}/sum", domain=MICROSOFT)

    return product


def _weights(writer: GraphWriter, name: str, matrix: Array, *, reduced: bool) -> tuple[str, str, str]:
    """Writes a weight as int8 with one symmetric scale a column; returns the names of weight, scale and zero."""
    limit = 63 if reduced else 127
    largest = np.abs(matrix).max(axis=0)
    scale = np.where(largest > 0, largest / limit, 1.0).astype(np.float32)
    quantized = np.rint(matrix / scale).astype(np.int8)
    return (
        writer.constant(f"{name}/weight", quantized),
        writer.constant(f"{name}/weight_scale", scale),
        writer.constant(f"{name}/weight_zero", np.zeros(matrix.shape[1], np.int8)),
    )


_BLOCK = 32
"""Inputs that share one scale, as llama.cpp's Q4 formats and ONNX Runtime's default have it."""


def int4_product() -> Product:
    """Products with weights of 4 bits and one scale for 32 inputs (`MatMulNBits`); activations stay fp32."""

    def product(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
        inputs, outputs = matrix.shape
        blocks = -(-inputs // _BLOCK)
        padded = np.zeros((outputs, blocks * _BLOCK), np.float32)
        padded[:, :inputs] = matrix.T
        by_block = padded.reshape(outputs, blocks, _BLOCK)
        largest = np.abs(by_block).max(axis=2)
        scale = np.where(largest > 0, largest / 7, 1.0).astype(np.float32)
        values = (np.rint(by_block / scale[:, :, None]) + 8).clip(0, 15).astype(np.uint8)
        packed = values[:, :, 0::2] | values[:, :, 1::2] << 4
        weights = [
            writer.constant(f"{name}/weight", packed),
            writer.constant(f"{name}/weight_scale", scale.reshape(-1)),
        ]
        result = writer.node(
            "MatMulNBits", [source, *weights], f"{name}/product", domain=MICROSOFT,
            K=inputs, N=outputs, bits=4, block_size=_BLOCK,
        )  # fmt: skip
        return writer.node("Add", [result, writer.constant(f"{name}/bias", shift)], f"{name}/sum")

    return product
