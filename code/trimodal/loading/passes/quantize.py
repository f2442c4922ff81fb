"""Writes the products of a rebuilt encoder in INT8: weights per output channel, activations static or dynamic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trimodal.loading.passes.rebuild import Product
from trimodal.loading.passes.view import Array
from trimodal.loading.passes.writer import MICROSOFT, GraphWriter

SMOOTHING = 0.6
"""Share of an outlier's weight that moves from the activation to the matrix: alpha of SmoothQuant (Xiao et al., 2023,
equation 4). Measured on trained MiniLM weights, largest difference of a probability: none 0.14, 0.5 0.14, 0.6 0.07,
0.7 0.08."""


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest values of an activation, float32 `[channels]` each."""

    low: Array
    high: Array


def int8_product(ranges: Mapping[str, Range], *, static: bool, reduced: bool) -> Product:
    """Products of INT8: weights with a scale per output channel, outliers of the activations moved to the weights.

    Args:
        ranges: by the product's name, from calibration.
        static: scale activations by the calibrated range, so that a row's score depends on itself alone; else by the
            range of each run.
        reduced: keep weights within 7 bits: CPUs without VNNI add pairs of products in 16 bits, which overflow.
    """

    def product(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
        factors = _smoothing(ranges[name], matrix)
        source = writer.node("Mul", [source, writer.constant(f"{name}/smoothing", 1 / factors)], f"{name}/smoothed")
        weights = _weights(writer, name, matrix * factors[:, None], reduced=reduced)
        offset = writer.constant(f"{name}/bias", shift)
        if not static:
            return writer.node("DynamicQuantizeMatMul", [source, *weights, offset], f"{name}/sum", domain=MICROSOFT)
        low = min(float((ranges[name].low / factors).min()), 0.0)
        step = (max(float((ranges[name].high / factors).max()), 0.0) - low) / 255 or 1.0
        scale = writer.constant(f"{name}/input_scale", np.array(step, np.float32))
        zero = writer.constant(f"{name}/input_zero", np.array(round(-low / step), np.uint8))
        quantized = writer.node("QuantizeLinear", [source, scale, zero], f"{name}/input")
        inputs = [quantized, weights[0], scale, weights[1], zero, weights[2], offset]
        return writer.node("MatMulIntegerToFloat", inputs, f"{name}/sum", domain=MICROSOFT)

    return product


def _smoothing(seen: Range, matrix: Array) -> Array:
    """Returns what each input channel is divided by, and its weights multiplied with, float32 `[channels]`."""
    activation = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), 1e-4)
    weight = np.maximum(np.abs(matrix).max(axis=1), 1e-4)
    factors = activation**SMOOTHING / weight ** (1 - SMOOTHING)
    bounded: Array = np.clip(factors / factors.mean(), 1e-2, 1e2).astype(np.float32)
    return bounded


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


INT4_BLOCK = 32
"""Inputs that share one scale, as llama.cpp's Q4 formats and ONNX Runtime's default have it."""


def pack_int4(matrix: Array) -> tuple[Array, Array]:
    """Packs a weight `[in, out]` as `MatMulNBits` reads it.

    Returns:
        uint8 `[out, blocks, 16]`, and float32 scales `[out · blocks]`.
    """
    inputs, outputs = matrix.shape
    blocks = -(-inputs // INT4_BLOCK)
    padded = np.zeros((outputs, blocks * INT4_BLOCK), np.float32)
    padded[:, :inputs] = matrix.T
    by_block = padded.reshape(outputs, blocks, INT4_BLOCK)
    largest = np.abs(by_block).max(axis=2)
    scale = np.where(largest > 0, largest / 7, 1.0).astype(np.float32)
    values = (np.rint(by_block / scale[:, :, None]) + 8).clip(0, 15).astype(np.uint8)
    return values[:, :, 0::2] | values[:, :, 1::2] << 4, scale.reshape(-1)


def int4_product() -> Product:
    """Products with weights of 4 bits and one scale for 32 inputs (`MatMulNBits`); activations stay fp32."""

    def product(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
        packed, scale = pack_int4(matrix)
        inputs, outputs = matrix.shape
        weights = [
            writer.constant(f"{name}/weight", packed),
            writer.constant(f"{name}/weight_scale", scale),
        ]
        result = writer.node(
            "MatMulNBits", [source, *weights], f"{name}/product", domain=MICROSOFT,
            K=inputs, N=outputs, bits=4, block_size=INT4_BLOCK,
        )  # fmt: skip
        return writer.node("Add", [result, writer.constant(f"{name}/bias", shift)], f"{name}/sum")

    return product
