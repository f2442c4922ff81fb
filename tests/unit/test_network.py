from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import BertConfig  # noqa: E402

from trimodal.network import (  # noqa: E402
    PARITY_TOLERANCE,
    NetworkConfig,
    NetworkError,
    TrimodalNetwork,
    check_parity,
    export_onnx,
    input_names,
    load_network,
    synthetic_inputs,
)

TEXTS = ("chat", "events")
FIELDS = ("amount", "count", "flag")
OUTSIDE_THE_ENCODERS = {
    "final_merge_network.2.bias",
    "final_merge_network.2.weight",
    "final_merge_network.5.bias",
    "final_merge_network.5.weight",
    "primary_text_subnetwork.head_layer.1.bias",
    "primary_text_subnetwork.head_layer.1.weight",
    "secondary_text_subnetwork.head_layer.1.bias",
    "secondary_text_subnetwork.head_layer.1.weight",
    "tab_subnetwork.embedding_layer.0.bias",
    "tab_subnetwork.embedding_layer.0.weight",
    "tab_subnetwork.embedding_layer.1.bias",
    "tab_subnetwork.embedding_layer.1.weight",
}


def bert(**changes):
    sizes = {
        "vocab_size": 90,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # large weights, so that a wrong mask or position would show
    }
    return BertConfig(**(sizes | changes))


@pytest.fixture
def network():
    torch.manual_seed(5)
    config = NetworkConfig(bert(), bert(hidden_size=24, num_attention_heads=4), 3, 8, 20, 2)
    return TrimodalNetwork(config).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(5)
    config = NetworkConfig(bert(), bert(hidden_size=24, num_attention_heads=4), 3, 8, 20, 2)
    network = TrimodalNetwork(config).eval()
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    difference = export_onnx(network, TEXTS, FIELDS, path)
    return network, path, difference


def test_state_dict_has_the_names_of_todays_model_directories(network):
    names = set(network.state_dict())
    encoders = {name for name in names if re.match(r"(primary|secondary)_text_subnetwork\.bert\.", name)}
    assert names - encoders == OUTSIDE_THE_ENCODERS
    assert "primary_text_subnetwork.bert.encoder.layer.1.attention.self.query.weight" in encoders
    assert "secondary_text_subnetwork.bert.embeddings.word_embeddings.weight" in encoders
    assert "secondary_text_subnetwork.bert.pooler.dense.bias" in encoders
    assert len(encoders) == 2 * (5 + 2 * 16 + 2)


def test_state_dict_loads_with_the_training_loss_in_it(network, tmp_path):
    state = network.state_dict() | {
        "loss_op.weight": torch.ones(2),
        "class_weights_tensor": torch.ones(2),
    }
    path = tmp_path / "model.pth"
    torch.save(state, path)
    config = network.config
    loaded = load_network(path, config.primary.to_dict(), config.secondary.to_dict())
    inputs = synthetic_inputs(config, (2, 1, 6), (2, 2, 9), seed=1)
    np.testing.assert_array_equal(loaded.predict(inputs), network.predict(inputs))
    assert not loaded.training
    assert (loaded.config.branch_dim, loaded.config.merge_dim, loaded.config.fields) == (8, 20, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("final_merge_network.5.weight"), "another kind of network"),
        (lambda state: state.pop("final_merge_network.2.bias"), "does not fit"),
        (lambda state: state.update(gate=torch.ones(1)), "does not fit"),
    ],
)
def test_another_network_is_refused(network, change, message):
    state = dict(network.state_dict())
    change(state)
    with pytest.raises(NetworkError, match=message):
        TrimodalNetwork.from_state_dict(state, network.config.primary, network.config.secondary)


def test_file_that_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"not a zip")
    with pytest.raises(NetworkError, match=r"model\.pth is not a state dict"):
        load_network(path, {}, {})


def test_export_reproduces_the_network(exported):
    _, _, difference = exported
    assert difference <= PARITY_TOLERANCE


def test_export_has_the_names_and_the_dynamic_axes(exported):
    _, path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {node.name: node.shape for node in session.get_inputs()}
    assert list(inputs) == input_names(TEXTS, FIELDS)
    assert inputs["chat_input_ids"] == ["batch", "primary_chunks", "primary_tokens"]
    assert inputs["events_attention_mask"] == ["batch", "secondary_chunks", "secondary_tokens"]
    assert inputs["flag"] == ["batch", 1]
    assert [(node.name, node.shape) for node in session.get_outputs()] == [("probs", ["batch", 2])]


@pytest.mark.parametrize("shapes", [((1, 1, 3), (1, 1, 60)), ((5, 4, 31), (5, 1, 2)), ((2, 2, 64), (2, 3, 64))])
def test_export_runs_at_shapes_that_it_was_not_traced_with(exported, shapes):
    network, path, _ = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = synthetic_inputs(network.config, *shapes, seed=11)
    (probs,) = session.run(None, dict(zip(input_names(TEXTS, FIELDS), inputs, strict=True)))
    assert probs.shape == (shapes[0][0], 2)
    np.testing.assert_allclose(probs, network.predict(inputs), atol=PARITY_TOLERANCE, rtol=0)


def test_padding_does_not_change_a_score(exported):
    network, _, _ = exported
    inputs = synthetic_inputs(network.config, (1, 1, 7), (1, 1, 5), seed=3)
    inputs[1][:] = inputs[3][:] = 1
    padded = [np.pad(a, ((0, 0), (0, 0), (0, 9))) for a in inputs[:4]] + inputs[4:]
    np.testing.assert_allclose(network.predict(padded), network.predict(inputs), atol=1e-6)


def test_another_models_export_does_not_pass_for_this_ones(exported):
    network, path, _ = exported
    torch.manual_seed(6)
    other = TrimodalNetwork(network.config).eval()
    with pytest.raises(NetworkError, match="differs from PyTorch"):
        check_parity(other, path)


def test_export_keeps_attention_in_a_form_that_fusion_finds(exported):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    _, path, _ = exported
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("Softmax") == 2 * 2 + 1  # one for each attention, one for the classes
    assert "IsNaN" not in operators  # what an SDPA export guards its softmax with
