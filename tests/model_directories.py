"""Complete model directories, small enough to be written anew for each test.

The graph is a bag of words: every token id has a weight, a text is the mean of its chunks' means, and two linear
layers are replaced by one. So each input matters, and padding does not.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trimodal.errors import ArtifactError

PRIMARY, SECONDARY = "chat", "events"
FIELDS = ("amount", "count")
COLUMNS = ("order_id", *FIELDS, PRIMARY, SECONDARY)
TABLE = [[0.0, 0.05], [0.4, 0.2], [1.0, 0.9]]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = (
    "the item was late broken and never came please refund it thanks we are sorry for that "
    "order shipped delivered lost returned yes no buyer seller . , ! ?"
)
VOCABULARY = (*SPECIAL_TOKENS, *WORDS.split())

HYPERPARAMETERS: Mapping[str, object] = {
    "primary_text_name": PRIMARY,
    "secondary_text_name": SECONDARY,
    "tab_field_list": list(FIELDS),
    "cat_field_list": [],
    "id_name": "order_id",
    "num_classes": 2,
    "is_binary": True,
    "max_sen_len": 16,
    "max_total_chunks": 3,
    "chunk_trancate": True,
}

RECORD: Mapping[str, object] = {
    "order_id": "A-1",
    "amount": 12.5,
    "count": 2,
    PRIMARY: "[bom]The item was late![eom] [bom]We are sorry for that.[eom]",
    SECONDARY: "[bom]order shipped[eom] [bom]order lost[eom]",
}


@dataclass(frozen=True)
class Graph:
    """What the ONNX graph takes and gives; a number fixes an axis, a name leaves it dynamic."""

    primary: str = PRIMARY
    secondary: str = SECONDARY
    fields: Sequence[str] = FIELDS
    classes: int = 2
    vocabulary: int = len(VOCABULARY)
    batch: int | str = "B"
    chunks: int | str | None = "C"  # None: texts are [B, T]
    tokens: int | str = "T"
    single_tabular: bool = False  # one [B, F] input instead of one [B, 1] input a field
    integers: int = TensorProto.INT64
    floats: int = TensorProto.FLOAT
    softmax: bool = True


def write_model_directory(
    path: Path,
    *,
    graph: Graph | None = None,
    config: Mapping[str, object] | None = None,
    calibration: Mapping[str, object] | None = None,
    risk_tables: object = None,
    pickled: bool = False,
) -> Path:
    """Writes a model directory that can be served.

    Args:
        path: where to; made when it is not there.
        graph: what `model.onnx` looks like.
        config: changes of `hyperparameters.json`; None takes a key out.
        calibration: values of `calibration/`, by the path under it without suffix.
        risk_tables: value of `risk_table_map`.
        pickled: write the calibration, the risk tables and the imputation as pickles instead of JSON.

    Returns:
        The path.
    """
    path.mkdir(parents=True, exist_ok=True)
    changed = {**HYPERPARAMETERS, **(config or {})}
    write_json(path / "hyperparameters.json", {key: value for key, value in changed.items() if value is not None})
    (path / "feature_columns.txt").write_text(
        "# index,name\n" + "".join(f"{index},{name}\n" for index, name in enumerate(COLUMNS)), encoding="utf-8"
    )
    tokenizer().save(str(path / "tokenizer.json"))
    values: dict[str, object] = {"impute_dict": {"amount": 20.0}}
    if risk_tables is not None:
        values["risk_table_map"] = risk_tables
    values |= {f"calibration/{name}": value for name, value in (calibration or {}).items()}
    for name, value in values.items():
        write_value(path / f"{name}.{'pkl' if pickled else 'json'}", value)
    write_graph(path / "model.onnx", graph or Graph())
    return path


class Harmful:
    """Pickles as a call of any function with any arguments, which an ordinary unpickler would make."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@contextmanager
def artifact_error(*words: str) -> Iterator[None]:
    """Expects an `ArtifactError` of one line that holds the words: the file's name, and what to do."""
    with pytest.raises(ArtifactError) as caught:
        yield
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message, message


def write_value(path: Path, value: object) -> None:
    """Writes a value as its file's suffix says: JSON, else a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(path, value)
    else:
        path.write_bytes(pickle.dumps(value))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: object) -> None:
    """Changes keys of a JSON object."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> Tokenizer:
    """Returns a fast WordPiece tokenizer, as BERT's."""
    result = Tokenizer(models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    result.add_special_tokens(list(SPECIAL_TOKENS))
    result.normalizer = normalizers.BertNormalizer(lowercase=True)
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.decoder = decoders.WordPiece()
    result.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary.index("[SEP]")), ("[CLS]", vocabulary.index("[CLS]"))
    )
    return result


def edit_graph(path: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    """Changes a graph in place."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def write_graph(path: Path, graph: Graph) -> None:
    """Writes the ONNX graph: inputs as in `graph`, output `probs` `[B, K]`."""
    inputs = [
        helper.make_tensor_value_info(f"{name}_{part}", graph.integers, _text_shape(graph, name))
        for name in (graph.primary, graph.secondary)
        for part in ("input_ids", "attention_mask")
    ]
    if graph.single_tabular:
        columns = ["tabular"]
        inputs.append(helper.make_tensor_value_info("tabular", graph.floats, [graph.batch, len(graph.fields)]))
    else:
        columns = list(graph.fields)
        inputs += [helper.make_tensor_value_info(name, graph.floats, [graph.batch, 1]) for name in columns]
    random = np.random.default_rng(7)
    words = np.random.default_rng(8)  # a source of its own, so that more words leave the others as they are
    width = 2 + len(graph.fields)
    constants = {
        "embedding": words.normal(size=graph.vocabulary).astype(np.float32),
        "scale": np.array([1.0, 1.0, *([0.1] * len(graph.fields))], np.float32),
        "weight": random.normal(size=(width, graph.classes)).astype(np.float32),
        "last": np.array([-1], np.int64),
        "one": np.array(1.0, np.float32),
    }
    nodes = [
        *_text_nodes(graph, "primary", graph.primary),
        *_text_nodes(graph, "secondary", graph.secondary),
        *(helper.make_node("Cast", [name], [f"{name}/float"], to=TensorProto.FLOAT) for name in columns),
        helper.make_node(
            "Concat", ["primary/text", "secondary/text", *(f"{name}/float" for name in columns)], ["joined"], axis=1
        ),
        helper.make_node("Mul", ["joined", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=-1)
        if graph.softmax
        else helper.make_node("Identity", ["logits"], ["probs"]),
    ]
    onnx.save(
        make_model(
            nodes,
            inputs,
            [helper.make_tensor_value_info("probs", TensorProto.FLOAT, [graph.batch, graph.classes])],
            constants,
        ),
        path,
    )


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray[Any, Any]],
) -> onnx.ModelProto:
    """Joins the parts of a graph into a model of a version that every ONNX Runtime in use reads."""
    body = helper.make_graph(
        nodes, "tiny", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _text_shape(graph: Graph, name: str) -> list[int | str]:
    """Returns `[B, C, T]` or `[B, T]`; a dynamic axis has a name of its own, as the two texts differ in length."""
    axes = [axis for axis in (graph.chunks, graph.tokens) if axis is not None]
    return [graph.batch, *(f"{name}_{axis}" if isinstance(axis, str) else axis for axis in axes)]


def _text_nodes(graph: Graph, prefix: str, name: str) -> list[onnx.NodeProto]:
    """Returns the nodes from a text's ids and mask to its one feature, `[B, 1]`."""
    chunked = graph.chunks is not None

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(kind, list(inputs), [f"{prefix}/{output}"], **attributes)

    return [
        node("Gather", ["embedding", f"{name}_input_ids"], "weights"),
        node("Cast", [f"{name}_attention_mask"], "mask", to=TensorProto.FLOAT),
        node("Mul", [f"{prefix}/weights", f"{prefix}/mask"], "masked"),
        node("ReduceSum", [f"{prefix}/masked", "last"], "sum", keepdims=int(not chunked)),
        node("ReduceSum", [f"{prefix}/mask", "last"], "real", keepdims=int(not chunked)),
        node("Max", [f"{prefix}/real", "one"], "size"),  # a chunk that only fills a fixed axis has no token
        node("Div", [f"{prefix}/sum", f"{prefix}/size"], "chunk" if chunked else "text"),
        *([node("ReduceMean", [f"{prefix}/chunk"], "text", axes=[1], keepdims=1)] if chunked else []),
    ]
