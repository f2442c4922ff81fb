"""Opens ONNX graphs with the options that serve one container best, and reads back what it really got."""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnxruntime

from trimodal.errors import OptimizationError
from trimodal.loading.hardware import crowded
from trimodal.loading.plan import CPU, CUDA, TENSORRT
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

INLINE = 1024
"""Bytes from which on a tensor that ONNX Runtime saves goes to the weights' file."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How graphs are run.

    Attributes:
        threads: of one operator.
        inter_op: operators at once.
        profile: write ONNX Runtime's profile.
        cache_dir: where TensorRT keeps its engines, or None.
        crowded: open encoders a second time, on one thread each, for while several requests are there; only where their
            weights are packed, so that both share them.
        pack_into: directory to save graphs in, optimized and with packed weights, or None.
    """

    threads: int
    inter_op: int = 1
    profile: bool = False
    cache_dir: Path | None = None
    crowded: bool = False
    pack_into: Path | None = None

    @classmethod
    def of(cls, settings: Settings, threads: int) -> Tuning:
        """Reads the settings."""
        twice = crowded(settings, threads)
        return cls(threads, settings.inter_op_threads, settings.profiling, settings.optimized_dir, twice)

    def options(self, name: str, *, packed: bool = False) -> onnxruntime.SessionOptions:
        """Returns tuned options for the graph `name`; one that was saved with packed weights is optimized."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = self.inter_op
        parallel = self.inter_op > 1
        mode, level = onnxruntime.ExecutionMode, onnxruntime.GraphOptimizationLevel
        options.execution_mode = mode.ORT_PARALLEL if parallel else mode.ORT_SEQUENTIAL
        options.graph_optimization_level = level.ORT_DISABLE_ALL if packed else level.ORT_ENABLE_ALL
        options.enable_cpu_mem_arena = True
        options.enable_mem_pattern = False  # a pattern holds for one shape, and texts differ in length
        # A thread that spins takes the core from the other encoder; masked attention runs into denormal numbers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if self.pack_into is not None:
            options.optimized_model_filepath = str(self.pack_into / f"{name}.onnx")
            weights = {"external_initializers_file_name": f"{name}.onnx.data"}
            weights |= {"external_initializers_min_size_in_bytes": str(INLINE)}
            for key, value in weights.items():
                options.add_session_config_entry(f"session.optimized_model_{key}", value)
            options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(
                Path(tempfile.gettempdir()) / f"onnx-profile-{name}-{os.getpid()}-{self.threads}"
            )
        return options


def open_graph(
    path: Path,
    options: onnxruntime.SessionOptions,
    providers: Sequence[str] = (CPU,),
    cache_dir: Path | None = None,
    profile: Mapping[str, str] = MappingProxyType({}),
) -> onnxruntime.InferenceSession:
    """Opens a graph.

    Args:
        path: the graph.
        options: how it is run.
        providers: execution providers, best first.
        cache_dir: where TensorRT keeps its engines, or None.
        profile: options of the first provider that this graph needs.

    Raises:
        OptimizationError: it cannot be opened, or ONNX Runtime took other providers than asked.
    """
    onnxruntime.disable_telemetry_events()
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise OptimizationError(f"the execution provider {missing[0]} is not available in this onnxruntime")
    # SkipLayerNormalization's kernel on the CPU is slower than the two operators that it joins.
    disabled = ["SkipLayerNormFusion"] if tuple(providers) == (CPU,) else []
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=[
                (name, {**_provider_options(name, cache_dir), **(profile if name == providers[0] else {})})
                for name in providers
            ],
            disabled_optimizers=disabled,
        )
    except Exception as err:  # the library's exceptions share no base
        what = "saved with packed weights" if options.optimized_model_filepath else "opened"
        raise OptimizationError(f"{path.name} cannot be {what} by onnxruntime ({type(err).__name__})") from err
    got = session.get_providers()
    if providers[0] not in got:
        raise OptimizationError(f"onnxruntime gave {got[0]} instead of {providers[0]}")
    if options.enable_profiling:
        atexit.register(_end_profiling, session)
    return session


def _end_profiling(session: onnxruntime.InferenceSession) -> None:
    file = session.end_profiling()
    try:
        with Path(file).open("rb") as written:
            written.seek(-2, os.SEEK_END)
            whole = b"]" in written.read()
    except OSError:
        whole = False
    if whole:
        logger.info("ONNX Runtime's profile is written", extra={"file": file})
    else:
        logger.warning("ONNX Runtime's profile is not whole; mount a larger volume on /tmp", extra={"file": file})


def _provider_options(name: str, cache_dir: Path | None) -> Mapping[str, Any]:
    if name == TENSORRT:
        cache = str(cache_dir) if cache_dir is not None else ""
        return {
            "trt_fp16_enable": "1",
            "trt_engine_cache_enable": "1" if cache else "0",
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "1" if cache else "0",
            "trt_timing_cache_path": cache,
        }
    if name == CUDA:
        return {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    return {}
