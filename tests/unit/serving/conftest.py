"""Real parts made small: a WordPiece tokenizer, and ONNX graphs whose output shows what they were fed."""

from __future__ import annotations

import functools
import string

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trimodal.records import EncodedText, Features, Schema
from trimodal.serving.runner import GraphLayout, Runner, TabularInput, TextInput

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["refund", "the", "parcel", "lost", "damaged", "please", "label", "scan", "depot", "hello", "do", "it", "##ing"]
SIGNS = list(".,:;!?'-()[]")
CHARACTERS = string.ascii_lowercase + string.digits
VOCABULARY = [*SPECIALS, *WORDS, *SIGNS, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]

TEXTS = ("chat", "events")
FIELDS = ("amount", "orders")
WIDTH = 8
NUMPY = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16, "double": np.float64}


@pytest.fixture(scope="session")
def tokenizer():
    model = models.WordPiece({token: index for index, token in enumerate(VOCABULARY)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", VOCABULARY.index("[SEP]")), ("[CLS]", VOCABULARY.index("[CLS]"))
    )
    return tokenizer


@pytest.fixture(scope="session")
def vocabulary():
    return VOCABULARY


@pytest.fixture(scope="session")
def schema():
    return Schema("chat", "events", FIELDS, columns=("order_id", "chat", "events", *FIELDS), id_name="order_id")


@pytest.fixture(scope="session")
def make_features():
    def make(primary, secondary=((2, 3),), tabular=(0.0, 0.0), index=0):
        """Features from lists of chunks, each a list of token ids."""
        texts = [EncodedText([list(chunk) for chunk in text]) for text in (primary, secondary)]
        return Features(index, *texts, np.array(tabular, np.float32))

    return make


@pytest.fixture(scope="session")
def make_runner():
    return functools.cache(_make_runner)


@pytest.fixture(scope="session")
def probe():
    """Runs features through a probe graph; returns what the graph saw, one dict a record."""

    def run(runner, features):
        columns = [*_probe_columns(runner.layout.primary.chunked), *FIELDS]
        return [dict(zip(columns, row, strict=True)) for row in runner.run(features).tolist()]

    return run


def _make_runner(
    kind="score",
    *,
    batch=None,
    chunks=None,
    tokens=None,
    chunked=True,
    tabular="fields",
    integer="int64",
    floating="float",
    classes=2,
    pad_id=0,
):
    """Makes a runner over a real graph.

    `score`: probabilities that depend on every token and its place, on the chunk count and on the tabular values.
    `probe`: reports shapes, sums and tabular values instead. `root`: `score` with the square root of the amount.
    """
    axes = [batch or "B", *([chunks or "C"] if chunked else []), tokens or "T"]
    shapes = {name: ",".join(f"{a}_{name}" if a in ("C", "T") else str(a) for a in axes) for name in TEXTS}
    inputs = [f"{integer}[{shapes[name]}] {name}_{part}" for name in TEXTS for part in ("input_ids", "attention_mask")]
    rows = batch or "B"
    inputs += {
        "fields": [f"{floating}[{rows},1] {name}" for name in FIELDS],
        "flat": [f"{floating}[{rows}] {name}" for name in FIELDS],
        "single": [f"{floating}[{rows},{len(FIELDS)}] table_values"],
    }[tabular]
    body = _tabular_nodes(tabular) + (_probe_nodes(chunked) if kind == "probe" else _score_nodes(chunked, kind))
    outputs = len(_probe_columns(chunked)) + len(FIELDS) if kind == "probe" else classes
    nodes = "\n".join(f"  {node}" for node in body)
    header = f'<ir_version: 8, opset_import: ["" : 17]> graph ({", ".join(inputs)})'
    model = parser.parse_model(f"{header} => (float[{rows},{outputs}] probs) {{\n{nodes}\n}}")
    random = np.random.default_rng(11)
    for name, shape in (("vectors", (len(VOCABULARY), WIDTH)), ("head", (2 * WIDTH + len(FIELDS), classes))):
        values = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    texts = [
        TextInput(f"{n}_input_ids", f"{n}_attention_mask", NUMPY[integer], chunked, chunks if chunked else 1, tokens)
        for n in TEXTS
    ]
    dtype = NUMPY[floating]
    if tabular == "single":
        table = (TabularInput("table_values", dtype, tuple(range(len(FIELDS)))),)
    else:
        table = tuple(TabularInput(name, dtype, (i,), tabular == "flat") for i, name in enumerate(FIELDS))
    return Runner(session, GraphLayout(*texts, table, "probs", batch), pad_id)


def _tabular_nodes(tabular):
    """Nodes that make `[B, F]` out of the tabular inputs."""
    if tabular == "single":
        return ["values = Cast<to=1>(table_values)"]
    nodes = ["column = Constant<value_ints=[1]>()"]
    for name in FIELDS:
        source = name
        if tabular == "flat":
            nodes.append(f"{name}_column = Unsqueeze({name}, column)")
            source = f"{name}_column"
        nodes.append(f"{name}_values = Cast<to=1>({source})")
    return [*nodes, f"values = Concat<axis=1>({', '.join(f'{name}_values' for name in FIELDS)})"]


def _score_nodes(chunked, kind):
    """Each text: the masked mean of its vectors, each weighted by its place; tanh; the mean over chunks, unmasked."""
    nodes = [
        "last = Constant<value_ints=[-1]>()",
        "last_axis = Constant<value_int=-1>()",
        "token_axis = Constant<value_ints=[-2]>()",
        "one = Constant<value_float=1.0>()",
        "small = Constant<value_float=0.01>()",
    ]
    for name in TEXTS:
        nodes += [
            f"{name}_mask = Cast<to=1>({name}_attention_mask)",
            f"{name}_place = CumSum({name}_mask, last_axis)",
            f"{name}_wave = Cos({name}_place)",
            f"{name}_weight = Mul({name}_wave, {name}_mask)",
            f"{name}_weights = Unsqueeze({name}_weight, last)",
            f"{name}_vectors = Gather(vectors, {name}_input_ids)",
            f"{name}_weighted = Mul({name}_vectors, {name}_weights)",
            f"{name}_sum = ReduceSum<keepdims=0>({name}_weighted, token_axis)",
            f"{name}_tokens = ReduceSum<keepdims=1>({name}_mask, last)",
            f"{name}_count = Max({name}_tokens, one)",
            f"{name}_mean = Div({name}_sum, {name}_count)",
            f"{name}_bent = Tanh({name}_mean)",
            f"{name} = ReduceMean<axes=[1], keepdims=0>({name}_bent)" if chunked else f"{name} = Identity({name}_bent)",
        ]
    root = ["rooted = Sqrt(values)"] if kind == "root" else ["rooted = Identity(values)"]
    return [
        *nodes,
        *root,
        "scaled = Mul(rooted, small)",
        "table = Tanh(scaled)",
        "joined = Concat<axis=1>(chat, events, table)",
        "logits = MatMul(joined, head)",
        "probs = Softmax<axis=1>(logits)",
    ]


def _probe_columns(chunked):
    shape = ("rows", "chunks", "tokens") if chunked else ("rows", "tokens")
    shapes = [f"{name}_{axis}" for name in TEXTS for axis in shape]
    return [*shapes, *(f"{name}_{what}" for name in TEXTS for what in ("mask", "ids")), "run_mask"]


def _probe_nodes(chunked):
    """Shapes of both texts; the sums of a record's mask and ids; the sum of all masks of the run; tabular values."""
    nodes = [
        f"rest = Constant<value_ints=[{'1,2' if chunked else '1'}]>()",
        "second = Constant<value_ints=[1]>()",
        "zero = Constant<value_float=0.0>()",
    ]
    for name in TEXTS:
        for part, source in (("mask", "attention_mask"), ("ids", "input_ids")):
            nodes += [
                f"{name}_{part}_cast = Cast<to=1>({name}_{source})",
                f"{name}_{part}_sum = ReduceSum<keepdims=0>({name}_{part}_cast, rest)",
                f"{name}_{part} = Unsqueeze({name}_{part}_sum, second)",
            ]
        nodes += [
            f"{name}_shape = Shape({name}_input_ids)",
            f"{name}_shape_cast = Cast<to=1>({name}_shape)",
            f"{name}_zeros = Mul({name}_mask, zero)",
            f"{name}_axes = Add({name}_zeros, {name}_shape_cast)",
        ]
    return [
        *nodes,
        "masks = Add(chat_mask, events_mask)",
        "total = ReduceSum<keepdims=1>(masks)",
        "run_mask = Add(chat_zeros, total)",
        "unused_head = Shape(head)",
        "unused_vectors = Shape(vectors)",
        "axes = Concat<axis=1>(chat_axes, events_axes)",
        "sums = Concat<axis=1>(chat_mask, chat_ids, events_mask, events_ids, run_mask)",
        "probs = Concat<axis=1>(axes, sums, values)",
    ]
