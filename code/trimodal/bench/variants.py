"""What is timed: the naive service, the model's peers, and every rung of the ladder that can be built here."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import onnxruntime

from trimodal.bench.usual import make_usual
from trimodal.errors import ArtifactError, OptimizationError, TrimodalError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.build import Source, build
from trimodal.loading.facts import ModelFacts, open_view, read_facts
from trimodal.loading.graph import find_layout, open_session
from trimodal.loading.hardware import Hardware, libraries
from trimodal.loading.load import open_model
from trimodal.loading.opening import open_built
from trimodal.loading.optimize import Subject, read_subject
from trimodal.loading.plan import CPU, Rung, make_plan
from trimodal.loading.sessions import Tuning
from trimodal.records import Features, FloatArray
from trimodal.serving.runner import Runner, TextInput
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

NAIVE, PLAIN, TUNED, USUAL = "naive", "plain", "tuned", "usual-int8"
NATIVE = "openvino-native-fp32"

OURS, PEER, TODAY = "ours", "peer", "today"
"""Kinds: a level of the ladder, another way to run the same model, the service as it usually is."""

_NO_BF16 = "this CPU has no bf16 products (amx_bf16 or avx512_bf16)"


class Scorer(Protocol):
    """What is timed."""

    def run(self, features: Sequence[Features]) -> FloatArray:
        """Scores records; float32 `[N, K]`."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: unique.
        kind: `ours`, `peer` or `today`.
        precision: of the products with weights; decides the tolerance.
        open: opens it, ready to run.
        engine: what runs it.
        constant: every request costs the same, so that a few of them tell the time of all.
    """

    name: str
    kind: str
    precision: str
    open: Callable[[], Scorer]
    engine: str = "onnxruntime"
    constant: bool = False


@dataclass(slots=True)
class Variants:
    """What can be timed here, and what cannot.

    Attributes:
        subject: the model, read.
        facts: what its graph says about itself.
        found: the variants; `naive` and `plain` first.
        skipped: variant to why it is not timed.
    """

    subject: Subject
    facts: ModelFacts
    found: list[Variant]
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Variant]) -> None:
        """Adds a variant, or notes why it cannot be made."""
        logger.info("making %s", name)
        try:
            self.found.append(make())
        except TrimodalError as err:
            self.skipped[name] = str(err)


def make_variants(settings: Settings, hardware: Hardware, threads: int, folder: Path) -> Variants:
    """Makes every variant of a model directory.

    Args:
        settings: the container's settings.
        hardware: the host.
        threads: threads of one operator.
        folder: an empty directory for what is built.

    Raises:
        TrimodalError: the model directory or its graph cannot be read.
    """
    artifacts = read_artifacts(settings.model_dir)
    if not artifacts.has_graph:
        raise ArtifactError("model.onnx is missing from the model directory; export the model to ONNX and add it.")
    view = open_view(artifacts.graph)
    facts = read_facts(artifacts, view)
    subject = read_subject(artifacts, view)
    tuning = Tuning.of(settings, threads)
    variants = Variants(
        subject,
        facts,
        [
            Variant(NAIVE, TODAY, "fp32", partial(_open_naive, subject), constant=True),
            Variant(PLAIN, PEER, "fp32", partial(_open_plain, subject)),
            Variant(TUNED, OURS, "fp32", partial(open_model, artifacts, subject.pad_id, tuning)),
        ],
    )
    source = Source(
        graph=artifacts.graph, view=view, layout=subject.layout, facts=facts, max_tokens=artifacts.config.max_tokens,
        max_chunks=artifacts.config.max_chunks,
        samples=subject.samples.features, reduced=not hardware.has_vnni, threads=threads,
    )  # fmt: skip
    rungs, skipped = _rungs(settings, facts, hardware)
    variants.skipped |= skipped
    for rung in rungs:
        variants.add(rung.name, partial(_build, rung, source, folder / rung.name, tuning, subject.pad_id))
    del source, view
    gc.collect()
    _add_peers(variants, hardware, tuning, folder)
    return variants


def _rungs(settings: Settings, facts: ModelFacts, hardware: Hardware) -> tuple[list[Rung], Mapping[str, str]]:
    """Returns the CPU's rungs of both engines, whatever the settings choose among them, and why others are not."""
    rungs: dict[str, Rung] = {}
    skipped: dict[str, str] = {}
    for engine in ("onnxruntime", "openvino"):
        asked = replace(settings, engine=engine, precision="auto", fusion=True, providers=(CPU,))
        plan = make_plan(asked, facts, hardware, libraries())
        rungs |= {rung.name: rung for rung in plan.rungs if rung.name not in rungs}
        skipped |= {name: why for name, why in plan.skipped.items() if not why.startswith("INFERENCE_ENGINE")}
    return list(rungs.values()), skipped


def _build(rung: Rung, source: Source, folder: Path, tuning: Tuning, pad_id: int) -> Variant:
    """Builds a rung, also one that will turn out to give other scores."""
    folder.mkdir()
    built = build(rung, source, folder)
    if built.engine == "onnxruntime" and built.fused < built.layers:
        raise OptimizationError(f"partial: {built.fused} of {built.layers} attention layers were fused")
    opening = partial(open_built, built, folder, tuning, pad_id=pad_id)
    return Variant(rung.name, OURS, rung.precision, opening, built.engine)


def _open_plain(subject: Subject) -> Runner:
    """The default session, but for threads that spin: they would take the core from whoever runs next."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = open_session(subject.artifacts, options)
    return Runner(session, find_layout(session, subject.artifacts.schema), subject.pad_id)


def _open_naive(subject: Subject) -> Runner:
    """The same session, every text padded to the most tokens that the model takes."""
    plain = _open_plain(subject)
    most = subject.artifacts.config.max_tokens

    def padded(text: TextInput) -> TextInput:
        return replace(text, tokens=text.tokens or most)

    layout = replace(plain.layout, primary=padded(plain.layout.primary), secondary=padded(plain.layout.secondary))
    return replace(plain, layout=layout)


def _add_peers(variants: Variants, hardware: Hardware, tuning: Tuning, folder: Path) -> None:
    """Adds what others would do with the same model."""
    subject = variants.subject
    variants.add(USUAL, partial(_usual_int8, subject, variants.facts, folder))
    variants.add("pytorch", partial(pytorch_variant, subject, tuning.threads, bf16=False))
    variants.add(NATIVE, partial(_native, subject, tuning, "fp32"))
    if hardware.has_bf16:  # without, PyTorch computes bf16 without the matrix library, many times slower
        variants.add("pytorch-bf16", partial(pytorch_variant, subject, tuning.threads, bf16=True))
        variants.add("openvino-native-bf16", partial(_native, subject, tuning, "bf16"))
    else:
        variants.skipped |= {"pytorch-bf16": _NO_BF16, "openvino-native-bf16": _NO_BF16}
    variants.skipped["openvino-int8"] = "its weights would be made by NNCF, which is no part of this project"


def _usual_int8(subject: Subject, facts: ModelFacts, folder: Path) -> Variant:
    own = replace(subject.artifacts, model_dir=folder / USUAL)
    own.model_dir.mkdir()
    make_usual(subject, facts, own.graph)
    return Variant(USUAL, PEER, "int8", partial(_open_plain, replace(subject, artifacts=own)))


def pytorch_variant(subject: Subject, threads: int, *, bf16: bool) -> Variant:
    """Returns PyTorch in eager mode, in fp32 or with its encoders in bf16.

    Raises:
        ArtifactError: there is no `model.pth`, or no torch.
    """
    if not subject.artifacts.has_state_dict:
        raise ArtifactError("model.pth is missing from the model directory")
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise ArtifactError("torch or transformers is not installed")
    name, precision = ("pytorch-bf16", "bf16") if bf16 else ("pytorch", "fp32")
    return Variant(name, PEER, precision, partial(_open_pytorch, subject, threads, bf16=bf16), "torch")


def _open_pytorch(subject: Subject, threads: int, *, bf16: bool) -> Runner:
    # Read by OpenMP when torch is first loaded: its threads, too, must not spin while another variant is timed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from trimodal.loading.pytorch import load_pytorch, read_bert_configs

    artifacts = subject.artifacts
    session, layout = load_pytorch(artifacts, threads)
    layout = replace(layout, rows=None)  # our level runs each record alone, for equal bits; a peer would not
    if bf16:
        from trimodal.network import TorchSession, load_network

        network = load_network(artifacts.state_dict, *read_bert_configs(artifacts.model_dir))
        for text in (network.primary_text_subnetwork, network.secondary_text_subnetwork):
            text.bert.bfloat16().register_forward_hook(_widen)
        schema = artifacts.schema
        session = TorchSession(network, (schema.primary, schema.secondary), schema.tabular, threads)
    return Runner(session, layout, subject.pad_id)


def _widen(_module: object, _inputs: object, output: object) -> object:
    """Gives an encoder's bf16 output to the fp32 head."""
    output.pooler_output = output.pooler_output.float()  # type: ignore[attr-defined]
    return output


def _native(subject: Subject, tuning: Tuning, precision: Literal["fp32", "bf16"]) -> Variant:
    if "openvino" not in libraries():
        raise OptimizationError("openvino is not installed (requirements/openvino.txt)")
    name = f"openvino-native-{precision}"
    return Variant(name, PEER, precision, partial(_open_native, subject, tuning, precision), "openvino")


def _open_native(subject: Subject, tuning: Tuning, precision: Literal["fp32", "bf16"]) -> Runner:
    from trimodal.loading.openvino import open_openvino

    session = open_openvino(subject.artifacts.graph, precision=precision, threads=tuning.threads, cache_dir=None)
    return Runner(session, subject.layout, subject.pad_id)
