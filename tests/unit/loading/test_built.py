from __future__ import annotations

import json

import numpy as np
import pytest

from trimodal.errors import OptimizationError
from trimodal.loading.built import Built, TextPart
from trimodal.serving.runner import GraphLayout, TabularInput, TextInput

LAYOUT = GraphLayout(
    TextInput("a_ids", "a_mask", np.dtype(np.int64)),
    TextInput("b_ids", "b_mask", np.dtype(np.int32), chunked=False, tokens=16),
    (TabularInput("x", np.dtype(np.float32), (0,)), TabularInput("y", np.dtype(np.float64), (1, 2), flat=False)),
    "probs",
)
BUILT = Built(
    "rebuild-fp32", "fp32", "onnxruntime", ("CPUExecutionProvider",), LAYOUT, 4, 4, "",
    (TextPart("primary.onnx", "input_ids", "", ("t",), True), TextPart("s.onnx", "i", "m", ("u", "v"), False, 16)),
    "head.onnx", ((0, "a_ids"),),
)  # fmt: skip


def test_a_description_comes_back_from_json():
    assert Built.from_json(json.loads(json.dumps(BUILT.to_json()))) == BUILT


@pytest.mark.parametrize(
    "change", [{"layout": None}, {"layout": {}}, {"texts": [1]}, {"providers": None}, {"more": 1}, {"head_shapes": [1]}]
)
def test_another_form_is_an_error(change):
    with pytest.raises(OptimizationError, match="does not describe a model"):
        Built.from_json({**BUILT.to_json(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"head": "../../head.onnx"},
        {"head": "/etc/passwd"},
        {"whole": "folder/model.onnx"},
        {"texts": [{**BUILT.to_json()["texts"][0], "file": "../primary.onnx"}, BUILT.to_json()["texts"][1]]},
        {"texts": [{**BUILT.to_json()["texts"][0], "bucket": 10**9}, BUILT.to_json()["texts"][1]]},
        {"texts": [{**BUILT.to_json()["texts"][0], "bucket": 0}, BUILT.to_json()["texts"][1]]},
        {"texts": BUILT.to_json()["texts"][:1]},
        {"profile": {"trt_extra_plugin_lib_paths": "/opt/ml/model/evil.so"}},
        {"engine": "tvm"},
        {"precision": "fp8"},
    ],
)
def test_what_we_would_not_have_made_is_an_error(change):
    with pytest.raises(OptimizationError, match="would not have made"):
        Built.from_json({**BUILT.to_json(), **change})


@pytest.mark.parametrize(
    "change", [{"head": 5}, {"head": ["a"]}, {"precision": []}, {"profile": [1]}, {"texts": [{}, {}]}]
)
def test_values_of_another_kind_are_an_error(change):
    with pytest.raises(OptimizationError):
        Built.from_json({**BUILT.to_json(), **change})


def test_the_files_of_a_model():
    assert BUILT.files == {"primary.onnx", "s.onnx", "head.onnx"}
