"""The container's own rungs of a trimodal model among the variants: encoders written anew from their weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from trimodal.bench.apart import call_apart
from trimodal.bench.candidates import NO_BF16, Bench, Candidate, Candidates, total_bytes
from trimodal.bench.trimodal_model import TrimodalModel
from trimodal.errors import OptimizationError
from trimodal.loading import plan
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.build import Source, build
from trimodal.loading.built import Built
from trimodal.loading.facts import open_view, read_facts
from trimodal.loading.hardware import detect, no_gpu
from trimodal.loading.opening import open_built
from trimodal.loading.optimize import read_subject
from trimodal.loading.sessions import Tuning

_RUNGS = (plan.REBUILD, plan.STATIC, plan.MIXED, plan.INT4, plan.OPENVINO, plan.OPENVINO_BF16)


def add_rebuilt(bench: Bench, into: Candidates) -> None:
    """Adds the container's own rungs, for a trimodal model."""
    model = bench.model
    if not isinstance(model, TrimodalModel):
        reason = "the output reads every token, and a rebuilt encoder ends with the first one's alone"
        into.skipped["rebuilt-fp32"] = into.skipped["rebuilt-int8"] = reason
        return
    for place, rung in enumerate(_RUNGS):
        name = rung.name.replace("rebuild", "rebuilt").replace("openvino", "rebuilt-openvino")
        if rung.precision == "bf16" and not bench.hardware.has_bf16:
            into.skipped[name] = NO_BF16
        else:
            into.add(name, partial(_rebuilt, bench, model, place, name))


def _rebuilt(bench: Bench, model: TrimodalModel, place: int, name: str) -> Candidate:
    folder = bench.folder / name
    folder.mkdir()
    built: Built = call_apart(partial(_build, model.subject.artifacts.model_dir, place, folder, bench.threads))
    opening = partial(open_built, built, folder, Tuning(bench.threads), pad_id=model.subject.pad_id)
    note = "the container's own: encoders written anew, each chunk alone at its exact length"
    return Candidate(name, built.engine, built.precision, opening, total_bytes(folder.iterdir()), note)


def _build(model_dir: Path, place: int, folder: Path, threads: int) -> Built:
    artifacts = read_artifacts(model_dir)
    view = open_view(artifacts.graph)
    subject = read_subject(artifacts, view)
    source = Source(
        graph=artifacts.graph, view=view, layout=subject.layout, facts=read_facts(artifacts, view),
        max_tokens=artifacts.config.max_tokens, max_chunks=artifacts.config.max_chunks,
        samples=subject.samples.features, reduced=not detect(gpu=no_gpu).has_vnni, threads=threads,
    )  # fmt: skip
    built = build(_RUNGS[place], source, folder)
    if built.engine == "onnxruntime" and built.fused < built.layers:
        raise OptimizationError(f"partial: {built.fused} of {built.layers} attention layers were fused")
    return built
