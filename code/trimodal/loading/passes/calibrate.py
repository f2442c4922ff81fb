"""Finds the ranges of an encoder's activations on recorded texts, for INT8."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from trimodal.errors import OptimizationError
from trimodal.loading.passes.encoders import Encoder
from trimodal.loading.passes.quantize import Range
from trimodal.loading.passes.rebuild import IDS, float_product, rebuild_encoder
from trimodal.loading.passes.view import Array, GraphView
from trimodal.loading.passes.writer import GraphWriter

MOST_TEXTS = 32
"""Texts that are run, evenly picked; ranges hardly move after that."""


def calibrate(
    view: GraphView, encoder: Encoder, positions: Array, chunks: Sequence[Sequence[int]], *, threads: int
) -> dict[str, Range]:
    """Runs the rebuilt encoder on texts and records what each product reads.

    Args:
        view: the graph that holds the encoder.
        encoder: where it is.
        positions: see `rebuild_encoder`.
        chunks: token ids of texts.
        threads: threads of one operator.

    Returns:
        The range of each product's input, by the product's name.

    Raises:
        OptimizationError: there are no texts, or the encoder does not run on one.
    """
    if not chunks:
        raise OptimizationError("there are no texts to calibrate with")
    sources: dict[str, str] = {}

    def recorded(writer: GraphWriter, source: str, name: str, matrix: Array, shift: Array) -> str:
        sources[name] = source
        return float_product(writer, source, name, matrix, shift)

    with tempfile.TemporaryDirectory(prefix="trimodal-calibration-") as folder:
        path = Path(folder) / "encoder.onnx"
        rebuild_encoder(view, encoder, positions, path, recorded)
        names = sorted(set(sources.values()))
        model = onnx.load(path, load_external_data=False)
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        onnx.save(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            seen = _ranges(session, names, chunks)
        except Exception as err:  # ONNX Runtime's errors share no base
            raise OptimizationError("the encoder cannot be run for calibration") from err
    return {name: seen[source] for name, source in sources.items()}


def _ranges(
    session: onnxruntime.InferenceSession, names: Sequence[str], chunks: Sequence[Sequence[int]]
) -> dict[str, Range]:
    picked = sorted({round(place) for place in np.linspace(0, len(chunks) - 1, min(MOST_TEXTS, len(chunks)))})
    seen: dict[str, Range] = {}
    for place in picked:
        values = session.run(names, {IDS: np.array([chunks[place]], np.int64)})
        for name, value in zip(names, values, strict=True):
            low, high = value.min(axis=(0, 1)), value.max(axis=(0, 1))
            if (before := seen.get(name)) is not None:
                low, high = np.minimum(low, before.low), np.maximum(high, before.high)
            seen[name] = Range(low, high)
    return seen
