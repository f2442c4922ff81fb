"""Makes the variants of one model from its FP32 export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from trimodal.bench.apart import call_apart
from trimodal.bench.candidates import (
    NAIVE,
    NO_BF16,
    PYTORCH,
    REFERENCE,
    Bench,
    Candidate,
    Candidates,
    graph_files,
    total_bytes,
)
from trimodal.bench.gpu_variants import add_gpu
from trimodal.bench.models import AnySession, Model
from trimodal.bench.rebuilt_variants import add_rebuilt
from trimodal.bench.trimodal_model import TrimodalModel
from trimodal.errors import OptimizationError
from trimodal.loading.hardware import libraries
from trimodal.loading.sessions import Tuning, open_graph

Progress = Callable[[str], None]
Make = Callable[[Bench, Candidates], None]


def make_candidates(bench: Bench, progress: Progress) -> Candidates:
    """Makes every variant that this host can make."""
    result = Candidates()
    steps: list[tuple[str, Make]] = [
        (PYTORCH, partial(_add_pytorch, bf16=False)),
        ("pytorch-bf16", partial(_add_pytorch, bf16=True)),
        (REFERENCE, _add_plain),
        ("onnx-fused", _add_fused),
        ("onnx-fp16", partial(_add_made, "onnx-fp16", "fp16", make_fp16, "weights and products in half precision")),
        ("onnx-int8", partial(_add_made, "onnx-int8", "int8", partial(make_int8, reduced=not bench.hardware.has_vnni),
                              "quantize_dynamic: weights per channel, embeddings too")),
        ("onnx-int8-weights", partial(_add_made, "onnx-int8-weights", "int8", partial(make_weights_only, bits=8),
                                      "weights in 8 bits, 128 inputs a scale, embeddings too; activations fp32")),
        ("onnx-int4", partial(_add_made, "onnx-int4", "int4", partial(make_weights_only, bits=4),
                              "weights in 4 bits, embeddings in 8; activations fp32")),
        ("openvino-fp32", partial(_add_openvino, precision="fp32")),
        ("openvino-bf16", partial(_add_openvino, precision="bf16")),
        ("rebuilt", add_rebuilt),
        ("gpu", add_gpu),
    ]  # fmt: skip
    for name, step in steps:
        progress(f"making {name}")
        step(bench, result)
    return result


def _add_pytorch(bench: Bench, into: Candidates, *, bf16: bool) -> None:
    name, precision = ("pytorch-bf16", "bf16") if bf16 else (PYTORCH, "fp32")
    if bf16 and not bench.hardware.has_bf16:
        into.skipped[name] = NO_BF16
        return

    def make() -> Candidate:
        opening = bench.model.pytorch(bench.threads, bf16=bf16)
        return Candidate(name, "pytorch", precision, opening, _weights(bench.model) // (2 if bf16 else 1), "eager mode")

    into.add(name, make)


def _weights(model: Model) -> int:
    folder = model.graph.parent if isinstance(model, TrimodalModel) else getattr(model, "folder", model.graph.parent)
    names = ("model.pth",) if isinstance(model, TrimodalModel) else ("*.safetensors", "pytorch_model*.bin")
    return total_bytes(path for name in names for path in folder.glob(name))


def _add_plain(bench: Bench, into: Candidates) -> None:
    model = bench.model
    opening = partial(open_plain, model.graph, bench.threads)
    size = total_bytes(graph_files(model.graph))
    into.found.append(Candidate(REFERENCE, "onnxruntime", "fp32", model.scorer(opening), size, "the export as it is"))
    padded = model.padded(opening)
    note = f"every text padded to {model.max_tokens} tokens"
    into.found.append(Candidate(NAIVE, "onnxruntime", "fp32", padded, size, note, only_mix=True))


def _add_fused(bench: Bench, into: Candidates) -> None:
    target = bench.folder / "fused" / "model.onnx"
    target.parent.mkdir()

    def make() -> Candidate:
        model = bench.model
        fused, layers = call_apart(partial(_fuse, model.graph, target, model.heads, model.hidden, model.layers))
        if fused < layers:
            raise OptimizationError(f"partial: {fused} of {layers} attention layers were fused")
        return _session_candidate(bench, "onnx-fused", "fp32", target, f"{fused} of {layers} attention layers fused")

    into.add("onnx-fused", make)


def _fuse(graph: Path, target: Path, heads: int, hidden: int, layers: int) -> tuple[int, int]:
    from trimodal.loading.build import count_attention, read_heads
    from trimodal.loading.passes.stock import fuse_stock

    if not heads:
        heads, hidden = read_heads(graph.parent)
    expected = layers or count_attention(graph)
    return fuse_stock(graph, target, heads=heads, hidden=hidden, layers=expected).attention, expected


def _add_made(  # noqa: PLR0913, PLR0917  each is a fact of its own
    name: str, precision: str, make: Callable[[Path, Path], None], note: str, bench: Bench, into: Candidates
) -> None:
    target = bench.folder / name / "model.onnx"
    target.parent.mkdir()

    def one() -> Candidate:
        call_apart(partial(make, bench.model.graph, target))
        return _session_candidate(bench, name, precision, target, note)

    into.add(name, one)


def _session_candidate(bench: Bench, name: str, precision: str, graph: Path, note: str) -> Candidate:
    opening = bench.model.scorer(partial(open_tuned, graph, bench.threads))
    return Candidate(name, "onnxruntime", precision, opening, total_bytes(graph_files(graph)), note)


def make_fp16(source: Path, target: Path) -> None:
    """Writes a graph in half precision; its inputs and outputs keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=True)
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")


def make_int8(source: Path, target: Path, *, reduced: bool) -> None:
    """Quantizes weights per output channel, activations at each run; embeddings, too."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target, per_channel=True, reduce_range=reduced, weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip


def make_weights_only(source: Path, target: Path, *, bits: int) -> None:
    """Quantizes weights alone.

    Raises:
        OptimizationError: the graph has no weight that is worth it.
    """
    import onnx

    from trimodal.bench.weights_only import quantize_weights

    model = onnx.load(source)
    if not quantize_weights(model, bits):
        raise OptimizationError("the graph has no weight of a product or a table")
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")


def _add_openvino(bench: Bench, into: Candidates, *, precision: str) -> None:
    name = f"openvino-{precision}"
    graph = bench.model.graph
    if "openvino" not in libraries():
        into.skipped[name] = "openvino is not installed (requirements/openvino.txt)"
    elif precision == "bf16" and not bench.hardware.has_bf16:
        into.skipped[name] = NO_BF16
    else:
        opening = bench.model.scorer(partial(_open_openvino, graph, precision, bench.threads))
        note = "compiled from the export as it is"
        into.found.append(Candidate(name, "openvino", precision, opening, total_bytes(graph_files(graph)), note))


def _open_openvino(graph: Path, precision: str, threads: int) -> AnySession:
    from trimodal.loading.openvino import open_openvino

    return open_openvino(graph, precision=precision, threads=threads, cache_dir=None)


def open_plain(graph: Path, threads: int) -> Any:
    """Opens a graph with default options, but for the threads and that none spins."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def open_tuned(graph: Path, threads: int) -> Any:
    """Opens a graph with the container's options."""
    return open_graph(graph, Tuning(threads).options(graph.stem))
