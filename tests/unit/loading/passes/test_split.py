from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_directories import Graph, write_graph
from trimodal.errors import OptimizationError
from trimodal.loading.passes.split import Text, find_cuts, write_head, write_text_part
from trimodal.loading.passes.view import GraphView

torch = pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
pytest.importorskip("transformers", reason="transformers is not installed")

from torch import nn  # noqa: E402
from transformers import BertModel  # noqa: E402

from tiny_networks import HIDDEN, NAMES, TEXTS, bert, session, spread, trace  # noqa: E402

BOTH = [Text(f"{name}_input_ids", f"{name}_attention_mask") for name in TEXTS]
INPUTS = [*NAMES[:4], "amount"]


class Joined(nn.Module):
    """Two encoders over `[B, T]`, and a head that joins them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.berts = nn.ModuleList(BertModel(bert()) for _ in TEXTS)
        for one in self.berts:
            one.set_attn_implementation("eager")
        self.gate = nn.Linear(2 * HIDDEN, HIDDEN)
        self.query, self.pair = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2 * HIDDEN)
        self.last = nn.Linear(HIDDEN + 1, 2)

    def forward(self, ids, mask, other_ids, other_mask, amount):
        first, second = (
            self.berts[side](input_ids=i, attention_mask=m)
            for side, (i, m) in enumerate(((ids, mask), (other_ids, other_mask)))
        )
        joined = self.join(first, second, mask, other_mask)
        return torch.softmax(self.last(torch.cat([joined, amount], dim=1)), dim=-1)

    def join(self, first, second, _mask, _other_mask):
        gate = torch.sigmoid(self.gate(torch.cat([first.pooler_output, second.pooler_output], dim=1)))
        return gate * first.pooler_output + (1 - gate) * second.pooler_output


class CrossAttention(Joined):
    def join(self, first, second, _mask, other_mask):
        query, key, value = self.query(first.last_hidden_state), *self.pair(second.last_hidden_state).chunk(2, dim=-1)
        scores = (query @ key.transpose(1, 2)).masked_fill((other_mask == 0)[:, None], -1e4)
        states = torch.softmax(scores, dim=-1) @ value
        return states.mean(dim=1) + first.pooler_output * second.pooler_output


class MaskedMean(Joined):
    """Weighs each text by its share of all real tokens, which the masks alone tell."""

    def join(self, first, second, mask, other_mask):
        total = mask.sum(dim=1, keepdim=True) + other_mask.sum(dim=1, keepdim=True)
        return first.pooler_output / total + second.pooler_output


def export_joined(kind, folder):
    example = [torch.arange(10).reshape(2, 5), torch.ones(2, 5).long(), torch.arange(14).reshape(2, 7)]
    example += [torch.ones(2, 7).long(), torch.rand(2, 1)]
    return trace(spread(kind()), folder / "model.onnx", example, INPUTS)


def cut(view, folder):
    """Writes all three parts; returns the cuts by text, and the inputs that the head reads for shapes."""
    cuts = []
    for side, text in enumerate(BOTH):
        others = [name for name in view.inputs if name not in (text.ids, text.mask)]
        cuts.append(find_cuts(view, text, others))
        write_text_part(view, text, cuts[-1], folder / f"part{side}.onnx")
    shapes = write_head(view, dict.fromkeys(name for names in cuts for name in names), BOTH, folder / "head.onnx")
    return cuts, shapes


def compose(cuts, folder, feed):
    """Runs the parts one after the other."""
    values = dict(feed)
    for side, names in enumerate(cuts):
        part = session(folder / f"part{side}.onnx")
        given = {item.name: feed[item.name] for item in part.get_inputs()}
        values |= dict(zip(names, part.run(names, given), strict=True))
    head = session(folder / "head.onnx")
    return head.run(["probs"], {item.name: values[item.name] for item in head.get_inputs()})[0]


def joined_feed(first, second):
    random = np.random.default_rng(sum(first) + sum(second))
    feed = {}
    for text, shape in zip(BOTH, (first, second), strict=True):
        lengths = random.integers(2, shape[-1], size=shape[:-1], endpoint=True)
        feed[text.mask] = (np.arange(shape[-1]) < lengths[..., None]).astype(np.int64)
        feed[text.ids] = random.integers(1, 50, shape) * feed[text.mask]
    return feed | {name: random.normal(size=(first[0], 1)).astype(np.float32) for name in ("amount", "count")}


@pytest.mark.parametrize("kind", [Joined, CrossAttention])
def test_the_parts_of_any_head_give_the_answers_of_the_whole(kind, tmp_path):
    view = export_joined(kind, tmp_path).view
    cuts, shapes = cut(view, tmp_path)

    assert set(shapes) <= set(NAMES[:4])
    assert all(set(names).isdisjoint(INPUTS) for names in cuts)
    for first, second in (((1, 4), (1, 9)), ((3, 11), (3, 2))):
        feed = {name: value for name, value in joined_feed(first, second).items() if name in INPUTS}
        expected = session(view.model).run(["probs"], feed)[0]
        np.testing.assert_allclose(compose(cuts, tmp_path, feed), expected, rtol=0, atol=1e-6)
    head = {node.op_type for node in onnx.load(tmp_path / "head.onnx").graph.node}
    assert "Erf" not in head  # no layer of an encoder stays in the head


def test_the_parts_of_the_network_give_the_answers_of_the_whole(export, tmp_path):
    cuts, _ = cut(export.view, tmp_path)

    assert [len(names) for names in cuts] == [1, 1]
    for first, second in (((1, 1, 4), (1, 3, 9)), ((3, 2, 11), (3, 1, 2))):
        feed = joined_feed(first, second)
        expected = session(export.view.model).run(["probs"], feed)[0]
        np.testing.assert_allclose(compose(cuts, tmp_path, feed), expected, rtol=0, atol=1e-6)


def test_a_head_that_reads_the_mask_itself_is_refused(tmp_path):
    view = export_joined(MaskedMean, tmp_path).view
    encoders = {"a": None, "b": None}
    pooled = [node.output[0] for node in view.nodes if node.op_type == "Tanh"]
    assert len(pooled) == len(encoders)

    with pytest.raises(OptimizationError, match="reads a text itself"):
        write_head(view, dict.fromkeys(pooled), BOTH, tmp_path / "head.onnx")


def test_a_mask_that_the_head_reads_before_anything_is_made_of_it_is_refused(tmp_path):
    write_graph(tmp_path / "model.onnx", Graph(chunks=None))
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node.insert(0, helper.make_node("Add", [BOTH[0].mask, BOTH[1].mask], ["both"]))
    view = GraphView(model)
    with pytest.raises(OptimizationError, match="one text alone"):
        find_cuts(view, BOTH[0], [name for name in view.inputs if not name.startswith("chat")])


def test_inputs_that_are_read_for_their_shapes_are_told(plain, tmp_path):
    pooled = [plain.encoder(side).pooled for side in (0, 1)]
    shapes = write_head(plain.view, {name: ["rows", HIDDEN] for name in pooled}, BOTH, tmp_path / "head.onnx")
    head = session(tmp_path / "head.onnx")
    feed = joined_feed((2, 3, 5), (2, 1, 4))
    encoded = {name: np.ones((2 * chunks, HIDDEN), np.float32) for name, chunks in zip(pooled, (3, 1), strict=True)}
    fields = {name: feed[name] for name in ("amount", "count")}
    empty = {name: np.zeros((*feed[name].shape[:2], 1), np.int64) for name in shapes}

    assert shapes == [BOTH[0].ids, BOTH[1].ids]
    assert {item.name for item in head.get_inputs()} == {*shapes, *pooled, *fields}
    given = head.run(["probs"], encoded | fields | empty)[0]
    np.testing.assert_array_equal(given, head.run(["probs"], encoded | fields | {n: feed[n] for n in shapes})[0])
    assert given.shape == (2, 2)


def test_a_cut_that_the_output_does_not_depend_on_is_refused(plain, tmp_path):
    with pytest.raises(OptimizationError, match="does not depend on 1 of the cut tensors"):
        write_head(plain.view, {plain.encoder(0).pooled: None, "elsewhere": None}, BOTH, tmp_path / "head.onnx")


def test_a_part_that_reads_another_input_is_refused(plain, tmp_path):
    with pytest.raises(OptimizationError, match="reads other inputs"):
        write_text_part(plain.view, BOTH[0], [plain.encoder(1).pooled], tmp_path / "part.onnx")


def test_cut_tensors_of_any_type_and_weights_of_subgraphs_reach_the_head(tmp_path):
    """The head is a branch that adds a weight; one cut tensor is a truth value."""
    branches = [
        helper.make_graph(
            [helper.make_node("Add", ["sum", name], [f"{name} result"])], name, [],
            [helper.make_tensor_value_info(f"{name} result", TensorProto.FLOAT, None)],
        )
        for name in ("half", "one")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Cast", [BOTH[0].ids], ["first"], to=TensorProto.FLOAT),
        helper.make_node("Cast", [BOTH[1].mask], ["real"], to=TensorProto.BOOL),
        helper.make_node("Where", ["real", "first", "half"], ["sum"]),
        helper.make_node("If", ["condition"], ["probs"], then_branch=branches[0], else_branch=branches[1]),
    ]
    texts = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in NAMES[:4]]
    condition = numpy_helper.from_array(np.array(0, bool), "condition")
    weights = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("half", 0.5), ("one", 1.0))]
    output = helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["B", "T"])
    graph = helper.make_graph(nodes, "graph", texts, [output], [condition, *weights])
    view = GraphView(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    cuts, _ = cut(view, tmp_path)
    feed = joined_feed((2, 6), (2, 6))

    assert cuts == [["first"], ["real"]]
    expected = session(view.model).run(["probs"], {name: feed[name] for name in NAMES[:4]})[0]
    np.testing.assert_array_equal(compose(cuts, tmp_path, feed), expected)
