from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model_directories import FIELDS, PRIMARY, SECONDARY, Graph, artifact_error, make_model
from model_directories import write_model_directory as write
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.graph import find_layout, open_session
from trimodal.records import Schema

INT64, INT32, FLOAT = TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT
SCHEMA = Schema(PRIMARY, SECONDARY, FIELDS)

TEXTS = {
    f"{name}_{part}": (INT64, ["B", f"{name}_C", f"{name}_T"])
    for name in (PRIMARY, SECONDARY)
    for part in ("input_ids", "attention_mask")
}
USUAL = TEXTS | {name: (FLOAT, ["B", 1]) for name in FIELDS}


def texts(*shape, kind=INT64):
    return {name: (kind, list(shape)) for name in TEXTS}


def layout_of(inputs, outputs=("probs",), schema=SCHEMA, shape=("B", 2)):
    """Finds the layout of a graph with these inputs, which needs not compute anything from them."""
    model = make_model(
        [helper.make_node("Identity", ["constant"], [name]) for name in outputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name in outputs],
        {"constant": np.ones([axis if isinstance(axis, int) else 1 for axis in shape], np.float32)},
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == list(inputs)
    return find_layout(session, schema)


def test_the_documented_form():
    layout = layout_of(USUAL)

    assert (layout.primary.ids, layout.primary.mask) == ("chat_input_ids", "chat_attention_mask")
    assert (layout.secondary.ids, layout.secondary.mask) == ("events_input_ids", "events_attention_mask")
    for text in (layout.primary, layout.secondary):
        assert (text.chunked, text.chunks, text.tokens) == (True, None, None)
        assert np.dtype(text.dtype) == np.int64
    assert [(column.name, column.columns, column.flat) for column in layout.tabular] == [
        ("amount", (0,), False),
        ("count", (1,), False),
    ]
    assert (layout.output, layout.batch) == ("probs", None)


def test_the_order_of_the_inputs_does_not_matter():
    assert layout_of(dict(reversed(USUAL.items()))) == layout_of(USUAL)


def test_one_chunk_a_record():
    layout = layout_of(USUAL | texts("B", "T"))

    assert (layout.primary.chunked, layout.primary.chunks, layout.primary.tokens) == (False, 1, None)


def test_one_tabular_input_for_all_fields():
    layout = layout_of(TEXTS | {"features": (FLOAT, ["B", 2])})

    assert [(column.name, column.columns, column.flat) for column in layout.tabular] == [("features", (0, 1), False)]


def test_a_tabular_input_may_be_flat():
    layout = layout_of(TEXTS | {name: (FLOAT, ["B"]) for name in FIELDS})

    assert [column.flat for column in layout.tabular] == [True, True]


def test_one_field_under_any_name():
    schema = Schema(PRIMARY, SECONDARY, ("amount",))

    layout = layout_of(TEXTS | {"x": (FLOAT, ["B", 1])}, schema=schema)

    assert [(column.name, column.columns) for column in layout.tabular] == [("x", (0,))]


def test_a_model_without_tabular_fields():
    assert layout_of(TEXTS, schema=Schema(PRIMARY, SECONDARY, ())).tabular == ()


@pytest.mark.parametrize(("kind", "dtype"), [(INT64, np.int64), (INT32, np.int32)])
def test_integer_types(kind, dtype):
    assert np.dtype(layout_of(USUAL | texts("B", "C", "T", kind=kind)).primary.dtype) == dtype


@pytest.mark.parametrize(
    ("kind", "dtype"), [(FLOAT, np.float32), (TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)]
)
def test_floating_point_types(kind, dtype):
    layout = layout_of(TEXTS | {name: (kind, ["B", 1]) for name in FIELDS})

    assert [np.dtype(column.dtype) for column in layout.tabular] == [dtype, dtype]


@pytest.mark.parametrize(
    ("inputs", "chunks", "tokens", "batch"),
    [
        (texts("B", 3, 16), 3, 16, None),
        (texts("B", "C", 16), None, 16, None),
        (texts("B", 3, "T"), 3, None, None),
        (texts(4, "C", "T"), None, None, 4),
        (texts("B", 16), 1, 16, None),
        (texts(4, 16), 1, 16, 4),
    ],
)
def test_fixed_axes(inputs, chunks, tokens, batch):
    layout = layout_of(USUAL | inputs)

    assert (layout.primary.chunks, layout.primary.tokens, layout.batch) == (chunks, tokens, batch)


def test_an_axis_that_only_the_mask_fixes_is_fixed():
    layout = layout_of(USUAL | {"chat_attention_mask": (INT64, [2, "C", 16])})

    assert (layout.primary.tokens, layout.batch) == (16, 2)


def test_a_batch_that_only_a_tabular_input_fixes_is_fixed():
    assert layout_of(USUAL | {"amount": (FLOAT, [5, 1])}).batch == 5


def test_the_output_is_named_probs_or_the_only_one():
    assert layout_of(USUAL, outputs=("logits", "probs", "pooled")).output == "probs"
    assert layout_of(USUAL, outputs=("scores",)).output == "scores"


def without(name):
    return {key: value for key, value in USUAL.items() if key != name}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (without("chat_input_ids"), "no input chat_input_ids; export it with the names of hyperparameters.json"),
        (without("chat_attention_mask"), "no input chat_attention_mask"),
        (without("events_attention_mask"), "no input events_attention_mask"),
        (without("count"), "no input count, which hyperparameters.json lists in tab_field_list"),
        (USUAL | {"token_type_ids": (INT64, ["B", "C", "T"])}, "the unknown input token_type_ids; export it"),
        (TEXTS, "no tabular inputs named as tab_field_list, and no single one instead"),
        (TEXTS | {"a": (FLOAT, ["B", 1]), "b": (FLOAT, ["B", 1])}, "no tabular inputs named as tab_field_list"),
        (TEXTS | {"features": (FLOAT, ["B", 3])}, "the input features must be a tensor [B, 2]"),
        (TEXTS | {"features": (FLOAT, ["B"])}, "the input features must be a tensor [B, 2]"),
        (USUAL | {"amount": (FLOAT, ["B", 2])}, "the input amount must be a tensor [B, 1]"),
        (USUAL | {"amount": (FLOAT, ["B", 1, 1])}, "the input amount must be a tensor [B, 1]"),
        (USUAL | {"amount": (FLOAT, [])}, "the input amount must be a tensor [B, 1]"),
        (USUAL | {"amount": (INT64, ["B", 1])}, "the input amount must be a floating point tensor"),
        (USUAL | {"amount": (TensorProto.STRING, ["B", 1])}, "the input amount must be a floating point tensor"),
        (USUAL | {"chat_input_ids": (FLOAT, ["B", "C", "T"])}, "the input chat_input_ids must be an integer tensor"),
        (USUAL | {"chat_attention_mask": (TensorProto.BOOL, ["B", "C", "T"])}, "must be an integer tensor"),
        (USUAL | {"chat_attention_mask": (INT32, ["B", "C", "T"])}, "must both be integer tensors"),
        (USUAL | {"chat_attention_mask": (INT64, ["B", "T"])}, "must both be integer tensors [B, C, T] or [B, T]"),
        (USUAL | texts("B"), "must both be integer tensors [B, C, T] or [B, T]"),
        (USUAL | texts("B", "C", "T", "H"), "must both be integer tensors [B, C, T] or [B, T]"),
        (USUAL | texts(4, "C", "T") | {"amount": (FLOAT, [2, 1])}, "different fixed batch sizes; export it with one"),
        (USUAL | {"chat_input_ids": (INT64, [2, "C", "T"]), "events_input_ids": (INT64, [3, "C", "T"])}, "fixed batch"),
    ],
)
def test_a_graph_of_another_form_is_an_error(inputs, words):
    with artifact_error("model.onnx", words):
        layout_of(inputs)


def test_a_graph_with_an_input_too_many_for_a_model_without_fields_is_an_error():
    with artifact_error("model.onnx has the unknown input x"):
        layout_of(TEXTS | {"x": (FLOAT, ["B", 1])}, schema=Schema(PRIMARY, SECONDARY, ()))


def test_a_graph_with_several_outputs_must_name_the_probabilities():
    with artifact_error("model.onnx has several outputs and none is named probs; name the probabilities probs"):
        layout_of(USUAL, outputs=("logits", "pooled"))


@pytest.mark.parametrize(
    "inputs",
    [
        {"chat_input_ids": (INT64, ["B", "C", 8]), "chat_attention_mask": (INT64, ["B", "C", 16])},
        {"chat_input_ids": (INT64, ["B", 2, "T"]), "chat_attention_mask": (INT64, ["B", 3, "T"])},
    ],
)
def test_ids_and_mask_of_different_fixed_sizes_are_an_error(inputs):
    with artifact_error(
        "model.onnx: chat_input_ids and chat_attention_mask have different fixed sizes; export it again"
    ):
        layout_of(USUAL | inputs)


@pytest.mark.parametrize("shape", [("B",), ("B", 1, 2)])
def test_an_output_that_is_no_matrix_is_an_error(shape):
    with artifact_error("model.onnx: the output probs must be a tensor [B, K] of probabilities"):
        layout_of(USUAL, shape=shape)


@pytest.mark.parametrize("graph", [Graph(), Graph(chunks=None), Graph(single_tabular=True), Graph(batch=2)], ids=repr)
def test_a_graph_that_runs_is_opened(tmp_path, graph):
    artifacts = read_artifacts(write(tmp_path, graph=graph))

    session = open_session(artifacts)

    assert find_layout(session, artifacts.schema).output == "probs"
    assert session.get_session_options().enable_mem_reuse


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:100],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda _: b"not a graph at all",
        lambda _: b'{"ir_version": 8}',
        lambda content: content.replace(b"Softmax", b"Softmix"),
    ],
    ids=["empty", "start", "half", "all but one byte", "text", "json", "unknown operator"],
)
def test_a_graph_that_cannot_be_opened_is_an_error(tmp_path, damage):
    artifacts = read_artifacts(write(tmp_path))
    artifacts.graph.write_bytes(damage(artifacts.graph.read_bytes()))

    with artifact_error("model.onnx cannot be loaded", "export it again"):
        open_session(artifacts)


def test_a_graph_without_its_external_data_is_an_error(tmp_path):
    artifacts = read_artifacts(write(tmp_path))
    onnx.save(
        onnx.load(artifacts.graph),
        artifacts.graph,
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=100,  # the embedding and nothing that shapes depend on
    )
    assert open_session(artifacts).get_outputs()[0].name == "probs"
    (tmp_path / "model.onnx.data").unlink()

    with artifact_error("model.onnx names weights that are not in the model directory; put them beside it"):
        open_session(artifacts)
