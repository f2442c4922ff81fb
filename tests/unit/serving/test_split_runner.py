from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from trimodal.errors import InferenceFailed
from trimodal.serving.memory import EncoderCache
from trimodal.serving.runner import GraphLayout, Runner, TabularInput, TextInput
from trimodal.serving.split import Head, SplitRunner, TextEncoder
from trimodal.serving.steps import always, finish, never

TEXTS = ("chat", "events")
VOCABULARY, WIDTH = 60, 16
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
LONGEST = 24


def encode(name, mask):
    """Nodes from ids `[…, T]` to `{name}_pooled` `[…, W]`: vectors weighted by their place, and a tanh."""
    return f"""
      {name}_weights = Cast<to=1>({mask})
      {name}_place = CumSum({name}_weights, last_axis)
      {name}_wave = Cos({name}_place)
      {name}_masked = Mul({name}_wave, {name}_weights)
      {name}_column = Unsqueeze({name}_masked, last)
      {name}_vectors = Gather(vectors, {name}_ids)
      {name}_weighted = Mul({name}_vectors, {name}_column)
      {name}_sum = ReduceSum<keepdims=0>({name}_weighted, tokens)
      {name}_mixed = MatMul({name}_sum, mixing)
      {name}_pooled = Tanh({name}_mixed)
    """


CONSTANTS = """
  last = Constant<value_ints=[-1]>()
  last_axis = Constant<value_int=-1>()
  tokens = Constant<value_ints=[-2]>()
"""
JOIN = """
  chat = ReduceMean<axes=[1], keepdims=0>(chat_by_record)
  events = ReduceMean<axes=[1], keepdims=0>(events_by_record)
  rooted = Sqrt(amount)
  joined = Concat<axis=1>(chat, events, rooted)
  logits = MatMul(joined, head)
  probs = Softmax<axis=1>(logits)
"""


def session(text):
    model = parser.parse_model(f"{HEADER} {text}")
    draw = np.random.default_rng(3)
    shapes = {"vectors": (VOCABULARY, WIDTH), "mixing": (WIDTH, WIDTH), "head": (2 * WIDTH + 1, 3)}
    for name, shape in shapes.items():
        value = draw.normal(size=shape).astype(np.float32)
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Counting:
    """Counts the runs of a session, and keeps what they were fed."""

    def __init__(self, inner):
        self.inner = inner
        self.feeds = []
        self.lock = Lock()

    def run(self, names, feed):
        with self.lock:
            self.feeds.append(feed)
        return self.inner.run(names, feed)


@pytest.fixture(scope="module")
def sessions():
    """The whole graph; one text's part by chunk and by text; the head."""
    inputs = ", ".join(f"int64[B,C{n},T{n}] {n}_ids, int64[B,C{n},T{n}] {n}_mask" for n in TEXTS)
    bodies = "".join(f"{encode(n, f'{n}_mask')} {n}_by_record = Identity({n}_pooled)" for n in TEXTS)
    shaped = "".join(
        f"""
        {n}_shape = Shape<start=0, end=2>({n}_ids)
        {n}_sizes = Concat<axis=0>({n}_shape, width)
        {n}_by_record = Reshape({n}_pooled, {n}_sizes)
        """
        for n in TEXTS
    )
    pooled = ", ".join(f"float[R{n},{WIDTH}] {n}_pooled, int64[B,C{n},T{n}] {n}_ids" for n in TEXTS)
    by_text = ", ".join(f"float[B,C{n},{WIDTH}] {n}_by_record" for n in TEXTS)
    found = {
        "whole": session(f"w ({inputs}, float[B,1] amount) => (float[B,3] probs) {{ {CONSTANTS} {bodies} {JOIN} }}"),
        "head": session(
            f"h ({pooled}, float[B,1] amount) => (float[B,3] probs)"
            f"{{ width = Constant<value_ints=[{WIDTH}]>() {shaped} {JOIN} }}"
        ),
        "head_by_text": session(f"h ({by_text}, float[B,1] amount) => (float[B,3] probs) {{ {JOIN} }}"),
    }
    for n in TEXTS:
        ones = "rows = Shape(ids) one = Constant<value_float=1.0>() ones = Expand(one, rows)"
        nodes = encode(n, "ones").replace(f"{n}_ids", "ids")
        found[n] = session(f"e (int64[R,T] ids) => (float[R,{WIDTH}] {n}_pooled) {{ {CONSTANTS} {ones} {nodes} }}")
        nodes = f"{encode(n, f'{n}_mask')} {n}_by_record = Identity({n}_pooled)"
        found[f"{n}_by_text"] = session(
            f"e (int64[B,C,T] {n}_ids, int64[B,C,T] {n}_mask) => (float[B,C,{WIDTH}] {n}_by_record)"
            f"{{ {CONSTANTS} {nodes} }}"
        )
    return found


LAYOUT = [TextInput(f"{name}_ids", f"{name}_mask", np.int64) for name in TEXTS]
AMOUNT = (TabularInput("amount", np.float32, (0,)),)


@pytest.fixture(scope="module")
def whole(sessions):
    return Runner(sessions["whole"], GraphLayout(*LAYOUT, AMOUNT, "probs"))


@pytest.fixture
def make_split(sessions):
    def make(*, by_chunk=True, rows=1, bucket=1, cache=0, pool=None, wrap=Counting):
        """A split runner whose sessions are wrapped."""
        if by_chunk:
            encoders = [
                TextEncoder(
                    wrap(sessions[n]), TextInput("ids", "", np.int64), (f"{n}_pooled",), by_chunk=True, rows=rows
                )
                for n in TEXTS
            ]
            shapes = tuple((side, text, text.ids) for side, text in enumerate(LAYOUT))
            head = Head(sessions["head"], "probs", AMOUNT, shapes)
        else:
            encoders = [
                TextEncoder(wrap(sessions[f"{n}_by_text"]), layout, (f"{n}_by_record",), by_chunk=False, bucket=bucket)
                for n, layout in zip(TEXTS, LAYOUT, strict=True)
            ]
            head = Head(sessions["head_by_text"], "probs", AMOUNT)
        return SplitRunner((encoders[0], encoders[1]), head, EncoderCache(cache), pool)

    return make


@pytest.fixture(scope="module")
def records(make_features):
    """Records of 1 to 3 chunks and many lengths; every fifth repeats an earlier one's texts."""
    draw = random.Random(5)

    def chunks():
        return [
            [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, LONGEST))] for _ in range(draw.randint(1, 3))
        ]

    made = []
    for index in range(51):
        again = made[-3] if index % 5 == 4 else None
        texts = (again.primary.chunks, again.secondary.chunks) if again else (chunks(), chunks())
        made.append(make_features(*texts, tabular=(index / 7,), index=index))
    return made


@pytest.mark.parametrize(
    "variant", [{}, {"rows": 4}, {"by_chunk": False}, {"by_chunk": False, "bucket": 16}, {"cache": 7}], ids=str
)
@pytest.mark.parametrize("threads", [0, 2])
def test_a_split_model_gives_the_answers_of_the_whole_in_any_order(make_split, whole, records, variant, threads):
    order = random.Random(1).sample(range(len(records)), len(records))
    with ThreadPoolExecutor(threads or 1) as pool:
        runner = make_split(**variant, pool=pool if threads else None)
        for places in (range(len(records)), order, order[:1]):
            picked = [records[place] for place in places]
            np.testing.assert_allclose(runner.run(picked), whole.run(picked), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "variant", [{}, {"by_chunk": False}, {"by_chunk": False, "bucket": 16}, {"cache": 99}], ids=str
)
def test_a_score_is_the_same_to_the_bit_alone_and_among_others(make_split, records, variant):
    together = make_split(**variant).run(records)
    for item, expected in zip(records, together, strict=True):
        np.testing.assert_array_equal(make_split(**variant).run([item])[0], expected)


def test_equal_texts_are_computed_once(make_split, records):
    runner = make_split()
    runner.run([*records, *records])
    for side, encoder in enumerate(runner.encoders):
        chunks = [tuple(c) for item in records for c in (item.primary, item.secondary)[side].chunks]
        ran = [tuple(row) for feed in encoder.session.feeds for row in feed["ids"].tolist()]
        assert sorted(ran) == sorted(set(chunks))
        assert len(ran) < len(chunks)


def test_what_is_remembered_is_not_computed_again(make_split, records):
    runner = make_split(cache=1000)
    first = runner.run(records)
    runs = [len(encoder.session.feeds) for encoder in runner.encoders]
    misses = runner.cache.misses

    np.testing.assert_array_equal(runner.run(records), first)

    wanted = sum(len(text.chunks) for item in records for text in (item.primary, item.secondary))
    assert [len(encoder.session.feeds) for encoder in runner.encoders] == runs
    assert (runner.cache.misses, runner.cache.hits) == (misses, 2 * wanted - misses)
    assert len(runner.cache) == misses == sum(runs)


def test_a_text_is_padded_to_its_bucket_and_masked(make_split, make_features):
    runner = make_split(by_chunk=False, bucket=8)
    runner = replace(runner, pad_id=7)
    runner.run([make_features([[1] * 9, [2] * 3], [[3] * 8], tabular=(1,))])
    (first,), (second,) = (encoder.session.feeds for encoder in runner.encoders)

    assert first["chat_ids"].tolist() == [[[1] * 9 + [7] * 7, [2] * 3 + [7] * 13]]
    assert first["chat_mask"].tolist() == [[[1] * 9 + [0] * 7, [1] * 3 + [0] * 13]]
    assert second["events_ids"].tolist() == [[[3] * 8]]


def test_the_head_sees_the_axes_of_a_text_as_its_encoder_did(make_split, make_features):
    """A head that joins sequences reshapes by the axes of the ids."""
    runner = make_split(by_chunk=False, bucket=8)
    axes = session(
        f"h (float[B,C,{WIDTH}] chat_by_record, float[B,D,{WIDTH}] events_by_record, int64[B,C,T] chat_ids)"
        "=> (float[B,3] probs) { shape = Shape(chat_ids) floats = Cast<to=1>(shape)"
        " rows = Shape<start=0,end=1>(chat_ids) three = Constant<value_ints=[3]>()"
        " sizes = Concat<axis=0>(rows, three) probs = Expand(floats, sizes) }"
    )
    runner = replace(runner, head=Head(axes, "probs", (), ((0, LAYOUT[0], "chat_ids"),)))
    items = [make_features([[1] * length, [2]]) for length in (3, 12, 5)]
    assert runner.run(items).tolist() == [[2, 2, 8], [1, 2, 16], [2, 2, 8]]


def test_chunks_of_one_length_run_together_where_an_encoder_takes_several(make_split, make_features):
    runner = make_split(rows=3)
    runner.run([make_features([[i, i + 1], [i + 2] * 5], [[9, 9]], tabular=(1,)) for i in range(4)])
    shapes = sorted(feed["ids"].shape for feed in runner.encoders[0].session.feeds)
    assert shapes == [(1, 2), (1, 5), (3, 2), (3, 5)]


def test_a_score_that_is_not_finite_names_its_record(make_split, make_features):
    items = [
        make_features([[1, 2]], tabular=(value,), index=index) for index, value in ((4, 1.0), (9, -1.0), (11, 2.0))
    ]
    with pytest.raises(InferenceFailed, match="record 9") as caught:
        make_split().run(items)
    assert caught.value.record == 9


def test_the_encoders_of_one_thread_run_while_other_requests_are_there(make_split, records):
    runner = make_split()
    runner = replace(runner, crowded=tuple(replace(one, session=Counting(one.session)) for one in runner.encoders))
    expected = finish(make_split().steps(records, always))

    np.testing.assert_array_equal(finish(runner.steps(records, never)), expected)

    inside = [len(one.session.inner.feeds) for one in runner.crowded]
    assert [len(one.session.feeds) for one in runner.crowded] == inside
    assert min(inside) > 0
    np.testing.assert_array_equal(finish(runner.steps(records, always)), expected)
    assert [len(one.session.feeds) for one in runner.crowded] == inside


class Failing:
    def __init__(self, _inner):
        pass

    def run(self, _names, _feed):
        raise RuntimeError("token ids 31 41 59 of the customer")


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_of_a_session_is_told_without_its_text(make_split, records, caplog, threads):
    with ThreadPoolExecutor(2) as pool:
        runner = make_split(wrap=Failing, pool=pool if threads else None)
        with pytest.raises(InferenceFailed) as caught:
            runner.run(records[:3])
    assert "customer" not in str(caught.value) + caplog.text
    assert "RuntimeError" in caplog.text
