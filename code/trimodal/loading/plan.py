"""Decides what to try: a pure function of the settings, the model's facts and the hardware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trimodal.loading.facts import ModelFacts
from trimodal.loading.hardware import Hardware
from trimodal.settings import Settings

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to run the model that is asked for and possible here.

    Attributes:
        name: unique among the rungs.
        phases: what it applies, of `fusion`, `quantization`, `precision`, `providers`, `engine`.
        method: `rebuild` (encoders written anew), `stock` (ONNX Runtime's own optimizer), `whole` (the graph as it
            is, on other providers) or `openvino` (the other engine).
        precision: of the products with weights: `fp32`, `bf16`, `fp16`, `int8`, `int4`.
        activations: `static` or `dynamic` scales, for `int8`.
        exact: products that stay in fp32.
        providers: execution providers, best first.
        why: why it is tried.
    """

    name: str
    phases: tuple[str, ...]
    method: str
    precision: str = "fp32"
    activations: str = ""
    exact: tuple[str, ...] = ()
    providers: tuple[str, ...] = (CPU,)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The ladder of one start.

    Attributes:
        groups: of each group the fastest rung that passes is taken; a later group only where an earlier has none.
        skipped: rung to why it is not tried.
        asked: the phases that the settings ask for.
        notes: why things are as they are, for people.
    """

    groups: tuple[tuple[Rung, ...], ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Every rung, in the order of trying."""
        return tuple(rung for group in self.groups for rung in group)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def make_plan(settings: Settings, facts: ModelFacts, hardware: Hardware, libraries: Mapping[str, str]) -> Plan:
    """Makes the ladder of level 1; the levels below it are the same everywhere."""
    planner = _Planner(settings, facts, hardware, libraries)
    groups = tuple(tuple(rung for rung in group if planner.possible(rung)) for group in planner.groups())
    return Plan(
        groups=tuple(group for group in groups if group),
        skipped=planner.skipped,
        asked=planner.asked(),
        notes=planner.notes(),
    )


REBUILD = Rung("rebuild-fp32", ("fusion",), "rebuild", why="fused encoders written anew from their weights")
STOCK = Rung("stock-fp32", ("fusion",), "stock", why="ONNX Runtime's own fusion, for encoders of another form")
STATIC = Rung(
    "rebuild-int8-static", ("fusion", "quantization"), "rebuild", "int8", "static",
    why="INT8 with calibrated scales: a record's score depends on itself alone",
)  # fmt: skip
DYNAMIC = Rung(
    "rebuild-int8-dynamic", ("fusion", "quantization"), "rebuild", "int8", "dynamic",
    why="INT8 with the scales of each text, run alone",
)  # fmt: skip
MIXED = Rung(
    "rebuild-int8-mixed", ("fusion", "quantization"), "rebuild", "int8", "static", exact=("outer",),
    why="INT8 but for the feed-forward layers' second product, which loses most",
)  # fmt: skip
INT4 = Rung("rebuild-int4", ("fusion", "quantization"), "rebuild", "int4", why="INT4 weights: an eighth of the memory")
OPENVINO = Rung("openvino-fp32", ("fusion", "engine"), "openvino", why="the other engine, fp32")
OPENVINO_BF16 = Rung("openvino-bf16", ("fusion", "engine", "precision"), "openvino", "bf16", why="native bf16 products")
CUDA_FP32 = Rung("cuda-fp32", ("providers",), "whole", providers=(CUDA, CPU), why="the GPU")
CUDA_FP16 = Rung("cuda-fp16", ("providers", "precision"), "whole", "fp16", providers=(CUDA, CPU), why="half precision")
TENSORRT_FP16 = Rung(
    "tensorrt-fp16", ("providers", "precision"), "whole", "fp16",
    providers=(TENSORRT, CUDA, CPU), why="TensorRT fuses the graph as it is",
)  # fmt: skip


_RUNGS = (REBUILD, STOCK, STATIC, DYNAMIC, MIXED, INT4, OPENVINO, OPENVINO_BF16, CUDA_FP32, CUDA_FP16, TENSORRT_FP16)


def phases_of(name: str) -> tuple[str, ...]:
    """Returns what the rung of a name applies."""
    return next((rung.phases for rung in _RUNGS if rung.name == name), ("providers",))


@dataclass(slots=True)
class _Planner:
    settings: Settings
    facts: ModelFacts
    hardware: Hardware
    libraries: Mapping[str, str]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        wanted = not self.settings.providers or any(name in self.settings.providers for name in (CUDA, TENSORRT))
        return wanted and self.hardware.gpu is not None and "onnxruntime-gpu" in self.libraries

    def asked(self) -> tuple[str, ...]:
        settings = self.settings
        phases = {
            "fusion": settings.fusion and not self.gpu,
            "quantization": settings.precision in ("int8", "int4"),
            "precision": settings.precision in ("bf16", "fp16"),
            "providers": bool(self._other_providers()) or self.gpu,
            "engine": settings.engine == "openvino",
        }
        return tuple(name for name, asked in phases.items() if asked)

    def _other_providers(self) -> tuple[str, ...]:
        return tuple(name for name in self.settings.providers if name != CPU)

    def groups(self) -> list[list[Rung]]:
        """Returns the groups that the settings ask for, possible or not."""
        named = self._other_providers()
        exact = [REBUILD, OPENVINO]
        if named and not {CUDA, TENSORRT} & set(named):
            rung = Rung("providers-fp32", ("providers",), "whole", providers=(*named, CPU), why="as named")
            return [[rung], exact, [STOCK]]
        if self.gpu:
            return self._gpu_groups()
        if named:  # without a GPU the rest of what was asked for is still possible
            return [*self._gpu_groups(), exact, [STOCK]]
        return {
            "fp32": [exact, [STOCK]],
            "int8": [[STATIC], [DYNAMIC], [MIXED], exact, [STOCK]],
            "int4": [[INT4], exact, [STOCK]],
            "bf16": [[OPENVINO_BF16], exact, [STOCK]],
            "fp16": [[CUDA_FP16], exact, [STOCK]],
            "auto": [[REBUILD, STATIC, DYNAMIC, MIXED, OPENVINO, OPENVINO_BF16], [STOCK]],
        }[self.settings.precision]

    def _gpu_groups(self) -> list[list[Rung]]:
        half, whole = [TENSORRT_FP16, CUDA_FP16], [CUDA_FP32]
        return {"fp32": [whole], "auto": [[*half, *whole]]}.get(self.settings.precision, [half, whole])

    def possible(self, rung: Rung) -> bool:
        """Tells whether a rung can be tried; notes why not."""
        reason = self._obstacle(rung)
        if reason is not None:
            self.skipped[rung.name] = reason
        return reason is None

    def _obstacle(self, rung: Rung) -> str | None:
        if "fusion" in rung.phases and not self.settings.fusion:
            return "ENABLE_BERT_FUSION=false"
        if rung.method == "rebuild":
            return self._rebuild_obstacle()
        if rung.method == "openvino":
            return self._openvino_obstacle(rung)
        if rung.method == "whole":
            return self._provider_obstacle(rung)
        return self._stock_obstacle()

    def _rebuild_obstacle(self) -> str | None:
        if self.settings.engine == "openvino":
            return "INFERENCE_ENGINE=openvino"
        for encoder in self.facts.encoders:
            if encoder.problem is not None:
                return f"the encoder of {encoder.text} is not known: {encoder.problem}"
            if encoder.sequence:
                return f"the head reads every token of {encoder.text}"
        return "the graph's batch or chunk axis is fixed" if self.facts.fixed else None

    def _stock_obstacle(self) -> str | None:
        if self.settings.engine == "openvino":
            return "INFERENCE_ENGINE=openvino"
        return None

    def _openvino_obstacle(self, rung: Rung) -> str | None:
        if self.settings.engine == "onnxruntime":
            return "INFERENCE_ENGINE=onnxruntime"
        if "openvino" not in self.libraries:
            return "openvino is not installed (requirements/openvino.txt)"
        if rung.precision == "bf16" and not self.hardware.has_bf16:
            return "this CPU has no bf16 products (amx_bf16 or avx512_bf16)"
        asked = self.settings.engine == "openvino" or self.settings.precision == "auto"
        if not asked and self.hardware.vendor != "GenuineIntel":
            return "tried by itself on Intel CPUs only; ask with INFERENCE_ENGINE=openvino or MODEL_PRECISION=auto"
        return None

    def _provider_obstacle(self, rung: Rung) -> str | None:
        if TENSORRT in rung.providers and not self.settings.tensorrt:
            return "ENABLE_TENSORRT=false"
        if CUDA in rung.providers and self.hardware.gpu is None:
            return "there is no GPU"
        if CUDA in rung.providers and "onnxruntime-gpu" not in self.libraries:
            return "onnxruntime-gpu is not installed"
        return None

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.settings.precision in ("int8", "auto") and not self.hardware.has_vnni:
            notes.append("this CPU has no VNNI: INT8 weights keep 7 bits, and gain less")
        if self.settings.precision == "fp16" and not self.gpu:
            notes.append("fp16 is not faster on a CPU; it needs a GPU")
        return tuple(notes)
