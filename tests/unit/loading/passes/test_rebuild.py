from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from trimodal.errors import OptimizationError
from trimodal.loading.passes.rebuild import IDS, Rebuilt, float_product, position_table, rebuild_encoder

pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_networks import (
    HIDDEN,
    LAYERS,
    NAMES,
    TOKENS,
    OneText,
    bert,
    original,
    random_ids,
    session,
    spread,
    text_feed,
)

PAGE = 4096
LENGTHS = (2, 3, 17, TOKENS)


def rebuild(export, side, path):
    encoder = export.encoder(side)
    positions = position_table(export.view, encoder, TOKENS)
    return rebuild_encoder(export.view, encoder, positions, path, float_product)


@pytest.mark.parametrize("side", [0, 1])
def test_a_rebuilt_encoder_gives_the_originals_output(export, side, tmp_path):
    rebuilt = rebuild(export, side, tmp_path / "encoder.onnx")
    pooled = export.encoder(side).pooled
    before, after = original(export.view, pooled), session(tmp_path / "encoder.onnx")

    assert rebuilt == Rebuilt(layers=LAYERS[side], attention=LAYERS[side])
    for tokens in LENGTHS:
        for rows in (1, 3):
            ids = random_ids(tokens, rows, tokens)
            (expected,) = before.run([pooled], text_feed(ids))
            (given,) = after.run([pooled], {IDS: ids})
            assert given.shape == (rows, HIDDEN)
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"hidden_act": "gelu_new"}, {"num_attention_heads": 1}])
@pytest.mark.parametrize("pooler", [True, False])
def test_other_encoders_give_the_originals_output(tmp_path, changes, pooler):
    export = spread(OneText(bert(2, **changes), pooler=pooler)).export(tmp_path / "model.onnx")
    rebuild(export, 0, tmp_path / "encoder.onnx")
    pooled = export.encoder(0).pooled
    ids = random_ids(1, 3, 9)
    feed = {NAMES[0]: ids, NAMES[1]: np.ones_like(ids)}

    (expected,) = original(export.view, pooled).run([pooled], feed)
    (given,) = session(tmp_path / "encoder.onnx").run([pooled], {IDS: ids})

    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(given, expected, rtol=0, atol=2e-5)  # without tanh the values are larger


def test_the_last_layer_is_computed_for_the_first_token_alone(plain, tmp_path):
    rebuild(plain, 1, tmp_path / "encoder.onnx")
    model = onnx.load(tmp_path / "encoder.onnx")
    nodes = {output: node for node in model.graph.node for output in node.output}
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    weights = {name: value for name, value in shapes.items() if name.endswith("/weight")}

    assert weights["layer0/query_key_value/weight"] == [HIDDEN, 3 * HIDDEN]
    assert weights["layer2/key_value/weight"] == [HIDDEN, 2 * HIDDEN]
    assert weights["layer2/first_query/weight"] == [HIDDEN, HIDDEN]
    assert "layer2/query_key_value/weight" not in weights
    first = nodes["layer2/first"]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}
    assert (first.op_type, [constants[name] for name in first.input[1:]]) == ("Slice", [[0], [1], [1]])
    assert nodes["layer2/first_query/product"].input[0] == "layer2/first"
    assert "layer2/first" in nodes["layer2/attended"].input

    states = ["layer1/output_norm", "layer2/context", "layer2/inner/sum", "layer2/output_norm"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in states)
    values = session(model).run(states, {IDS: random_ids(0, 2, 9)})
    assert [value.shape[1] for value in values] == [9, 1, 1, 1]


def test_weights_lie_beside_the_graph_on_whole_pages(plain, tmp_path):
    rebuild(plain, 0, tmp_path / "encoder.onnx")
    model = onnx.load(tmp_path / "encoder.onnx", load_external_data=False)
    external = {}
    for tensor in model.graph.initializer:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        if facts:
            external[tensor.name] = facts
        else:
            assert len(tensor.raw_data) <= 1024
    size = (tmp_path / "encoder.onnx.data").stat().st_size

    assert {"words", "positions", "layer0/inner/weight", "pooler/weight"} <= external.keys()
    for facts in external.values():
        assert facts["location"] == "encoder.onnx.data"
        assert int(facts["offset"]) % PAGE == 0
        assert int(facts["offset"]) + int(facts["length"]) <= size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.onnx", "encoder.onnx.data"]


def test_the_positions_are_those_of_the_network(export):
    from tiny_networks import tiny_network

    table = tiny_network().primary_text_subnetwork.bert.embeddings
    expected = table.position_embeddings.weight + table.token_type_embeddings.weight[0]
    found = position_table(export.view, export.encoder(0), TOKENS)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-6)


def test_more_tokens_than_the_network_has_positions_for_raise(plain):
    with pytest.raises(OptimizationError, match=f"embeddings of {TOKENS + 1} tokens cannot be computed"):
        position_table(plain.view, plain.encoder(0), TOKENS + 1)


def test_embeddings_that_read_the_mask_raise(tmp_path):
    class Masked(OneText):
        def forward(self, ids, mask):
            output = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=mask)
            return self.head(output.pooler_output)

    export = spread(Masked(bert())).export(tmp_path / "model.onnx")
    with pytest.raises(OptimizationError, match="depend on more than the token ids"):
        position_table(export.view, export.encoder(0), 8)


def test_embeddings_whose_addition_depends_on_the_words_raise(tmp_path):
    class Typed(OneText):
        def forward(self, ids, mask):
            output = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=(ids > 0).long())
            return self.head(output.pooler_output)

    export = spread(Typed(bert())).export(tmp_path / "model.onnx")
    with pytest.raises(OptimizationError, match="depends on the words"):
        position_table(export.view, export.encoder(0), 8)


def test_an_encoder_whose_other_tokens_are_read_raises(plain, tmp_path):
    encoder = replace(plain.encoder(0), sequence=True)
    positions = np.zeros((TOKENS, HIDDEN), np.float32)
    with pytest.raises(OptimizationError, match="whole sequence"):
        rebuild_encoder(plain.view, encoder, positions, tmp_path / "encoder.onnx", float_product)
    assert list(tmp_path.iterdir()) == []
