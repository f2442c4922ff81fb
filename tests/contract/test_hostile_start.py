"""A container does not start on a hostile model directory, and its last line says why; it never hangs."""

import json
import os
import pickle
import shutil

import onnx
import pytest

from model_directories import edit_json


@pytest.fixture
def directory(model_dir, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model_dir, copy, ignore=shutil.ignore_patterns("optimized"))
    return copy


def pipe(directory):
    (directory / "golden.jsonl").unlink()
    os.mkfifo(directory / "golden.jsonl")
    return "golden.jsonl is a pipe and not a file; remove it, or put the file in its place."


def link(directory):
    (directory / "impute_dict.json").unlink()
    (directory / "impute_dict.json").symlink_to("/etc/passwd")
    return "impute_dict.json is a link that leads out of the model directory, or nowhere; put a copy there."


def laughs(directory):
    value = ()
    for _ in range(60):
        value = (value, value)
    (directory / "risk_table_map.pkl").write_bytes(b"\x80\x02}" + pickle.dumps(value, 2)[2:-1] + b"K\x01s.")
    return "risk_table_map.pkl cannot be read: it holds a key that is neither a text nor a number; save it as JSON."


def absurd(directory):
    edit_json(directory / "hyperparameters.json", max_sen_len=10**9)
    (directory / "model_artifacts.pth").unlink()
    return "hyperparameters.json: max_sen_len must be a whole number from 3 to 8192."


def secret(directory):
    model = onnx.load(directory / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    onnx.save(model, directory / "model.onnx")
    (directory / "model.pth").unlink()  # else PyTorch serves
    return (
        "model.onnx names weights that are not in the model directory; put them beside it, and export it again where "
        "it names them by an absolute path."
    )


def doubling(directory):
    path = directory / "tokenizer.json"
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    document = {**json.loads(path.read_text()), "normalizer": {"type": "Sequence", "normalizers": [step] * 40}}
    path.write_text(json.dumps(document))
    return "tokenizer.json: a Replace uses a pattern, or makes texts longer; use a tokenizer of BERT."


@pytest.mark.parametrize("spoil", [pipe, link, laughs, absurd, secret, doubling])
def test_a_start_that_is_refused(start, directory, spoil):
    message = spoil(directory)
    server = start(directory, wait=False)
    assert server.process.wait(60) == 1
    assert server.log_text.splitlines()[-1] == f"trimodal: {message}"
    assert "Traceback" not in server.log_text
    assert "root:" not in server.log_text
