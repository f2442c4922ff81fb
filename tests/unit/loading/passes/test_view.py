from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from model_directories import Graph, write_graph
from trimodal.loading.passes.view import GraphView, attribute, operands

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
graph (int64[B,T] ids, int64[B,T] mask, float[B,1] amount) => (float[B,1] probs)
<float[2,3] table = {1,2,3,4,5,6}, float[3] shift = {1,2,3}>
{
  turned = Transpose<perm=[1,0]>(table)
  same = Identity(turned)
  axis = Constant<value_ints=[0]>()
  wide = Unsqueeze(shift, axis)
  narrow = Squeeze(wide, axis)
  whole = Cast<to=7>(shift)
  one = Constant<value_float=1.5>()
  words = Constant<value_string="text">()
  shape = Shape(ids)
  float_mask = Cast<to=1>(mask)
  repeated = Identity(float_mask)
  again = Identity(repeated)
  sum = ReduceSum<keepdims=1>(again)
  blank = ConstantOfShape(shape)
  filled = ReduceSum<keepdims=1>(blank)
  joined = Add(sum, filled)
  probs = Mul(joined, amount)
}
"""


@pytest.fixture(scope="module")
def view():
    return GraphView(parser.parse_model(TEXT))


def test_constants_are_read_through_what_exporters_put_before_their_readers(view):
    table = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(view.constant("table"), table)
    np.testing.assert_array_equal(view.constant("same"), table.T)
    np.testing.assert_array_equal(view.constant("wide"), [[1, 2, 3]])
    np.testing.assert_array_equal(view.constant("narrow"), [1, 2, 3])
    assert view.constant("whole").dtype == np.int64
    assert view.constant("axis").tolist() == [0]
    assert view.constant("one") == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["ids", "float_mask", "shape", "probs", "", "no such tensor", "words"])
def test_what_is_no_constant_of_numbers_has_no_value(view, name):
    assert view.constant(name) is None
    assert view.shape(name) is None


def test_shapes_of_constants(view):
    assert view.shape("table") == (2, 3)
    assert view.shape("same") == (3, 2)
    assert view.shape("one") == ()


def test_sources_and_readers_pass_through_identity(view):
    assert view.source("again") == "float_mask"
    assert view.source("ids") == "ids"
    assert [node.output[0] for node in view.readers("float_mask")] == ["sum"]
    assert list(view.readers("probs")) == []


def test_what_a_tensor_is_computed_from(view):
    nodes, given = view.before({"sum"})
    assert [node.output[0] for node in nodes] == ["float_mask", "repeated", "again", "sum"]
    assert given == {"mask"}

    nodes, given = view.before({"probs"}, stop={"sum"})
    assert [node.output[0] for node in nodes] == ["shape", "blank", "filled", "joined", "probs"]
    assert given == {"sum", "ids", "amount"}

    assert view.before({"ids"}) == ([], {"ids"})
    assert view.before({"sum"}, stop={"sum"}) == ([], {"sum"})


def test_a_shape_is_no_value(view):
    assert "blank" not in view.reached_by_value({"ids"})
    assert {"sum", "joined", "probs"} <= view.reached_by_value({"mask"})
    assert view.reached_by_value({"amount"}) == {"amount", "probs"}


def test_weights_that_an_older_exporter_names_among_the_inputs_are_no_inputs(tmp_path):
    write_graph(tmp_path / "model.onnx", Graph())
    model = onnx.load(tmp_path / "model.onnx")
    inputs = GraphView(model).inputs
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    view = GraphView(model)

    assert view.inputs == inputs
    assert view.before({"probs"})[1] == set(inputs)


def test_a_subgraph_reads_too():
    branches = [
        helper.make_graph([helper.make_node("Add", ["x", name], ["y"])], name, [], [onnx.ValueInfoProto(name="y")])
        for name in ("weight", "other")
    ]
    node = helper.make_node("If", ["condition"], ["result"], then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("weight", "other")],
    )
    view = GraphView(helper.make_model(graph))

    assert {"condition", "x", "weight", "other"} <= set(operands(node))
    assert view.before({"result"})[1] == {"condition", "x"}
    assert "result" in view.reached_by_value({"x"})


def test_attributes_have_defaults(view):
    assert attribute(view.producers["turned"], "perm") == [1, 0]
    assert attribute(view.producers["turned"], "axis", 7) == 7
