"""The GPU's variants: CUDA and TensorRT with bound buffers, half precision, CUDA graphs; or why there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from trimodal.bench.candidates import Bench, Candidate, Candidates, graph_files, total_bytes
from trimodal.bench.models import AnySession
from trimodal.loading.gpu import BoundSession
from trimodal.loading.hardware import libraries
from trimodal.loading.plan import CPU, CUDA, TENSORRT
from trimodal.loading.sessions import Tuning, open_graph

NAMES = ("cuda-fp32", "cuda-fp16", "cuda-graph-fp16", "tensorrt-fp16")


def add_gpu(bench: Bench, into: Candidates) -> None:
    """Adds the GPU's variants, or says of each that it is not measured, and the command that would."""
    obstacle = _obstacle(bench)
    if obstacle is not None:
        told = f"not measured: {obstacle}; on a machine with one (requirements/serve-gpu.txt): {bench.command}"
        into.skipped |= dict.fromkeys(NAMES, told)
        return
    _add(bench, into, "cuda-fp32", "fp32", bench.model.graph, (CUDA, CPU))
    half = bench.folder / "onnx-fp16" / "model.onnx"
    if not half.is_file():
        into.skipped |= dict.fromkeys(NAMES[1:], into.skipped.get("onnx-fp16", "there is no FP16 graph"))
        return
    _add(bench, into, "cuda-fp16", "fp16", half, (CUDA, CPU))
    _add(bench, into, "cuda-graph-fp16", "fp16", half, (CUDA, CPU), graphs=True)
    _add(bench, into, "tensorrt-fp16", "fp16", bench.model.graph, (TENSORRT, CUDA, CPU))


def _obstacle(bench: Bench) -> str | None:
    if bench.hardware.gpu is None:
        return "there is no GPU"
    return None if "onnxruntime-gpu" in libraries() else "onnxruntime-gpu is not installed"


def _add(  # noqa: PLR0913, PLR0917  each is a fact of its own
    bench: Bench, into: Candidates, name: str, precision: str, graph: Path, providers: Sequence[str], *,
    graphs: bool = False,
) -> None:  # fmt: skip
    if providers[0] not in onnxruntime.get_available_providers():
        into.skipped[name] = f"this onnxruntime has no {providers[0]}"
        return
    opening = bench.model.scorer(partial(open_gpu, graph, tuple(providers), bench.threads, graphs=graphs))
    size = total_bytes(graph_files(graph))
    note = "buffers bound" + (", replayed as a CUDA graph for each shape" if graphs else "")
    into.found.append(Candidate(name, providers[0].removesuffix("ExecutionProvider"), precision, opening, size, note))


def open_gpu(graph: Path, providers: tuple[str, ...], threads: int, *, graphs: bool) -> AnySession:
    """Opens a graph on the GPU with its buffers bound.

    Raises:
        OptimizationError: ONNX Runtime took another provider.
    """
    profile = {"enable_cuda_graph": "1"} if graphs else {}
    session = open_graph(graph, Tuning(threads).options(graph.stem), providers, None, profile)
    return GraphedSession(session) if graphs else BoundSession(session)


@dataclass(frozen=True, slots=True)
class GraphedSession:
    """Captures one CUDA graph for each set of input shapes, and replays it from then on.

    Source: ONNX Runtime's CUDA execution provider, “Using CUDA Graphs”: addresses must stay, so inputs are copied into
    the buffers of the first run, and `gpu_graph_id` tells which graph is meant.
    """

    session: onnxruntime.InferenceSession
    bound: dict[tuple[tuple[int, ...], ...], tuple[Any, dict[str, Any], Any]] = field(default_factory=dict)

    def run(self, output_names: Sequence[str], input_feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the graph; see `trimodal.serving.runner.Session`."""
        shapes = tuple(value.shape for value in input_feed.values())
        if shapes not in self.bound:
            self.bound[shapes] = self._bind(output_names, input_feed)
        binding, buffers, options = self.bound[shapes]
        for name, value in input_feed.items():
            buffers[name].update_inplace(value)
        self.session.run_with_iobinding(binding, options)
        outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return outputs

    def _bind(self, output_names: Sequence[str], feed: dict[str, NDArray[Any]]) -> tuple[Any, dict[str, Any], Any]:
        binding = self.session.io_binding()
        buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for name, value in feed.items()}
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        # A first run without a graph tells the outputs' shapes; from then on they have buffers that stay.
        plain = onnxruntime.RunOptions()
        plain.add_run_config_entry("gpu_graph_id", "-1")
        for name in output_names:
            binding.bind_output(name, "cuda", 0)
        self.session.run_with_iobinding(binding, plain)
        for name, value in zip(output_names, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(name, value)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self.bound) + 1))
        return binding, buffers, options
