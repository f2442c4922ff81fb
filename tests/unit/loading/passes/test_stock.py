from __future__ import annotations

import importlib.util
import logging
import os
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest

from model_directories import Graph, edit_graph, write_graph
from trimodal.errors import OptimizationError
from trimodal.loading.passes.stock import Fusion, count_fused, fuse_stock

torch = pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("sympy", reason="sympy is not installed, and ONNX Runtime's optimizer needs it")

from transformers import BertConfig  # noqa: E402

from trimodal.network import (  # noqa: E402
    NetworkConfig,
    TrimodalNetwork,
    export_onnx,
    input_names,
    synthetic_inputs,
)

HEADS, HIDDEN, LAYERS = 2, 32, 4
TEXTS, FIELDS = ("chat", "events"), ("amount", "count")
NAMES = input_names(TEXTS, FIELDS)
AXES = {0: "B", 1: "C", 2: "T"}
SIZES = {"heads": HEADS, "hidden": HIDDEN, "layers": LAYERS}


def network(layers=LAYERS // 2):
    torch.manual_seed(3)
    bert = BertConfig(
        vocab_size=90,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,  # large weights, so that a wrong mask or position would show
    )
    return TrimodalNetwork(NetworkConfig(bert, bert, len(FIELDS), 8, 20, 2)).eval()


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """A tiny network and its export with eager attention."""
    path = tmp_path_factory.mktemp("eager") / "model.onnx"
    model = network()
    export_onnx(model, TEXTS, FIELDS, path)
    return model, path


@pytest.fixture(scope="module")
def sdpa(tmp_path_factory):
    """The same network, exported with scaled dot product attention."""
    path = tmp_path_factory.mktemp("sdpa") / "model.onnx"
    model = network()
    for text in (model.primary_text_subnetwork, model.secondary_text_subnetwork):
        text.bert.set_attn_implementation("sdpa")
    example = synthetic_inputs(model.config, (2, 3, 7), (2, 4, 9), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(array) for array in example),
            os.fspath(path),
            input_names=NAMES,
            output_names=["probs"],
            dynamic_axes={name: {axis: f"{name}_{AXES[axis]}" for axis in AXES} for name in NAMES[:4]},
            opset_version=17,
            dynamo=False,
        )
    return path


def scores(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(NAMES, inputs, strict=True)))[0]


def test_every_layer_of_an_eager_export_is_fused(eager, tmp_path):
    fusion = fuse_stock(eager[1], tmp_path / "fused.onnx", **SIZES)

    assert (fusion.attention, fusion.layers) == (4, 4)
    assert fusion.complete
    assert not fusion.partial
    assert fusion.operators == {
        "Attention": 4,
        "BiasGelu": 4,
        "EmbedLayerNormalization": 2,
        "LayerNormalization": 9,  # two of each layer, one of the tabular branch; none is joined with its addition
    }
    assert count_fused(tmp_path / "fused.onnx") == fusion.operators
    assert count_fused(eager[1]).keys() <= {"LayerNormalization"}


@pytest.mark.parametrize(
    ("first", "second"), [((1, 1, 2), (1, 1, 5)), ((2, 1, 32), (2, 3, 9)), ((3, 2, 11), (3, 1, 40))]
)
def test_a_fused_graph_gives_the_answers_of_the_network(eager, tmp_path, first, second):
    model, path = eager
    fuse_stock(path, tmp_path / "fused.onnx", **SIZES)
    inputs = synthetic_inputs(model.config, first, second, seed=1)

    fused = scores(tmp_path / "fused.onnx", inputs)

    assert np.abs(fused - model.predict(inputs)).max() < 1e-4
    assert np.abs(fused - scores(path, inputs)).max() < 1e-4
    assert (inputs[1] == 0).any() or first == (1, 1, 2)


def test_a_chunk_of_padding_alone_counts_as_before(eager, tmp_path):
    model, path = eager
    fuse_stock(path, tmp_path / "fused.onnx", **SIZES)
    inputs = synthetic_inputs(model.config, (1, 2, 8), (1, 2, 8), seed=2)
    inputs[0][0, 1] = inputs[1][0, 1] = 0

    assert np.abs(scores(tmp_path / "fused.onnx", inputs) - scores(path, inputs)).max() < 1e-4


def test_the_weights_lie_beside_the_graph_and_replace_older_ones(eager, tmp_path):
    target = tmp_path / "fused.onnx"
    fuse_stock(eager[1], target, **SIZES)
    size = (tmp_path / "fused.onnx.data").stat().st_size

    fuse_stock(eager[1], target, **SIZES)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["fused.onnx", "fused.onnx.data"]
    assert (tmp_path / "fused.onnx.data").stat().st_size == size > target.stat().st_size


def test_an_sdpa_export_raises_with_the_counts_and_the_cause(sdpa, tmp_path):
    with pytest.raises(OptimizationError, match=r"fused 0 of 4 attention layers: .*eager attention.* 4 BiasGelu"):
        fuse_stock(sdpa, tmp_path / "fused.onnx", **SIZES)


def test_a_graph_with_one_layer_of_another_form_is_fused_partially(eager, tmp_path):
    source = tmp_path / "model.onnx"
    source.write_bytes(eager[1].read_bytes())
    edit_graph(source, _relax_the_first_softmax)

    fusion = fuse_stock(source, tmp_path / "fused.onnx", **SIZES)

    assert (fusion.attention, fusion.layers) == (3, 4)
    assert fusion.partial
    assert not fusion.complete


def _relax_the_first_softmax(model):
    """Puts an operator that does nothing between a softmax and its reader."""
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    place = list(model.graph.node).index(softmax)
    relu = onnx.helper.make_node("Relu", ["weights"], list(softmax.output))
    softmax.output[0] = "weights"
    model.graph.node.insert(place + 1, relu)


def test_a_graph_that_is_not_bert_raises(tmp_path):
    write_graph(tmp_path / "model.onnx", Graph())

    with pytest.raises(OptimizationError, match=r"fused 0 of 2 attention layers.*: none\)"):
        fuse_stock(tmp_path / "model.onnx", tmp_path / "fused.onnx", heads=2, hidden=8, layers=2)


@pytest.mark.parametrize("content", [None, b"", b"not a graph at all", "half"], ids=["absent", "empty", "text", "half"])
def test_a_damaged_graph_raises(eager, tmp_path, content):
    source = tmp_path / "model.onnx"
    if content is not None:
        whole = eager[1].read_bytes()
        source.write_bytes(whole[: len(whole) // 2] if content == "half" else content)

    with pytest.raises(OptimizationError) as caught:
        fuse_stock(source, tmp_path / "fused.onnx", **SIZES)

    assert str(tmp_path) not in str(caught.value)


def test_a_target_that_cannot_be_written_raises(eager, tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is needed")

    with pytest.raises(OptimizationError, match=r"optimizer failed \(\w+Error\)"):
        fuse_stock(eager[1], tmp_path / "taken" / "fused.onnx", **SIZES)


def test_wrong_heads_are_not_guessed_right(eager, tmp_path):
    with pytest.raises(OptimizationError, match="fused 0 of 4"):
        fuse_stock(eager[1], tmp_path / "fused.onnx", heads=HEADS, hidden=HIDDEN + 2, layers=LAYERS)


def test_the_optimizer_is_silent_and_logs_again_later(eager, tmp_path, caplog, capfd):
    fuse_stock(eager[1], tmp_path / "fused.onnx", **SIZES)  # its modules are imported now
    caplog.set_level(logging.DEBUG)
    capfd.readouterr()

    fuse_stock(eager[1], tmp_path / "fused.onnx", **SIZES)

    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("fusion_attention").isEnabledFor(logging.INFO)


def test_without_sympy_it_is_named(eager, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "trimodal.loading.passes.stock.find_spec", lambda name: None if name == "sympy" else found(name)
    )

    with pytest.raises(OptimizationError, match="needs the package sympy"):
        fuse_stock(eager[1], tmp_path / "fused.onnx", **SIZES)


def test_nothing_fused_is_neither_complete_nor_partial():
    fusion = Fusion(0, 4, {})
    assert not fusion.complete
    assert not fusion.partial
