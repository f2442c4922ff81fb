from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from trimodal.loading.passes.writer import MICROSOFT, OPSET, GraphWriter

INPUT = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 40])
OUTPUT = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 40])


def run(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})


def test_large_weights_lie_on_pages_and_small_ones_in_the_graph(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 40, 40)).astype(np.float32)
    with GraphWriter(tmp_path / "graph.onnx") as writer:
        first = writer.node("MatMul", ["x", writer.constant("first", values[0])], "h")
        second = writer.node("MatMul", [first, writer.constant("second", values[1].T)], "g")
        writer.node("Add", [second, writer.constant("shift", np.arange(40, dtype=np.float32))], "y")
        writer.save([INPUT], [OUTPUT])
    tensors = {t.name: t for t in onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph.initializer}
    places = {name: {entry.key: entry.value for entry in tensor.external_data} for name, tensor in tensors.items()}

    assert places == {
        "first": {"location": "graph.onnx.data", "offset": "0", "length": "6400"},
        "second": {"location": "graph.onnx.data", "offset": "8192", "length": "6400"},
        "shift": {},
    }
    x = np.ones((3, 40), np.float32)
    expected = x @ values[0] @ values[1].T + np.arange(40)
    np.testing.assert_allclose(run(tmp_path / "graph.onnx", x)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_graph_of_small_weights_is_one_file(tmp_path):
    with GraphWriter(tmp_path / "graph.onnx") as writer:
        writer.node("Add", ["x", writer.constant("shift", np.ones(40, np.float32))], "y")
        writer.save([INPUT], [OUTPUT])
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]
    np.testing.assert_array_equal(run(tmp_path / "graph.onnx", np.zeros((1, 40), np.float32))[0], np.ones((1, 40)))


def test_a_split_cuts_the_last_axis(tmp_path):
    with GraphWriter(tmp_path / "graph.onnx") as writer:
        assert list(writer.split("x", ["a", "b"], [30, 10])) == ["a", "b"]
        writer.save([INPUT], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")])
    x = np.arange(80, dtype=np.float32).reshape(2, 40)
    a, b = run(tmp_path / "graph.onnx", x)
    np.testing.assert_array_equal(np.concatenate([a, b], axis=1), x)
    assert b.shape == (2, 10)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, np.int64])
def test_weights_of_every_type_are_read_back(tmp_path, dtype):
    value = np.arange(6000).reshape(60, 100).astype(dtype)[:, ::2]  # not in one piece of memory
    with GraphWriter(tmp_path / "graph.onnx") as writer:
        writer.node("Identity", [writer.constant("value", value)], "y")
        writer.save([], [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(value.dtype), None)])
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {})[0], value)


def test_a_graph_names_its_versions(tmp_path):
    with GraphWriter(tmp_path / "graph.onnx") as writer:
        writer.node("FastGelu", ["x"], "y", domain=MICROSOFT)
        writer.save([INPUT], [OUTPUT])
    model = onnx.load(tmp_path / "graph.onnx")
    assert {item.domain: item.version for item in model.opset_import} == {"": OPSET, MICROSOFT: 1}
    assert run(tmp_path / "graph.onnx", np.zeros((1, 40), np.float32))[0].tolist() == [[0.0] * 40]


def test_the_weights_file_is_closed_when_writing_fails(tmp_path):
    writer = GraphWriter(tmp_path / "graph.onnx")
    with pytest.raises(AttributeError), writer:
        writer.constant("no array", None)
    assert writer._file.closed
    assert not (tmp_path / "graph.onnx").exists()
