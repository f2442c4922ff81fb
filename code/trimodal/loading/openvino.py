"""The other engine: opens ONNX graphs with OpenVINO and reads back what it really got."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimodal.errors import OptimizationError

logger = logging.getLogger(__name__)

_NAMES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
_PRODUCTS = ("FullyConnected", "MatMul")
_EIGHT_BITS = ("i8", "u8")
_TELEMETRY = "openvino_telemetry"
_first = Lock()


class OpenVinoSession:
    """A graph compiled by OpenVINO; may be called from several threads.

    Attributes:
        precision: of the products, as the compiled graph has it: `fp32`, `bf16` or `int8`.
    """

    def __init__(self, compiled: Any, precision: str) -> None:
        """Wraps an `openvino.CompiledModel` whose precision is known."""
        self.precision = precision
        self._compiled = compiled
        self._inputs = frozenset(port.any_name for port in compiled.inputs)
        self._outputs = {name: index for index, port in enumerate(compiled.outputs) for name in port.names}
        self._idle: deque[Any] = deque()

    def run(self, output_names: Sequence[str], input_feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the graph.

        Args:
            output_names: which outputs.
            input_feed: every input by its name, of the type that the graph takes.

        Returns:
            The outputs as float32, in the order asked; they stay as they are whatever runs later.

        Raises:
            ValueError: an input is missing or not the graph's: OpenVINO would take an older value for it.
            KeyError: an output is not the graph's.
            RuntimeError: OpenVINO failed.
        """
        if input_feed.keys() != self._inputs:
            raise ValueError("the feed and the graph's inputs differ")
        places = [self._outputs[name] for name in output_names]
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer(input_feed, share_inputs=True)
        outputs = [np.array(request.get_output_tensor(place).data, np.float32) for place in places]
        self._idle.append(request)  # one that failed is not used again
        return outputs


def open_openvino(
    path: Path, *, precision: str, threads: int, cache_dir: Path | None, pinning: bool = False
) -> OpenVinoSession:
    """Compiles a graph for the CPU, for the shortest time of one call.

    Args:
        path: the ONNX graph.
        precision: of the products, `fp32`, `bf16` or `int8`; the last needs a graph that is quantized already.
        threads: of one call.
        cache_dir: where compiled graphs are kept, or None; not used where it cannot be written.
        pinning: bind threads to cores; two graphs side by side would bind theirs to the same ones.

    Raises:
        OptimizationError: OpenVINO is not installed, cannot compile the graph, or this CPU lacks the precision.
    """
    with _first:
        core = _core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise OptimizationError("this CPU has no bf16 products (amx_bf16 or avx512_bf16)")
    options = {
        # INT8 graphs keep fp32 for the rest: with bf16 a few rows of theirs go far off.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": pinning,
        # Not CPU_DENORMALS_OPTIMIZATION: whole numbers of 32 bits go through it as if they were floats, and become 0.
    }
    compiled = _compile(core, path, options, cache_dir)
    got = _precision(compiled)
    if got != precision:
        raise OptimizationError(f"OpenVINO gave {got} instead of {precision}")
    return OpenVinoSession(compiled, got)


@cache
def _core() -> Any:
    """Imports OpenVINO, without its telemetry: that would write into the home directory and send events."""
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # how Python marks what must not be imported
    try:
        import openvino
    except ImportError as err:
        raise OptimizationError("OpenVINO is not installed; install requirements/openvino.txt") from err
    # Its bindings make their tables at the first tensor and wait for each other for ever where two threads do so.
    np.array(openvino.Tensor(np.zeros((1, 1), np.float32), shared_memory=True).data)
    return openvino.Core()


def _compile(core: Any, path: Path, options: dict[str, Any], cache_dir: Path | None) -> Any:
    """Compiles a graph; where the cache is in the way, without it."""
    if cache_dir is not None:
        try:
            return core.compile_model(str(path), "CPU", options | {"CACHE_DIR": str(cache_dir)})
        except RuntimeError:
            logger.info("OpenVINO compiles %s without its cache", path.name)
    try:
        return core.compile_model(str(path), "CPU", options)
    except RuntimeError as err:
        raise OptimizationError(f"OpenVINO cannot compile {path.name}: {_cause(err, path)}") from err


def _cause(err: RuntimeError, path: Path) -> str:
    """Returns the line of OpenVINO's message that tells the cause; the others tell where in its source it arose."""
    lines = [line.strip(" -") for line in str(err).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    return told[-1].replace(str(path), path.name)[:200] if told else type(err).__name__


def _precision(compiled: Any) -> str:
    """Reads what a compiled graph computes its products in."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    products = [fact["runtimePrecision"].value for fact in facts if fact["layerType"].value in _PRODUCTS]
    if any(name in _EIGHT_BITS for name in products):
        return "int8"
    hint: str = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return _NAMES.get(hint, hint)
