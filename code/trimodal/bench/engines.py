"""The variants of one model: graphs made from its FP32 export, and what opens them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from trimodal.bench.apart import call_apart
from trimodal.bench.gpu_variants import add_gpu
from trimodal.bench.models import AnySession, Model, TrimodalModel
from trimodal.errors import OptimizationError, TrimodalError
from trimodal.loading.built import Built
from trimodal.loading.hardware import Hardware, detect, libraries, no_gpu
from trimodal.loading.sessions import Tuning, open_graph

logger = logging.getLogger(__name__)

REFERENCE, PYTORCH, NAIVE = "onnx-fp32", "pytorch-fp32", "onnx-fp32-padded"
NO_BF16 = "this CPU has no bf16 products (avx512_bf16, amx_bf16), without which they are emulated, many times slower"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model.

    Attributes:
        name: unique.
        engine: what runs it.
        precision: of the products with weights; decides the tolerance.
        open: opens a scorer of records; picklable.
        bytes: size of its files.
        note: how it was made.
        only_mix: measured on realistic lengths alone, batch 1.
    """

    name: str
    engine: str
    precision: str
    open: Callable[[], Any]
    bytes: int
    note: str = ""
    only_mix: bool = False


@dataclass(slots=True)
class Candidates:
    """What can be measured here, and what cannot and why."""

    found: list[Candidate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Candidate]) -> None:
        """Adds a variant, or notes why it cannot be made."""
        try:
            self.found.append(make())
        except TrimodalError as err:
            self.skipped[name] = str(err)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where variants are made.

    Attributes:
        model: the model.
        hardware: the host.
        threads: of one operator.
        folder: an empty directory.
        command: how to repeat the measurement.
    """

    model: Model
    hardware: Hardware
    threads: int
    folder: Path
    command: str


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
        ("onnx-int4", partial(_add_made, "onnx-int4", "int4", make_int4, "products' weights only; embeddings stay")),
        ("openvino-fp32", partial(_add_openvino, precision="fp32")),
        ("openvino-bf16", partial(_add_openvino, precision="bf16")),
        ("rebuilt", _add_rebuilt),
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
    size = total_bytes(_graph_files(model.graph))
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
    return Candidate(name, "onnxruntime", precision, opening, total_bytes(_graph_files(graph)), note)


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


def make_int4(source: Path, target: Path) -> None:
    """Writes the products with weights as `MatMulNBits`: 4 bits, one scale for 32 inputs.

    Raises:
        OptimizationError: the graph has no product with a weight.
    """
    import onnx

    from trimodal.bench.int4 import quantize_products

    model = onnx.load(source)
    if not quantize_products(model):
        raise OptimizationError("the graph has no product with a weight")
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
        into.found.append(Candidate(name, "openvino", precision, opening, total_bytes(_graph_files(graph)), note))


def _open_openvino(graph: Path, precision: str, threads: int) -> AnySession:
    from trimodal.loading.openvino import open_openvino

    return open_openvino(graph, precision=precision, threads=threads, cache_dir=None)


_RUNGS = ("rebuild-fp32", "rebuild-int8-static", "rebuild-int8-mixed", "rebuild-int4", "openvino-fp32", "openvino-bf16")


def _add_rebuilt(bench: Bench, into: Candidates) -> None:
    """Adds the container's own rungs, for a trimodal model."""
    model = bench.model
    if not isinstance(model, TrimodalModel):
        reason = (
            "the output reads every token, and the rebuilt encoder computes the first one's alone in its last layer"
        )
        into.skipped["rebuilt-fp32"] = into.skipped["rebuilt-int8"] = reason
        return
    for rung in _RUNGS:
        name = rung.replace("rebuild", "rebuilt").replace("openvino", "rebuilt-openvino")
        folder = bench.folder / name
        if "bf16" in rung and not bench.hardware.has_bf16:
            into.skipped[name] = NO_BF16
            continue
        into.add(name, partial(_rebuilt, bench, model, rung, name, folder))


def _rebuilt(bench: Bench, model: TrimodalModel, rung: str, name: str, folder: Path) -> Candidate:
    from trimodal.loading.opening import open_built

    folder.mkdir()
    built: Built = call_apart(partial(_build_rung, model.subject.artifacts.model_dir, rung, folder, bench.threads))
    opening = partial(open_built, built, folder, Tuning(bench.threads), pad_id=model.subject.pad_id)
    note = "the container's own: encoders written anew, each chunk alone at its exact length"
    return Candidate(name, built.engine, built.precision, opening, total_bytes(folder.iterdir()), note)


def _build_rung(model_dir: Path, name: str, folder: Path, threads: int) -> Built:
    from trimodal.loading import plan
    from trimodal.loading.artifacts import read_artifacts
    from trimodal.loading.build import Source, build
    from trimodal.loading.facts import open_view, read_facts
    from trimodal.loading.optimize import read_subject

    artifacts = read_artifacts(model_dir)
    view = open_view(artifacts.graph)
    subject = read_subject(artifacts, view)
    rungs = (plan.REBUILD, plan.STATIC, plan.MIXED, plan.INT4, plan.OPENVINO, plan.OPENVINO_BF16)
    rung = next(rung for rung in rungs if rung.name == name)
    source = Source(
        graph=artifacts.graph, view=view, layout=subject.layout, facts=read_facts(artifacts, view),
        max_tokens=artifacts.config.max_tokens, max_chunks=artifacts.config.max_chunks,
        samples=subject.samples.features, reduced=not detect(gpu=no_gpu).has_vnni, threads=threads,
    )  # fmt: skip
    built = build(rung, source, folder)
    if built.engine == "onnxruntime" and built.fused < built.layers:
        raise OptimizationError(f"partial: {built.fused} of {built.layers} attention layers were fused")
    return built


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


def _graph_files(graph: Path) -> list[Path]:
    """Returns a graph's files: itself, and its weights beside it."""
    return [graph, *sorted(graph.parent.glob(f"{graph.name}.*"))]


def total_bytes(paths: Iterable[Path]) -> int:
    """Sums file sizes."""
    return sum(path.stat().st_size for path in paths if path.is_file())
