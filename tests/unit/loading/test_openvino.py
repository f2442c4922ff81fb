from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model_directories import FIELDS, PRIMARY, SECONDARY, VOCABULARY, Graph, make_model, write_graph
from trimodal.errors import OptimizationError
from trimodal.loading import openvino as module
from trimodal.loading.openvino import open_openvino

pytest.importorskip("openvino", reason="openvino is not installed: the second engine is optional")


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "model.onnx"
    write_graph(path, Graph())
    return path


def opened(path, **changes):
    return open_openvino(path, **{"precision": "fp32", "threads": 2, "cache_dir": None, **changes})


def feed(batch, first, second, seed=0):
    """Random inputs, padded on the right, for the two texts' `(C, T)`."""
    random = np.random.default_rng(seed)
    inputs = {}
    for name, shape in ((PRIMARY, first), (SECONDARY, second)):
        lengths = random.integers(1, shape[1], size=(batch, shape[0], 1), endpoint=True)
        mask = (np.arange(shape[1]) < lengths).astype(np.int64)
        inputs[f"{name}_input_ids"] = random.integers(1, len(VOCABULARY), size=mask.shape) * mask
        inputs[f"{name}_attention_mask"] = mask
    return inputs | {name: random.normal(size=(batch, 1)).astype(np.float32) for name in FIELDS}


def expected(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probs"], inputs)[0]


@pytest.mark.parametrize(
    ("batch", "first", "second"), [(1, (1, 3), (1, 17)), (2, (3, 16), (1, 1)), (5, (2, 7), (4, 9))]
)
def test_answers_are_those_of_onnx_runtime(graph, batch, first, second):
    inputs = feed(batch, first, second)

    (probs,) = opened(graph).run(["probs"], inputs)

    assert probs.dtype == np.float32
    assert np.abs(probs - expected(graph, inputs)).max() < 1e-4


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The export of a tiny network with two real BERT encoders."""
    torch = pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from trimodal.network import NetworkConfig, TrimodalNetwork, export_onnx

    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("bert") / "model.onnx"
    network = TrimodalNetwork(NetworkConfig(config, config, len(FIELDS), 8, 20, 2)).eval()
    export_onnx(network, (PRIMARY, SECONDARY), FIELDS, path)
    return path


def test_bert_encoders_give_the_answers_of_onnx_runtime(bert):
    session = opened(bert)
    for seed, (batch, first, second) in enumerate([(1, (1, 5), (1, 40)), (3, (2, 32), (1, 9)), (2, (1, 48), (3, 2))]):
        inputs = feed(batch, first, second, seed)
        assert np.abs(session.run(["probs"], inputs)[0] - expected(bert, inputs)).max() < 1e-4


def test_one_session_takes_texts_of_any_length_in_any_order(graph):
    session = opened(graph)
    for seed, (first, second) in enumerate([((1, 4), (1, 9)), ((3, 16), (2, 5)), ((1, 4), (1, 9)), ((1, 1), (1, 1))]):
        inputs = feed(2, first, second, seed)
        assert np.abs(session.run(["probs"], inputs)[0] - expected(graph, inputs)).max() < 1e-4


def test_four_threads_at_once_get_their_own_answers(graph):
    session = opened(graph)
    feeds = [feed(1 + seed % 3, (1 + seed % 2, 2 + seed), (1, 20 - seed), seed) for seed in range(16)]
    answers = [expected(graph, inputs) for inputs in feeds]

    def score(index):
        return session.run(["probs"], feeds[index % 16])[0]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(score, range(400)))

    worst = max(np.abs(result - answers[index % 16]).max() for index, result in enumerate(results))
    assert worst < 1e-4


def test_an_answer_stays_when_the_session_runs_again(graph):
    session = opened(graph)
    (first,) = session.run(["probs"], feed(2, (1, 4), (1, 4), seed=1))
    kept = first.copy()

    (second,) = session.run(["probs"], feed(2, (1, 4), (1, 4), seed=2))

    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_outputs_come_in_the_order_asked(tmp_path):
    shape = ["B", 2]
    model = make_model(
        [helper.make_node("Add", ["x", "x"], ["sum"]), helper.make_node("Mul", ["x", "x"], ["square"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("sum", "square")],
        {},
    )
    onnx.save(model, tmp_path / "model.onnx")
    session = opened(tmp_path / "model.onnx")
    x = np.array([[3.0, 4.0]], np.float32)

    square, total = session.run(["square", "sum"], {"x": x})

    np.testing.assert_array_equal(square, [[9.0, 16.0]])
    np.testing.assert_array_equal(total, [[6.0, 8.0]])
    assert len(session.run(["square"], {"x": x})) == 1
    with pytest.raises(KeyError):
        session.run(["cube"], {"x": x})


@pytest.mark.parametrize("change", [lambda inputs: inputs.pop("amount"), lambda inputs: inputs.update(other=1)])
def test_a_feed_that_does_not_fit_is_refused_instead_of_taking_an_older_value(graph, change):
    session = opened(graph)
    inputs = feed(1, (1, 4), (1, 4))
    session.run(["probs"], inputs)
    change(inputs)

    with pytest.raises(ValueError, match="the feed and the graph's inputs differ"):
        session.run(["probs"], inputs)


def test_a_call_that_fails_spoils_no_later_one(graph):
    session = opened(graph)
    inputs = feed(2, (1, 4), (1, 4))

    with pytest.raises(RuntimeError):
        session.run(["probs"], inputs | {"amount": np.zeros((2, 3), np.float32)})

    assert np.abs(session.run(["probs"], inputs)[0] - expected(graph, inputs)).max() < 1e-4


def test_the_precision_is_read_back(graph):
    assert opened(graph).precision == "fp32"


def test_bf16_is_what_the_cpu_has_or_an_error_that_names_the_feature(graph):
    capabilities = module._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" in capabilities:
        assert opened(graph, precision="bf16").precision == "bf16"
    else:
        with pytest.raises(OptimizationError, match=r"no bf16 products \(amx_bf16 or avx512_bf16\)"):
            opened(graph, precision="bf16")


def test_int8_of_a_graph_that_is_not_quantized_is_an_error(graph):
    with pytest.raises(OptimizationError, match="OpenVINO gave fp32 instead of int8"):
        opened(graph, precision="int8")


def test_int8_of_a_quantized_graph_is_read_back(tmp_path):
    random = np.random.default_rng(4)
    constants = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(128, np.uint8),
        "weights": random.integers(-63, 64, (64, 32)).astype(np.int8),  # more would saturate where there is no VNNI
        "scales": np.full(32, 0.01, np.float32),
        "zeros": np.zeros(32, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["matrix"], axis=1),
        helper.make_node("MatMul", ["rounded", "matrix"], ["y"]),
    ]
    model = make_model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 32])],
        constants,
    )
    onnx.save(model, tmp_path / "model.onnx")
    x = random.uniform(-2.5, 2.5, size=(3, 64)).astype(np.float32)

    session = opened(tmp_path / "model.onnx", precision="int8")

    assert session.precision == "int8"
    weights = constants["weights"] * constants["scales"]
    assert np.abs(session.run(["y"], {"x": x})[0] - (np.round(x / 0.02) * 0.02) @ weights).max() < 0.05
    with pytest.raises(OptimizationError, match="OpenVINO gave int8 instead of fp32"):
        opened(tmp_path / "model.onnx")


def test_compiled_graphs_are_kept_in_the_cache(graph, tmp_path):
    inputs = feed(1, (1, 4), (1, 9))

    first = opened(graph, cache_dir=tmp_path / "cache")
    second = opened(graph, cache_dir=tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir())
    assert second._compiled.get_property("LOADED_FROM_CACHE")
    np.testing.assert_array_equal(first.run(["probs"], inputs)[0], second.run(["probs"], inputs)[0])


def test_a_cache_that_cannot_be_used_is_done_without(graph, tmp_path):
    (tmp_path / "file").touch()
    inputs = feed(1, (1, 4), (1, 9))

    session = opened(graph, cache_dir=tmp_path / "file" / "cache")

    assert np.abs(session.run(["probs"], inputs)[0] - expected(graph, inputs)).max() < 1e-4


@pytest.mark.parametrize(
    ("content", "cause"),
    [(None, "Could not open the file"), (b"", "Unable to read"), (b"\x08\x08not a graph", "parsed|Unable to read")],
    ids=["absent", "empty", "damaged"],
)
def test_a_graph_that_cannot_be_compiled_is_an_error_of_one_line(tmp_path, content, cause):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(OptimizationError, match=rf"OpenVINO cannot compile model\.onnx: .*({cause})") as caught:
        opened(path, cache_dir=tmp_path / "cache")

    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_an_operator_that_openvino_does_not_know_is_named(tmp_path):
    shape = ["B", 2]
    model = make_model(
        [helper.make_node("Nonsense", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        {},
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "model.onnx")

    with pytest.raises(OptimizationError, match=r"No conversion rule found for operations: com\.microsoft\.Nonsense"):
        opened(tmp_path / "model.onnx")


def test_without_openvino_the_error_says_what_to_install(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    module._core.cache_clear()

    with pytest.raises(OptimizationError, match=r"not installed; install requirements/openvino\.txt"):
        opened(graph)

    assert module._core.cache_info().currsize == 0


def test_its_telemetry_is_never_imported(graph, tmp_path):
    package = tmp_path / "path" / "openvino_telemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('telemetry was imported')")
    home = tmp_path / "home"
    home.mkdir()
    script = """
        import sys
        from pathlib import Path
        from trimodal.loading.openvino import open_openvino
        assert "openvino" not in sys.modules
        open_openvino(Path(sys.argv[1]), precision="fp32", threads=1, cache_dir=None)
        print("opened")
    """
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), graph],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.stdout == "opened\n", done.stderr
    assert list(home.iterdir()) == []


def test_the_first_calls_of_a_process_may_come_at_once(graph, tmp_path):
    np.savez(tmp_path / "feed.npz", **feed(1, (1, 4), (1, 9)))
    script = """
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from threading import Barrier
        import numpy as np
        from trimodal.loading.openvino import open_openvino
        feed, barrier = dict(np.load(sys.argv[2])), Barrier(8)

        def score(_):
            barrier.wait()
            session = open_openvino(Path(sys.argv[1]), precision="fp32", threads=1, cache_dir=None)
            barrier.wait()
            return session.run(["probs"], feed)[0]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(score, range(8)))
        print(all(np.array_equal(answer, answers[0]) for answer in answers))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), graph, tmp_path / "feed.npz"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.stdout == "True\n", done.stderr
