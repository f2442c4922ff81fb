from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from model_directories import Graph, write_graph
from trimodal.errors import OptimizationError
from trimodal.loading.passes.anchors import bias, linear_shape, weight
from trimodal.loading.passes.encoders import find_encoder
from trimodal.loading.passes.view import GraphView

torch = pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormModel  # noqa: E402

from tiny_networks import (  # noqa: E402
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    NAMES,
    VOCABULARY,
    OneText,
    bert,
    spread,
    tiny_network,
)

IDS = NAMES[0]


def one_text(tmp_path, *, pooler=True, **changes):
    return spread(OneText(bert(**changes), pooler=pooler)).export(tmp_path / "model.onnx")


@pytest.mark.parametrize("side", [0, 1])
def test_the_facts_found_are_those_of_the_configuration(export, side):
    encoder = export.encoder(side)

    assert len(encoder.layers) == LAYERS[side]
    assert (encoder.heads, encoder.hidden, encoder.inner) == (HEADS, HIDDEN, INNER)
    assert (encoder.vocabulary, encoder.activation, encoder.sequence) == (VOCABULARY, "gelu", False)
    assert encoder.pooler is not None
    assert [layer.attention_norm.epsilon for layer in encoder.layers] == [pytest.approx(1e-12)] * LAYERS[side]


@pytest.mark.parametrize("side", [0, 1])
def test_every_weight_has_its_role(export, side):
    network = tiny_network()
    module = (network.primary_text_subnetwork, network.secondary_text_subnetwork)[side].bert
    encoder = export.encoder(side)
    for found, layer in zip(encoder.layers, module.encoder.layer, strict=True):
        attention = layer.attention
        for linear, expected in (
            (found.query, attention.self.query),
            (found.key, attention.self.key),
            (found.value, attention.self.value),
            (found.output, attention.output.dense),
            (found.inner, layer.intermediate.dense),
            (found.outer, layer.output.dense),
        ):
            np.testing.assert_array_equal(weight(export.view, linear), expected.weight.detach().numpy().T)
            np.testing.assert_array_equal(bias(export.view, linear), expected.bias.detach().numpy())
        for norm, expected in (
            (found.attention_norm, attention.output.LayerNorm),
            (found.output_norm, layer.output.LayerNorm),
        ):
            np.testing.assert_array_equal(export.view.constant(norm.scale), expected.weight.detach().numpy())
            np.testing.assert_array_equal(export.view.constant(norm.bias), expected.bias.detach().numpy())
    np.testing.assert_array_equal(weight(export.view, encoder.pooler), module.pooler.dense.weight.detach().numpy().T)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_heads_are_read_from_the_graph(tmp_path, heads):
    view = one_text(tmp_path, num_attention_heads=heads).view
    assert find_encoder(view, IDS).heads == heads


@pytest.mark.parametrize(
    ("configured", "found"), [("relu", "relu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh")]
)
def test_the_activation_is_read_from_the_graph(tmp_path, configured, found):
    view = one_text(tmp_path, hidden_act=configured).view
    assert find_encoder(view, IDS).activation == found


@pytest.mark.parametrize("configured", ["silu", "tanh", "mish", "quick_gelu"])
def test_another_activation_is_refused_and_not_taken_for_one_that_it_contains(tmp_path, configured):
    view = one_text(tmp_path, hidden_act=configured).view
    with pytest.raises(OptimizationError, match="activation"):
        find_encoder(view, IDS)


def test_a_network_without_pooler_gives_its_first_token(tmp_path):
    view = one_text(tmp_path, pooler=False).view
    encoder = find_encoder(view, IDS)

    assert (encoder.pooler, encoder.sequence) == (None, False)
    assert view.producers[encoder.pooled].op_type == "Gather"


def test_equal_tensors_that_the_exporter_merged_are_found_through_identity(tmp_path):
    view = OneText(bert(2)).eval().export(tmp_path / "model.onnx").view  # every bias is zero, every scale one
    merged = {node.output[0] for node in view.nodes if node.op_type == "Identity" and node.input[0] in view.constants}
    encoder = find_encoder(view, IDS)

    assert {layer.output_norm.scale for layer in encoder.layers} & merged
    assert {layer.query.bias for layer in encoder.layers} & merged
    assert all((bias(view, layer.value) == 0).all() for layer in encoder.layers)
    assert all((view.constant(layer.output_norm.scale) == 1).all() for layer in encoder.layers)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_written_as_gemm_are_found(tmp_path, transposed):
    export = one_text(tmp_path, num_hidden_layers=2)
    expected = find_encoder(export.view, IDS)
    view = GraphView(with_gemm(export.view.model, transposed=transposed))
    encoder = find_encoder(view, IDS)

    assert (len(encoder.layers), encoder.heads, encoder.inner) == (2, HEADS, INNER)
    assert encoder.activation == "gelu"
    assert encoder.layers[0].inner.transposed is transposed
    assert linear_shape(view, encoder.layers[0].outer) == (INNER, HIDDEN)
    for found, before in zip(encoder.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(weight(view, found.key), weight(export.view, before.key))
        np.testing.assert_array_equal(bias(view, found.key), bias(export.view, before.key))


def with_gemm(model, *, transposed):
    """Writes products with a weight and their bias as Reshape, Gemm, Reshape, as some exporters do."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in changed.graph.initializer}
    readers = {name: node for node in changed.graph.node for name in node.input}
    nodes, merged = [], set()
    for node in changed.graph.node:
        name = node.output[0]
        if name in merged:
            continue
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        matrix = numpy_helper.to_array(weights[node.input[1]])
        add = readers[name]
        merged.add(add.output[0])
        (shift,) = [operand for operand in add.input if operand != name]
        values = {"flat": [-1, matrix.shape[0]], "last": [matrix.shape[1]]}
        weights[node.input[1]].CopyFrom(
            numpy_helper.from_array(np.ascontiguousarray(matrix.T if transposed else matrix), node.input[1])
        )
        changed.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.int64), f"{name}/{key}") for key, value in values.items()
        )
        nodes += [
            helper.make_node("Reshape", [node.input[0], f"{name}/flat"], [f"{name}/rows"]),
            helper.make_node("Gemm", [f"{name}/rows", node.input[1], shift], [f"{name}/gemm"], transB=int(transposed)),
            helper.make_node("Shape", [node.input[0]], [f"{name}/axes"], start=0, end=-1),
            helper.make_node("Concat", [f"{name}/axes", f"{name}/last"], [f"{name}/shape"], axis=0),
            helper.make_node("Reshape", [f"{name}/gemm", f"{name}/shape"], list(add.output)),
        ]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def test_a_graph_that_is_not_bert_raises_with_the_cause(tmp_path):
    write_graph(tmp_path / "model.onnx", Graph())
    view = GraphView(onnx.load(tmp_path / "model.onnx"))

    with pytest.raises(OptimizationError, match="not looked up in a table of embeddings"):
        find_encoder(view, "chat_input_ids")


def test_an_input_that_is_not_there_raises(plain):
    with pytest.raises(OptimizationError, match="not looked up"):
        find_encoder(plain.view, "summary_input_ids")


def test_a_network_that_normalizes_before_its_layers_raises(tmp_path):
    config = RobertaPreLayerNormConfig(**bert().to_dict() | {"pad_token_id": 0})
    module = OneText(bert())
    module.bert = RobertaPreLayerNormModel(config).eval()
    view = module.export(tmp_path / "model.onnx").view

    with pytest.raises(OptimizationError, match=r"attention layer|normalization"):
        find_encoder(view, IDS)


def test_a_layer_with_its_norm_before_the_addition_raises(plain):
    """The addition after the attention takes the norm's place, and the norm that of the addition."""
    model = onnx.ModelProto()
    model.CopyFrom(plain.view.model)
    layer = plain.encoder(0).layers[0]
    for node in model.graph.node:
        if layer.attention_norm.source in node.output:
            skipped = next(name for name in node.input if name != layer.output.output)
            node.input[:] = [skipped, skipped]

    with pytest.raises(OptimizationError, match="layer 0 is not that of BERT"):
        find_encoder(GraphView(model), NAMES[0])


def test_layers_of_unlike_activations_raise(tmp_path):
    module = spread(OneText(bert(2)))
    module.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()
    view = module.export(tmp_path / "model.onnx").view

    with pytest.raises(OptimizationError, match="different numbers of heads or activations"):
        find_encoder(view, IDS)


class MeanOfTokens(OneText):
    """Reads every token, beside the first one where `first` says so."""

    first = False

    def forward(self, ids, mask):
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = states.mean(dim=1)
        return torch.softmax(self.head(mean + states[:, 0] if self.first else mean), dim=-1)


def test_a_head_that_reads_every_token_is_told(tmp_path):
    module = MeanOfTokens(bert(), pooler=False)
    module.first = True
    assert find_encoder(spread(module).export(tmp_path / "model.onnx").view, IDS).sequence


def test_a_head_that_never_picks_the_first_token_raises(tmp_path):
    module = spread(MeanOfTokens(bert(), pooler=False))
    with pytest.raises(OptimizationError, match="first token"):
        find_encoder(module.export(tmp_path / "model.onnx").view, IDS)
