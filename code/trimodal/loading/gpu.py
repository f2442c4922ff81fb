"""What a GPU needs beside the graph: input and output buffers that are bound, and TensorRT's range of shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from trimodal.serving.runner import GraphLayout, TextInput

MAX_ROWS = 32
"""Records of one run: TensorRT reserves memory for the largest shape of its profile."""

MAX_CHUNKS = 8
"""Chunks of a text in the profile where the model names no limit."""

_USUAL_TOKENS = 128
"""Tokens that TensorRT chooses its kernels for."""


@dataclass(frozen=True, slots=True)
class BoundSession:
    """A session whose inputs and outputs are bound to buffers, so that each run copies them once, in one go.

    Attributes:
        session: the session; may be called from several threads, each call binds for itself.
    """

    session: onnxruntime.InferenceSession

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs the graph; see `trimodal.serving.runner.Session`."""
        binding = self.session.io_binding()
        for name, value in input_feed.items():
            binding.bind_cpu_input(name, value)
        for name in output_names:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        results: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return results


def profile_shapes(layout: GraphLayout, max_tokens: int, max_chunks: int | None) -> dict[str, str]:
    """Returns the shapes for which TensorRT builds one engine, as its provider's options.

    Source: the TensorRT execution provider's options `trt_profile_{min,opt,max}_shapes`, each `name:1x2x3,…` over all
    dynamic inputs.

    Args:
        layout: the graph's inputs.
        max_tokens: of a chunk.
        max_chunks: of a text, or None.
    """
    least, usual, most = (
        (1, 1, 1),
        (1, 1, min(_USUAL_TOKENS, max_tokens)),
        (MAX_ROWS, max_chunks or MAX_CHUNKS, max_tokens),
    )
    return {
        f"trt_profile_{name}_shapes": ",".join(_shapes(layout, *sizes))
        for name, sizes in (("min", least), ("opt", usual), ("max", most))
    }


def _shapes(layout: GraphLayout, rows: int, chunks: int, tokens: int) -> list[str]:
    rows = layout.batch or rows
    shapes = []
    for text in (layout.primary, layout.secondary):
        axes = _text_axes(text, rows, chunks, tokens)
        shapes += [f"{name}:{axes}" for name in (text.ids, text.mask)]
    shapes += [f"{one.name}:{rows}" if one.flat else f"{one.name}:{rows}x{len(one.columns)}" for one in layout.tabular]
    return shapes


def _text_axes(text: TextInput, rows: int, chunks: int, tokens: int) -> str:
    axes = [rows, text.chunks or chunks, text.tokens or tokens] if text.chunked else [rows, text.tokens or tokens]
    return "x".join(map(str, axes))
