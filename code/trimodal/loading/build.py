"""Builds a rung: the passes that it names, over files, into a directory of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from trimodal.errors import OptimizationError
from trimodal.loading.built import Built, TextPart
from trimodal.loading.facts import ModelFacts
from trimodal.loading.gpu import MAX_ROWS, profile_shapes
from trimodal.loading.passes.calibrate import calibrate
from trimodal.loading.passes.encoders import Encoder, find_encoder
from trimodal.loading.passes.quantize import int4_product, int8_product
from trimodal.loading.passes.rebuild import IDS, MASK, Product, Rebuilt, float_product, position_table, rebuild_encoder
from trimodal.loading.passes.split import Text, find_cuts, write_head, write_text_part
from trimodal.loading.passes.view import Array, GraphView
from trimodal.loading.passes.writer import GraphWriter
from trimodal.loading.plan import TENSORRT, Rung
from trimodal.records import Features
from trimodal.serving.runner import GraphLayout

BUCKET = 16
"""OpenVINO prepares itself anew for each length that it sees, so lengths are rounded up."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a rung is built from.

    Attributes:
        graph: the file of the original graph.
        view: the graph.
        layout: its inputs and output.
        facts: what it says about itself.
        max_tokens: tokens of the longest chunk.
        max_chunks: chunks of a text, or None.
        samples: records to calibrate with.
        reduced: INT8 weights keep 7 bits, for CPUs without VNNI.
        threads: threads of one operator while calibrating.
    """

    graph: Path
    view: GraphView
    layout: GraphLayout
    facts: ModelFacts
    max_tokens: int
    max_chunks: int | None
    samples: Sequence[Features]
    reduced: bool
    threads: int

    def tokens(self, side: int) -> int:
        """Returns the length of the longest chunk that one text's encoder may get."""
        text = (self.layout.primary, self.layout.secondary)[side]
        return text.tokens or self.max_tokens

    @property
    def texts(self) -> tuple[Text, Text]:
        """Both texts' inputs."""
        primary, secondary = self.layout.primary, self.layout.secondary
        return Text(primary.ids, primary.mask), Text(secondary.ids, secondary.mask)


def build(rung: Rung, source: Source, folder: Path) -> Built:
    """Builds a rung.

    Args:
        rung: what to build.
        source: what from.
        folder: an empty directory.

    Raises:
        OptimizationError: a pass does not apply, failed, or did not do what it is for.
    """
    builders: dict[str, Callable[[Rung, Source, Path], Built]] = {
        "rebuild": _rebuild,
        "stock": _stock,
        "openvino": _openvino,
        "whole": _whole,
    }
    return builders[rung.method](rung, source, folder)


def _rebuild(rung: Rung, source: Source, folder: Path) -> Built:
    """Both encoders written anew; the head as it is."""
    view = source.view
    standard = rung.method == "openvino"
    encoders = [find_encoder(view, text.ids) for text in source.texts]
    files = ("primary.onnx", "secondary.onnx")

    def one(side: int) -> Rebuilt:
        encoder = encoders[side]
        positions = position_table(view, encoder, source.tokens(side))
        product = _product(rung, source, encoder, side)
        return rebuild_encoder(view, encoder, positions, folder / files[side], product, standard=standard)

    with ThreadPoolExecutor(2) as pool:
        rebuilt = list(pool.map(one, (0, 1)))
    if sum(part.attention for part in rebuilt) != source.facts.layers:
        raise OptimizationError(f"{sum(p.attention for p in rebuilt)} of {source.facts.layers} layers were rebuilt")
    cuts: dict[str, Sequence[int | str] | None] = {encoder.pooled: ["rows", encoder.hidden] for encoder in encoders}
    shapes = write_head(view, cuts, source.texts, folder / "head.onnx")
    parts = [
        TextPart(file, IDS, MASK if standard else "", (encoder.pooled,), True, BUCKET if standard else 1)
        for file, encoder in zip(files, encoders, strict=True)
    ]
    return _split_model(rung, source, parts, shapes, (source.facts.layers, source.facts.layers))


def _product(rung: Rung, source: Source, encoder: Encoder, side: int) -> Product:
    """Chooses how products are written."""
    if rung.precision in ("fp32", "bf16"):  # bf16 is the engine's own matter
        return float_product
    if rung.precision == "int4":
        return int4_product()
    positions = position_table(source.view, encoder, source.tokens(side))
    texts = [(item.primary, item.secondary)[side] for item in source.samples]
    chunks = [chunk for text in texts for chunk in text.chunks]
    ranges = calibrate(source.view, encoder, positions, chunks, threads=source.threads)
    quantized = int8_product(ranges, static=rung.activations == "static", reduced=source.reduced)

    def mixed(writer: GraphWriter, inputs: str, name: str, matrix: Array, shift: Array) -> str:
        exact = name.rpartition("/")[2] in rung.exact
        return (float_product if exact else quantized)(writer, inputs, name, matrix, shift)

    return mixed if rung.exact else quantized


def _split_parts(source: Source, folder: Path) -> tuple[list[TextPart], list[str]]:
    """Cuts the graph where each text ends; returns the parts and the inputs that the head reads for shapes."""
    view = source.view
    parts = []
    cuts: dict[str, None] = {}
    for text, file in zip(source.texts, ("primary.onnx", "secondary.onnx"), strict=True):
        found = find_cuts(view, text, [name for name in view.inputs if name not in (text.ids, text.mask)])
        read = write_text_part(view, text, found, folder / file)
        mask = text.mask if text.mask in read else ""
        parts.append(TextPart(file, text.ids, mask, tuple(found), by_chunk=False))
        cuts |= dict.fromkeys(found)
    return parts, write_head(view, cuts, source.texts, folder / "head.onnx")


def _stock(rung: Rung, source: Source, folder: Path) -> Built:
    """The graph cut where each text ends, and each part fused by ONNX Runtime's own optimizer."""
    from trimodal.loading.passes.stock import fuse_stock

    raw = folder / "raw"
    raw.mkdir()
    parts, shapes = _split_parts(source, raw)
    for file in raw.glob("head.onnx*"):
        file.rename(folder / file.name)
    fused = layers = 0
    for part, encoder in zip(parts, source.facts.encoders, strict=True):
        heads, hidden = (encoder.heads, encoder.hidden) if encoder.heads else read_heads(source.graph.parent)
        expected = encoder.layers or count_attention(raw / part.file)
        fusion = fuse_stock(raw / part.file, folder / part.file, heads=heads, hidden=hidden, layers=expected)
        fused, layers = fused + fusion.attention, layers + expected
    shutil.rmtree(raw)
    return _split_model(rung, source, parts, shapes, (fused, layers))


def read_heads(model_dir: Path) -> tuple[int, int]:
    """Reads attention heads and width of an encoder that the graph does not tell, from its `config.json`.

    Raises:
        OptimizationError: there is none; nothing is assumed.
    """
    for path in (model_dir / "config.json", model_dir / "tokenizer" / "config.json"):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return int(config["num_attention_heads"]), int(config["hidden_size"])
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
    raise OptimizationError("the number of attention heads is neither in the graph nor in a config.json")


def count_attention(graph: Path) -> int:
    """Counts the attention layers of a graph: each has one softmax.

    Raises:
        OptimizationError: there is none.
    """
    model = onnx.load(graph, load_external_data=False)
    layers = [node.op_type for node in model.graph.node].count("Softmax")
    if not layers:
        raise OptimizationError("the graph has no attention layer")
    return layers


def _openvino(rung: Rung, source: Source, folder: Path) -> Built:
    """Encoders written anew in standard operators, which OpenVINO fuses as it compiles them; else the graph cut."""
    if all(encoder.problem is None and not encoder.sequence for encoder in source.facts.encoders):
        return _rebuild(rung, source, folder)
    parts, shapes = _split_parts(source, folder)
    parts = [TextPart(part.file, part.ids, part.mask, part.outputs, by_chunk=False, bucket=BUCKET) for part in parts]
    return _split_model(rung, source, parts, shapes, (0, source.facts.layers))


def _whole(rung: Rung, source: Source, folder: Path) -> Built:
    """The graph as it is, in half precision where asked, for an execution provider that fuses by itself."""
    model = source.view.model
    if rung.precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    layout, profile = source.layout, {}
    if TENSORRT in rung.providers:
        layout = replace(layout, rows=MAX_ROWS)
        profile = profile_shapes(layout, source.max_tokens, source.max_chunks)
    return Built(rung.name, rung.precision, "onnxruntime", rung.providers, layout, whole="model.onnx", profile=profile)


def _split_model(
    rung: Rung, source: Source, parts: Sequence[TextPart], shapes: Sequence[str], counts: tuple[int, int]
) -> Built:
    sides = {name: side for side, text in enumerate(source.texts) for name in (text.ids, text.mask)}
    return Built(
        rung=rung.name,
        precision=rung.precision,
        engine="openvino" if rung.method == "openvino" else "onnxruntime",
        providers=rung.providers,
        layout=source.layout,
        fused=counts[0],
        layers=counts[1],
        texts=tuple(parts),
        head="head.onnx",
        head_shapes=tuple((sides[name], name) for name in shapes),
    )
