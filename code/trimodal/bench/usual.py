"""The usual route to INT8: ONNX Runtime's own fusion, then `quantize_dynamic`, per channel.

The tools run in a process of their own (`python -m trimodal.bench.usual`): they take several times the model's
memory, and give back little of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trimodal.errors import OptimizationError
from trimodal.loading.build import read_heads
from trimodal.loading.facts import ModelFacts
from trimodal.loading.optimize import Subject

LIMIT_SECONDS = 600


def make_usual(subject: Subject, facts: ModelFacts, target: Path) -> None:
    """Writes the quantized graph.

    Raises:
        OptimizationError: the encoders differ in size, or the tools failed.
    """
    known = [encoder for encoder in facts.encoders if encoder.heads]
    if len({(encoder.heads, encoder.hidden) for encoder in known}) > 1:
        raise OptimizationError("the encoders differ in size, and ONNX Runtime's optimizer takes one size")
    graph = subject.artifacts.graph
    heads, hidden = (known[0].heads, known[0].hidden) if known else read_heads(graph.parent)
    code = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "trimodal.bench.usual", str(graph), str(target), str(heads), str(hidden)]
    try:
        done = subprocess.run(  # noqa: S603  our own module
            command, env=environment, capture_output=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise OptimizationError(f"ONNX Runtime's tools took longer than {LIMIT_SECONDS} s") from err
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2].partition(":")[0]
        raise OptimizationError(f"ONNX Runtime's tools failed (status {done.returncode}, {last or 'no message'})")


def main(graph: Path, target: Path, heads: int, hidden: int) -> None:
    """Fuses and quantizes a graph."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    fused = target.with_name("usual-fused.onnx")
    optimize_model(str(graph), "bert", heads, hidden, opt_level=0).save_model_to_file(str(fused))
    # The type of tensors whose type the fused graph does not tell; without it the tool gives up.
    types = {"DefaultTensorType": TensorProto.FLOAT}
    quantize_dynamic(fused, target, per_channel=True, weight_type=QuantType.QInt8, extra_options=types)
    fused.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
