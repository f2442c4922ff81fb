"""Model directories of strangers: each is refused with one line that names the file, or costs nothing but itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import pairwise

import pytest
from onnx import TensorProto, helper

from model_directories import RECORD, artifact_error, edit_graph, edit_json, write_json
from model_directories import write_model_directory as write
from trimodal.errors import OptimizationError
from trimodal.loading import directory as directory_module
from trimodal.loading.bake import bake
from trimodal.loading.doctor import examine
from trimodal.loading.facts import open_view
from trimodal.loading.load import load_pipeline
from trimodal.loading.tokenizer import load_tokenizer
from trimodal.loading.verify import read_golden
from trimodal.settings import Settings

MIB = 1024 * 1024


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path / "model", calibration={"percentile_score": [[0, 0.1], [1, 0.9]]})


@pytest.fixture
def load(directory, tmp_path):
    """Loads the directory as a worker does, without optimizing."""
    (tmp_path / "run").mkdir()
    selection = {"level": 2, "entry": None}
    write_json(tmp_path / "run" / "selection.json", selection)
    return lambda: load_pipeline(Settings(model_dir=directory, intra_op_threads=1, run_dir=tmp_path / "run"))


# --- what is no file, or leads elsewhere


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "model.onnx.data", "hyperparameters.json", "tokenizer.json", "calibration/percentile_score.json",
     "golden.jsonl", "feature_columns.txt", "optimized/report.md", "anything"],
)  # fmt: skip
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(directory, load, name):
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with artifact_error(f"{name} is a pipe and not a file; remove it"):
        load()


def test_a_socket_and_a_device_are_refused(directory, load, monkeypatch):
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("golden.jsonl")
        with artifact_error("golden.jsonl is a socket and not a file"):
            load()
    (directory / "golden.jsonl").unlink()
    try:
        os.mknod(directory / "golden.jsonl", 0o600 | 0o020000, os.makedev(1, 5))  # as /dev/zero
    except PermissionError:
        pytest.skip("devices cannot be made here")
    with artifact_error("golden.jsonl is a device and not a file"):
        load()


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "nowhere", "circle", ".."])
@pytest.mark.parametrize("name", ["impute_dict.json", "tokenizer", "optimized", "model.onnx.data"])
def test_a_link_that_leads_out_of_the_directory_is_refused(directory, load, name, target):
    (directory.parent / "secret").write_text('{"amount": 1}')
    (directory / "circle").symlink_to("circle")
    (directory / "circle").unlink()
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(name if target == "circle" else target)
    with artifact_error(f"{name} is a link that leads out of the model directory, or nowhere; put a copy there"):
        load()


def test_a_link_within_the_directory_is_followed(directory, load):
    (directory / "tokenizer.json").rename(directory / "words.json")
    (directory / "tokenizer.json").symlink_to("words.json")
    assert load().status["level"] == 2


def test_what_stands_in_code_is_not_looked_at(directory, load):
    (directory / "code").mkdir()
    (directory / "code" / "python").symlink_to(sys.executable)
    assert load().status["level"] == 2


def test_a_copy_is_not_made_of_what_links_name(directory, tmp_path):
    (directory / "notes").symlink_to("/etc/hostname")
    with artifact_error("notes is a link that leads out"):
        bake(Settings(model_dir=directory), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


# --- sizes


@pytest.mark.parametrize("name", ["hyperparameters.json", "feature_columns.txt", "risk_table_map.pkl", "golden.jsonl",
                                  "tokenizer.json", "calibration/percentile_score.json", "vocab.txt"])  # fmt: skip
def test_a_file_of_gigabytes_is_refused_before_it_is_read(directory, load, name):
    with (directory / name).open("ab") as file:
        file.truncate(2**33)  # sparse
    with artifact_error(f"{name} has 8192 MB, more than such a file may have"):
        load()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "model.pth"])
def test_a_model_larger_than_the_memory_is_refused(directory, load, name):
    with (directory / name).open("ab") as file:
        file.truncate(2**42)
    with artifact_error(f"{name} has 4194304 MB, more than this container has memory"):
        load()


def test_more_files_than_any_model_has_are_refused(load, monkeypatch):
    monkeypatch.setattr(directory_module, "MOST_FILES", 5)
    with artifact_error("The model directory holds more than 5 files"):
        load()


def test_json_of_a_million_lists_is_refused(directory, load):
    (directory / "risk_table_map.json").write_text(f'{{"a": [{"[]," * 1_000_000}[]]}}')
    with artifact_error("risk_table_map.json holds more than 1000000 lists and objects"):
        load()


# --- values


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("max_sen_len", 10**9, "a whole number from 3 to 8192"),
        ("max_total_chunks", 10**9, "a whole number from 1 to 10000"),
        ("num_classes", 10**9, "a whole number from 2 to 10000"),
        ("tab_field_list", [f"f{i}" for i in range(10_001)], "at most 10000 names"),
        ("tab_field_list", ["x" * 501], "at most 500 characters"),
        ("primary_text_name", "x" * 501, "at most 500 characters"),
        ("primary_text_name", "a\nb", "one line"),
        ("id_name", "a\u2028b", "one line"),
        ("multiclass_categories", [[[[]]], 1], "a list of different labels, texts or numbers"),
        ("multiclass_categories", [{}, 1], "a list of different labels, texts or numbers"),
        ("primary_text_processing_steps", ["dialogue_splitter", *["html_normalizer"] * 32], "more than 32 steps"),
    ],
)
def test_an_absurd_value_names_its_key(directory, load, key, value, words):
    edit_json(directory / "hyperparameters.json", **{key: value})
    with artifact_error(f"hyperparameters.json: {key}", words):
        load()


def test_labels_nested_beyond_the_stack_are_refused(directory, load):
    path = directory / "hyperparameters.json"
    text = path.read_text().rstrip("}") + f', "multiclass_categories": [1, {"[" * 900}{"]" * 900}]}}'
    path.write_text(text)
    with artifact_error("hyperparameters.json: multiclass_categories must be a list of different labels"):
        load()


@pytest.mark.parametrize("value", [1e300, -1e39, float("nan"), 10**400])
def test_numbers_that_no_score_or_input_can_hold_are_refused(directory, load, value):
    write_json(directory / "impute_dict.json", {"amount": value})
    with artifact_error("impute_dict.json must map field names to finite numbers"):
        load()
    (directory / "impute_dict.json").unlink()
    write_json(directory / "calibration" / "percentile_score.json", [[0, value], [1, 1]])
    with artifact_error("calibration/percentile_score.json must be a list of [raw, calibrated] pairs"):
        load()


def test_a_table_that_takes_long_to_look_up_is_refused(directory, load):
    write_json(directory / "calibration" / "percentile_score.json", [[i / 100_001, 0.5] for i in range(100_001)])
    with artifact_error("calibration/percentile_score.json has more than 100000 pairs"):
        load()


def test_columns_without_end_are_refused(directory, load):
    names = ["order_id", "amount", "count", "chat", "events", *(f"c{i}" for i in range(100_000))]
    (directory / "feature_columns.txt").write_text("".join(f"{i},{name}\n" for i, name in enumerate(names)))
    with artifact_error("feature_columns.txt lists more than 100000 columns"):
        load()


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, f'{{"record": {json.dumps(RECORD)}, "probs": [{10**400}, 0]}}', '{"record": [[[]]], "probs": [1]}',
     '{"record": {}, "probs": {"a": 1}}', "1" * 5000],
    ids=["deep", "digits", "pairs", "names", "number"],
)  # fmt: skip
def test_a_golden_record_of_another_form_is_an_error(directory, line):
    (directory / "golden.jsonl").write_text(line + "\n")
    with artifact_error("golden.jsonl line 1 must be an object"):
        read_golden(directory / "golden.jsonl")


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        ({"record": {**RECORD, "chat": "x" * 200_001}, "probs": [0.5, 0.5]}, "MAX_TEXT_CHARACTERS"),
        ({"record": RECORD, "probs": [0.5, 0.5], "label": 10**30}, "a label that is no class"),
        ({"record": RECORD, "probs": [0.5, 0.5], "label": -1}, "a label that is no class"),
    ],
)
def test_a_golden_record_that_cannot_be_scored_loses_the_optimization_alone(directory, tmp_path, golden, words):
    write_json(directory / "golden.jsonl", golden)
    pipeline = load_pipeline(Settings(model_dir=directory, intra_op_threads=1, optimized_dir=tmp_path / "optimized"))
    assert pipeline.status["level"] == 2
    assert words in str(pipeline.status["causes"])


# --- graphs


def external(model, location, **more):
    """Says that the weights of the embedding stand in another file; returns them."""
    tensor = next(item for item in model.graph.initializer if item.name == "embedding")
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return raw


@pytest.mark.parametrize("location", ["{secret}", "../secret.bin", "sub/../../secret.bin", "/dev/zero", "missing.bin"])
def test_weights_outside_of_the_directory_are_not_read(directory, load, location):
    secret = directory.parent / "secret.bin"
    secret.write_bytes(bytes(4 * 34))
    edit_graph(directory / "model.onnx", lambda model: external(model, location.format(secret=secret)))
    with artifact_error("model.onnx names weights that are not in the model directory; put them beside it"):
        load()
    with pytest.raises(OptimizationError, match="the graph cannot be read"):
        open_view(directory / "model.onnx")


@pytest.mark.parametrize(
    "more",
    [{"offset": 2**62}, {"offset": -4}, {"length": 2**40}, {"offset": 2**63 - 1, "length": 2**63 - 1}, {"length": "x"}],
    ids=str,
)
def test_weights_beyond_their_file_are_not_read(directory, load, more):
    edit_graph(
        directory / "model.onnx",
        lambda model: (directory / "weights").write_bytes(external(model, "weights", **more)),
    )
    with artifact_error("model.onnx cannot be loaded: it is damaged, incomplete or not an ONNX model; export it again"):
        load()
    with pytest.raises(OptimizationError, match="the graph cannot be read"):
        open_view(directory / "model.onnx")


@pytest.mark.parametrize("dims", [[2**40], [2**33, 2**33], [-1], [2**62, 4]], ids=str)
def test_a_tensor_that_says_it_is_larger_than_its_numbers_is_refused(directory, load, dims):
    def resize(model):
        tensor = next(item for item in model.graph.initializer if item.name == "embedding")
        del tensor.dims[:]
        tensor.dims.extend(dims)

    edit_graph(directory / "model.onnx", resize)
    with artifact_error("model.onnx cannot be loaded"):
        load()


def test_operators_that_only_others_know_are_refused(directory, load):
    def rename(model):
        model.graph.node[0].domain = "evil.operators"
        model.opset_import.append(helper.make_opsetid("evil.operators", 1))

    edit_graph(directory / "model.onnx", rename)
    with artifact_error("model.onnx cannot be loaded", "evil.operators"):
        load()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_fixed_to_a_billion_is_refused(directory, load, axis):
    def fix(model):
        for value in (*model.graph.input, *model.graph.output):
            dims = value.type.tensor_type.shape.dim
            if axis == 0 or value.name.endswith(("input_ids", "attention_mask")):
                dims[axis].dim_value = 10**9

    edit_graph(directory / "model.onnx", fix)
    with artifact_error("model.onnx: chat_input_ids has axes fixed to 1000000000 tokens"):
        load()


def identities(model, names):
    """Puts a chain of nodes that do nothing between the embedding and its readers."""
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "embedding":
                node.input[place] = names[-1]
    for place, (source, name) in enumerate(pairwise(names)):
        model.graph.node.insert(place, helper.make_node("Identity", [source], [name]))


@pytest.mark.parametrize("names", [["a", "a"], ["b", "a", "b"]], ids=["itself", "circle"])
def test_a_graph_that_runs_in_circles_is_refused_and_not_followed(directory, load, names):
    edit_graph(directory / "model.onnx", lambda model: identities(model, names))
    with artifact_error("model.onnx cannot be loaded"):
        load()
    assert "not in the order" in str(examine(Settings(model_dir=directory))["problems"])


def test_a_long_chain_of_nodes_is_no_encoder(directory):
    names = ["embedding", *(f"i{number}" for number in range(3000))]
    edit_graph(directory / "model.onnx", lambda model: identities(model, names))
    problems = [encoder["problem"] for encoder in examine(Settings(model_dir=directory))["model"]["encoders"]]
    assert problems == ["its nodes form too long a chain"] * 2


# --- tokenizers


def change_tokenizer(directory, change):
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


@pytest.mark.parametrize(
    ("part", "step", "words"),
    [
        ("normalizer", sequence(*[replace({"String": "a"}, "aa")] * 40), "makes texts longer"),
        ("normalizer", replace({"String": ""}, "a"), "makes texts longer"),
        ("normalizer", replace({"Regex": "(a+)+$"}, "b"), "uses a pattern"),
        ("normalizer", {"type": "Prepend", "prepend": "x" * 1_000_000}, "makes texts longer"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "'Precompiled', which is not allowed"),
        ("normalizer", sequence(*[{"type": "Lowercase"}] * 300_000), "more than 100 steps"),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
         "uses a pattern"),
        ("decoder", replace({"String": ""}, "b" * 1000), "makes texts longer"),
    ],
    ids=["doubling", "nothing", "pattern", "prepend", "unknown", "steps", "split", "decoder"],
)  # fmt: skip
def test_a_step_that_explodes_is_refused(directory, load, part, step, words):
    change_tokenizer(directory, lambda document: document.update({part: step}))
    with artifact_error("tokenizer.json", words):
        load()


def test_steps_nested_deeply_are_refused(directory, load):
    nested = '{"type": "Sequence", "normalizers": [' * 100_000 + "]}" * 100_000
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalizer":', f'"normalizer":{nested}, "x":', 1))
    with artifact_error("tokenizer.json is not valid JSON"):
        load()


def test_a_word_without_end_is_not_tried_in_all_its_parts(directory, load):
    change_tokenizer(directory, lambda document: document["model"].update(max_input_chars_per_word=10**12))
    with artifact_error("tokenizer.json: max_input_chars_per_word is over 200"):
        load()


@pytest.mark.parametrize(("number", "words"), [(2**32 - 1, "beyond 10000000"), (10_000, "with token id 10000")])
def test_a_token_that_the_model_does_not_have_is_found_at_the_start(directory, load, number, words):
    change_tokenizer(directory, lambda document: document["model"]["vocab"].update(zz=number))
    with artifact_error(words):
        load()


def test_a_tokenizer_that_cannot_read_unknown_words_is_found_at_the_start(directory, load):
    change_tokenizer(directory, lambda document: document["model"].update(unk_token="none"))
    with artifact_error("tokenizer.json cannot read a text"):
        load()


def test_more_special_tokens_than_a_chunk_has_are_found_at_the_start(directory, load):
    token = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    text, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    template = {
        "type": "TemplateProcessing",
        "single": [*[token] * 16, text],
        "pair": [text, other],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
    }
    change_tokenizer(directory, lambda document: document.update(post_processor=template))
    with artifact_error("tokenizer.json adds 16 special tokens to each text and max_sen_len is 16"):
        load()


def test_a_named_tokenizer_elsewhere_must_be_a_file_of_a_sane_size(directory, tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**33)
    with artifact_error("large.json has 8192 MB"):
        load_tokenizer(directory, str(large))


# --- user code is trusted


def test_nothing_else_of_the_directory_is_imported(directory):
    """Python files beside the model are no modules of ours, whatever they are called."""
    marker = directory.parent / "ran"
    for name in ("json.py", "numpy.py", "sitecustomize.py", "trimodal.py", "inference.py"):
        (directory / name).write_text(f"open({str(marker)!r}, 'w')")
    program = (
        "from pathlib import Path; from trimodal.loading.load import load_pipeline\n"
        "from trimodal.settings import Settings\n"
        f"load_pipeline(Settings(model_dir=Path({str(directory)!r}), intra_op_threads=1))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, cwd=directory.parent)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
