"""A model as a rung has built it: which files, what they take and give; kept in the manifest of its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from trimodal.errors import OptimizationError
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput


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

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            OptimizationError: it is of another form.
        """
        try:
            layout = plain["layout"]
            return cls(
                **{
                    **plain,
                    "providers": tuple(plain["providers"]),
                    "layout": GraphLayout(
                        primary=_text(layout["primary"]),
                        secondary=_text(layout["secondary"]),
                        tabular=tuple(
                            TabularInput(
                                **{**part, "dtype": np.dtype(part["dtype"]), "columns": tuple(part["columns"])}
                            )
                            for part in layout["tabular"]
                        ),
                        output=layout["output"],
                        batch=layout["batch"],
                        rows=layout["rows"],
                    ),
                    "texts": tuple(TextPart(**{**part, "outputs": tuple(part["outputs"])}) for part in plain["texts"]),
                    "profile": dict(plain["profile"]),
                    "head_shapes": tuple((int(side), str(name)) for side, name in plain["head_shapes"]),
                }
            )
        except (KeyError, TypeError, ValueError) as err:
            raise OptimizationError("the manifest does not describe a model") from err


def _text(plain: Mapping[str, Any]) -> TextInput:
    return TextInput(**{**plain, "dtype": np.dtype(plain["dtype"])})
