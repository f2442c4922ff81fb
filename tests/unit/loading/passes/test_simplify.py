from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from trimodal.errors import OptimizationError
from trimodal.loading.passes.simplify import simplify_graph

NOTHING = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }"""
SOMETHING = """
    <ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y)
    <float[3] shift = {1, 2, 3}>
    {
        same = Identity(x)
        again = Identity(same)
        moved = Add(again, shift)
        y = Tanh(moved)
    }
"""


def test_what_does_nothing_goes_and_the_result_stays(tmp_path):
    model = parser.parse_model(SOMETHING)
    untouched = model.SerializeToString()

    before, after = simplify_graph(model, tmp_path / "model.onnx")

    assert (before, after, len(onnx.load(tmp_path / "model.onnx").graph.node)) == (4, 2, 2)
    assert model.SerializeToString() == untouched
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_allclose(result, np.tanh([[2, 3, 4]] * 2), atol=1e-6)


def test_a_graph_in_which_nothing_changes_is_not_called_simplified(tmp_path):
    with pytest.raises(OptimizationError, match="nothing to simplify in 1 nodes"):
        simplify_graph(parser.parse_model(NOTHING), tmp_path / "model.onnx")

    assert list(tmp_path.iterdir()) == []
