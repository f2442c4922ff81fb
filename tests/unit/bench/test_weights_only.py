from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from trimodal.bench.weights_only import pack_int8, quantize_weights

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 96)).astype(np.float32)
WEIGHT = RNG.normal(size=(96, 40)).astype(np.float32) * RNG.uniform(0.01, 3, (96, 1)).astype(np.float32)


def graph():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N, T] ids) => (float[N, T, K] first, float[N, T, K] second) {
            rows = Gather(table, ids)
            first = MatMul(rows, weight)
            second = MatMul(rows, weight)
        }"""
    )
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(TABLE, "table"), onnx.numpy_helper.from_array(WEIGHT, "weight")]
    )
    return model


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (4, 0.15)])
def test_weights_in_few_bits_give_nearly_the_same(bits, error):
    model = graph()

    assert quantize_weights(model, bits) == 2

    assert {node.op_type for node in model.graph.node} == {"Gather", "Cast", "Mul", "MatMulNBits"}
    assert {tensor.data_type for tensor in model.graph.initializer} <= {
        onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT,
    }  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = RNG.integers(0, 50, (2, 7))
    first, second = session.run(None, {"ids": ids})
    expected = TABLE[ids] @ WEIGHT
    assert np.abs(first - expected).max() < error * np.abs(expected).max()
    np.testing.assert_array_equal(first, second)


def test_packed_weights_are_read_back():
    packed, scale = pack_int8(WEIGHT, 64)

    assert packed.shape == (40, 2, 64)
    back = (packed.astype(np.float32) - 128) * scale.reshape(40, 2, 1)
    assert np.abs(back.reshape(40, -1)[:, :96].T - WEIGHT).max() <= np.abs(WEIGHT).max() / 127 / 2 * 1.001
