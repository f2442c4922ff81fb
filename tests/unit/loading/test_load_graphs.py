"""Graphs that an exporter wrote otherwise than the documented form shows."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from model_directories import RECORD, artifact_error, edit_graph
from model_directories import write_model_directory as write
from trimodal.loading.load import load_pipeline
from trimodal.records import Payload
from trimodal.settings import Settings


def load(directory):
    return load_pipeline(Settings(model_dir=directory, workers=1, intra_op_threads=1))


def score(pipeline):
    return pipeline.predict(Payload([RECORD])).raw


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The score of the usual record by the usual graph."""
    return score(load(write(tmp_path_factory.mktemp("model"))))


def test_a_graph_that_gives_no_finite_number_is_an_error(tmp_path):
    directory = write(tmp_path)

    def divide_by_zero(model):
        (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "scale")
        scale.CopyFrom(helper.make_tensor("scale", TensorProto.FLOAT, [4], [float("nan")] * 4))

    edit_graph(directory / "model.onnx", divide_by_zero)

    with artifact_error("model.onnx fails on texts of 2 and 2 tokens"):
        load(directory)


def flatten(model):
    """Makes the graph give the probability of class 1 alone, `[B]`, as a sigmoid head does."""
    del model.graph.node[-1]
    del model.graph.output[0]
    model.graph.initializer.append(helper.make_tensor("class", TensorProto.INT64, [], [1]))
    model.graph.node.append(helper.make_node("Gather", ["logits", "class"], ["logit"], axis=1))
    model.graph.node.append(helper.make_node("Sigmoid", ["logit"], ["probs"]))
    model.graph.output.append(helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["B"]))


def test_a_graph_that_gives_one_number_a_record_is_an_error(tmp_path):
    directory = write(tmp_path)
    edit_graph(directory / "model.onnx", flatten)

    with artifact_error("model.onnx: the output probs must be a tensor [B, K] of probabilities"):
        load(directory)


def leave_shape_open(model):
    """Makes the graph give the same, by nodes from which nobody can tell how many axes it has."""
    rank = len(model.graph.output[0].type.tensor_type.shape.dim)
    model.graph.node[-1].output[0] = "inner"
    del model.graph.output[0]
    model.graph.initializer.append(helper.make_tensor("every", TensorProto.BOOL, [rank], [True] * rank))
    model.graph.node.append(helper.make_node("Shape", ["inner"], ["shape"]))
    model.graph.node.append(helper.make_node("Compress", ["shape", "every"], ["same"], axis=0))
    model.graph.node.append(helper.make_node("Reshape", ["inner", "same"], ["probs"]))
    model.graph.output.append(helper.make_tensor_value_info("probs", TensorProto.FLOAT, None))


def test_a_graph_may_leave_the_shape_of_its_output_open(tmp_path, reference):
    directory = write(tmp_path)
    edit_graph(directory / "model.onnx", leave_shape_open)

    pipeline = load(directory)

    assert not pipeline.runner.session.get_outputs()[0].shape
    assert score(pipeline) == pytest.approx(reference, abs=1e-6)


def test_one_number_a_record_is_an_error_also_where_the_shape_is_open(tmp_path):
    directory = write(tmp_path)
    edit_graph(directory / "model.onnx", flatten)
    edit_graph(directory / "model.onnx", leave_shape_open)

    with artifact_error("model.onnx fails on texts of 2 and 2 tokens"):
        load(directory)


def name_axes_alike(model, ending):
    """Gives both texts the same axis names, as exports with one `dynamic_axes` entry for all inputs do."""
    for node in (node for node in model.graph.input if node.name.endswith(ending)):
        for dimension in node.type.tensor_type.shape.dim:
            dimension.dim_param = dimension.dim_param.rpartition("_")[2]


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "input_ids",
        "attention_mask",
    ],
)
def test_a_graph_whose_texts_share_axis_names_gives_the_same_score(tmp_path, reference, ending):
    directory = write(tmp_path)
    edit_graph(directory / "model.onnx", lambda model: name_axes_alike(model, ending))

    pipeline = load(directory)

    assert score(pipeline) == pytest.approx(reference, abs=1e-6)
    assert not pipeline.runner.session.get_session_options().enable_mem_reuse
