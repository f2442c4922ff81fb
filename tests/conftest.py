"""Settings of every test."""

from __future__ import annotations

import onnxruntime
from hypothesis import settings
from onnx import parser

# Deterministic by default: a red run means that the code changed. Search for new examples with
# `pytest --hypothesis-profile=explore`. No deadline: test machines are shared.
settings.register_profile("project", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("project")

# The first ONNX Runtime session of a process decides, once, whether its thread takes denormal numbers for zero
# (`session.set_denormal_as_zero`). Ours ask for it, and hypothesis cannot draw floats where that holds.
_GRAPH = '<ir_version: 8, opset_import: ["" : 17]> first (float[N] x) => (float[N] y) { y = Identity(x) }'
onnxruntime.InferenceSession(parser.parse_model(_GRAPH).SerializeToString(), providers=["CPUExecutionProvider"])
