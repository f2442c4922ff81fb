from __future__ import annotations

import numpy as np

from model_directories import Graph, write_graph
from trimodal.loading.gpu import MAX_ROWS, BoundSession, profile_shapes
from trimodal.loading.sessions import Tuning, open_graph
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput

LAYOUT = GraphLayout(
    TextInput("chat_input_ids", "chat_attention_mask", np.int64),
    TextInput("events_input_ids", "events_attention_mask", np.int64, chunked=False, chunks=1, tokens=64),
    (TabularInput("amount", np.float32, (0,)), TabularInput("count", np.float32, (1,), flat=True)),
    "probs",
)


def test_bound_buffers_give_what_a_plain_run_gives(tmp_path):
    write_graph(tmp_path / "model.onnx", Graph())
    session = open_graph(tmp_path / "model.onnx", Tuning(1).options("model"))
    rng = np.random.default_rng(0)
    feed = {
        node.name: rng.integers(1, 9, (2, 1, 5)) if "int64" in node.type else np.ones((2, 1), np.float32)
        for node in session.get_inputs()
    }

    for _ in range(2):  # buffers of one run are not the next one's
        (bound,) = BoundSession(session).run(["probs"], feed)
        np.testing.assert_array_equal(bound, session.run(["probs"], feed)[0])
        feed = {name: value[:1] for name, value in feed.items()}


def test_one_engine_serves_every_shape_that_the_model_takes():
    shapes = profile_shapes(LAYOUT, max_tokens=512, max_chunks=3)

    assert shapes["trt_profile_min_shapes"].split(",") == [
        "chat_input_ids:1x1x1", "chat_attention_mask:1x1x1", "events_input_ids:1x64", "events_attention_mask:1x64",
        "amount:1x1", "count:1",
    ]  # fmt: skip
    assert "chat_input_ids:1x1x128" in shapes["trt_profile_opt_shapes"]
    assert f"chat_input_ids:{MAX_ROWS}x3x512" in shapes["trt_profile_max_shapes"]
    assert f"count:{MAX_ROWS}" in shapes["trt_profile_max_shapes"]
