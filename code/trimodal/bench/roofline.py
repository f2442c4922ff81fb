"""The roof of this host: how fast its products are at most, and how fast it reads memory; both measured."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from trimodal.bench.analysis import Measured
from trimodal.bench.apart import call_apart
from trimodal.bench.models import Item, Model, Work

_SIZE = 1024
"""Rows and columns of the measured product."""

_BYTES = 256 << 20
"""Memory that is read: more than any cache."""

_SECONDS = 1.0
"""Each is repeated for so long: what counts is the fastest, when nobody else is on the cores."""

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.625}
"""Of a weight; four bits and a float32 scale for 32 of them."""


@dataclass(frozen=True, slots=True)
class Roof:
    """What this host can do at most.

    Attributes:
        fp32: GFLOP/s of a large float32 product.
        int8: the same of 8-bit integers.
        bandwidth: GB/s read from memory.
        threads: that took part.
    """

    fp32: float
    int8: float
    bandwidth: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    def higher(self, other: Roof) -> Roof:
        """Returns the best of two measurements: on a busy host each is too low at times."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return Roof(**{name: max(own, right) for (name, own), right in pairs})


def measure_roof(threads: int) -> Roof:
    """Measures in a process of its own.

    Raises:
        OptimizationError: it failed.
    """
    fp32, int8, bandwidth = call_apart(partial(_measure, threads))
    return Roof(fp32, int8, bandwidth, threads)


def _measure(threads: int) -> tuple[float, float, float]:
    return _product("MatMul", threads), _product("MatMulInteger", threads), _read(threads)


def _product(operator: str, threads: int) -> float:
    """Times a product whose right side is a weight, as ONNX Runtime computes it."""
    from onnx import TensorProto, helper, numpy_helper

    integer = operator == "MatMulInteger"
    rng = np.random.default_rng(0)
    kinds = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    weight = rng.integers(-64, 64, (_SIZE, _SIZE)).astype(np.int8 if integer else np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], [_SIZE, _SIZE])],
        [helper.make_tensor_value_info("y", kinds[1], [_SIZE, _SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": rng.integers(0, 128, (_SIZE, _SIZE)).astype(np.uint8 if integer else np.float32)}
    seconds = _least(lambda: session.run(None, feed))
    return 2 * _SIZE**3 / seconds / 1e9


def _read(threads: int) -> float:
    parts = np.array_split(np.ones(_BYTES // 8, np.float64), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _least(lambda: list(pool.map(np.sum, parts)))
    return _BYTES / seconds / 1e9


def _least(call: Any) -> float:
    """Returns the seconds of the fastest call: what the host can do when nobody disturbs it."""
    times: list[float] = []
    ends = time.perf_counter() + _SECONDS
    while len(times) < 3 or time.perf_counter() < ends:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@dataclass(frozen=True, slots=True)
class Point:
    """One variant under the roof.

    Attributes:
        variant: its name.
        traffic: what was timed.
        batch: records of a call.
        intensity: operations a byte of weights and activations, read and written once.
        gflops: operations a second that it reached, in 10⁹.
    """

    variant: str
    traffic: str
    batch: int
    intensity: float
    gflops: float


def find_points(model: Model, measured: list[Measured], sizes: dict[str, list[Item]]) -> list[Point]:
    """Places variants under the roof; none where the encoders' sizes are not known.

    Args:
        model: the model.
        measured: the variants.
        sizes: traffic to a record that stands for it.
    """
    points = []
    for one in measured:
        for (traffic, batch), times in one.times.items():
            if traffic not in sizes or one.candidate.only_mix:
                continue
            work = [model.work(item) for item in sizes[traffic]]
            each = sum(work, Work())
            operations = each.operations / len(work) * batch
            moved = each.weights * BYTES[one.candidate.precision] + each.activations / len(work) * batch * 4
            if operations:
                gflops = operations / times.typical / 1e6
                points.append(Point(one.candidate.name, traffic, batch, operations / moved, gflops))
    return points
