"""A model as a rung has built it: which files, what they take and give; kept in the manifest of its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from trimodal.errors import OptimizationError
from trimodal.loading.compare import TOLERANCES
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput

ENGINES = ("onnxruntime", "openvino")
_OPTIONS = frozenset(f"trt_profile_{name}_shapes" for name in ("min", "opt", "max"))
_LARGEST_BUCKET = 1024


@dataclass(frozen=True, slots=True)
class TextPart:
    """The part of one text.

    Attributes:
        file: its graph.
        ids: its input of token ids.
        mask: its input of the attention mask; empty where it takes none.
        outputs: its outputs, which the head reads.
        by_chunk: it takes single chunks, `[R, T]`.
        bucket: texts are padded to a multiple of so many tokens.
    """

    file: str
    ids: str
    mask: str
    outputs: tuple[str, ...]
    by_chunk: bool
    bucket: int = 1


@dataclass(frozen=True, slots=True)
class Built:
    """A model that can be opened.

    Attributes:
        rung: the rung's name.
        precision: of the products with weights.
        engine: `onnxruntime` or `openvino`.
        providers: execution providers, best first.
        layout: inputs and output of the original graph.
        layers: attention layers that the graph has.
        fused: attention layers that became one operator.
        whole: file of the one graph; empty where the model is split, or is `model.onnx` itself.
        texts: the primary text's part and the secondary text's; empty where the model is whole.
        head: file of the head.
        profile: options of the first execution provider that this model needs, such as TensorRT's shapes.
        head_shapes: (0 primary or 1 secondary, name) of the texts' inputs that the head reads for their shapes.
        packed: the encoders' weights are packed for the kernels of this processor; their graphs are optimized.
    """

    rung: str
    precision: str
    engine: str
    providers: tuple[str, ...]
    layout: GraphLayout
    layers: int = 0
    fused: int = 0
    whole: str = ""
    texts: tuple[TextPart, ...] = ()
    head: str = ""
    head_shapes: tuple[tuple[int, str], ...] = ()
    profile: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        plain = asdict(self)
        layout = plain["layout"]
        for part in (layout["primary"], layout["secondary"], *layout["tabular"]):
            part["dtype"] = np.dtype(part["dtype"]).name
        return plain

    @property
    def files(self) -> frozenset[str]:
        """Its graphs."""
        return frozenset({self.whole, self.head, *(part.file for part in self.texts)} - {""})

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote, or a stranger did: options of a provider may name code to run.

        Raises:
            OptimizationError: it is of another form, or names files elsewhere, or options that we never write.
        """
        try:
            built = cls._made_of(plain)
            ours = built.is_ours
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise OptimizationError("the manifest does not describe a model") from err
        if not ours:
            raise OptimizationError("the manifest describes a model that we would not have made")
        return built

    @classmethod
    def _made_of(cls, plain: Mapping[str, Any]) -> Self:
        layout = plain["layout"]
        tabular = (
            TabularInput(**{**part, "dtype": np.dtype(part["dtype"]), "columns": tuple(part["columns"])})
            for part in layout["tabular"]
        )
        return cls(
            **{
                **plain,
                "providers": tuple(plain["providers"]),
                "layout": GraphLayout(
                    primary=_text(layout["primary"]),
                    secondary=_text(layout["secondary"]),
                    tabular=tuple(tabular),
                    output=layout["output"],
                    batch=layout["batch"],
                    rows=layout["rows"],
                ),
                "texts": tuple(TextPart(**{**part, "outputs": tuple(part["outputs"])}) for part in plain["texts"]),
                "profile": dict(plain["profile"]),
                "head_shapes": tuple((int(side), str(name)) for side, name in plain["head_shapes"]),
            }
        )

    @property
    def is_ours(self) -> bool:
        """Tells whether files, options and sizes are such as we choose."""
        names = all(Path(name).name == name for name in self.files)
        options = _OPTIONS.issuperset(self.profile)
        buckets = all(part.bucket in range(1, _LARGEST_BUCKET + 1) for part in self.texts)
        known = self.precision in TOLERANCES and self.engine in ENGINES and len(self.texts) in (0, 2)
        return names and options and buckets and known


def _text(plain: Mapping[str, Any]) -> TextInput:
    return TextInput(**{**plain, "dtype": np.dtype(plain["dtype"])})
