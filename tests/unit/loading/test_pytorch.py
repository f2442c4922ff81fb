from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model_directories import Harmful, artifact_error, edit_json
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.load import load_pipeline
from trimodal.loading.pytorch import export_model, load_pytorch, read_bert_configs
from trimodal.loading.verify import replay_golden
from trimodal.records import Payload
from trimodal.serving.naming import name_fields
from trimodal.serving.runner import Runner
from trimodal.settings import Settings

DEMO = Path(__file__).parents[3] / "scripts" / "models" / "demo"


@pytest.fixture
def directory(tmp_path):
    """The demo model without its graph."""
    path = tmp_path / "model"
    shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("model.onnx", "optimized"))
    return path


def settings(path, **changes):
    return Settings(model_dir=path, workers=1, intra_op_threads=1, **changes)


def test_the_scores_are_those_of_the_graph(directory):
    pipeline = load_pipeline(settings(DEMO, fusion=False))
    session, layout = load_pytorch(read_artifacts(directory), 1)
    records = [json.loads(line)["record"] for line in (DEMO / "golden.jsonl").read_text().splitlines()[:8]]
    features = [pipeline.features.encode(record) for record in name_fields(Payload(records), pipeline.schema)]

    scores = Runner(session, layout).run(features)

    np.testing.assert_allclose(scores, pipeline.runner.run(features), atol=1e-5)


def test_a_directory_of_weights_alone_climbs_the_ladder(directory):
    pipeline = load_pipeline(settings(directory))

    assert (pipeline.status["level"], pipeline.status["rung"]) == (1, "rebuild-fp32")
    assert replay_golden(pipeline, directory / "golden.jsonl").refusal is None


def test_without_fusion_the_export_itself_is_served_and_kept(directory):
    first = load_pipeline(settings(directory, fusion=False))
    second = load_pipeline(settings(directory, fusion=False))

    assert first.status["entry"] == second.status["entry"]
    assert (first.status["level"], first.status["rung"]) == (1, "tuned")
    assert (Path(first.status["entry"]) / "model.onnx").is_file()
    assert replay_golden(second, directory / "golden.jsonl").refusal is None


def test_a_graph_that_is_torn_is_replaced_by_the_weights(directory):
    (directory / "model.onnx").write_bytes((DEMO / "model.onnx").read_bytes()[:50_000])

    pipeline = load_pipeline(settings(directory))

    assert (pipeline.status["level"], pipeline.status["engine"]) == (4, "torch")
    assert "level 3" in pipeline.status["causes"]
    assert replay_golden(pipeline, directory / "golden.jsonl").refusal is None


def test_entries_of_the_loss_are_ignored(directory):
    state = torch.load(directory / "model.pth", weights_only=True)
    torch.save(
        {**state, "loss_op.weight": torch.ones(2), "class_weights_tensor": torch.ones(2)}, directory / "model.pth"
    )

    load_pytorch(read_artifacts(directory), 1)


def test_the_heads_come_from_the_config(directory):
    assert read_bert_configs(directory)[0]["num_attention_heads"] == 2

    (directory / "tokenizer").mkdir()
    (directory / "config.json").rename(directory / "tokenizer" / "config.json")
    assert read_bert_configs(directory)[1]["num_attention_heads"] == 2

    shutil.rmtree(directory / "tokenizer")
    with artifact_error("config.json", "heads", "add it"):
        load_pytorch(read_artifacts(directory), 1)


def damage_bytes(path):
    (path / "model.pth").write_bytes(b"PK\x03\x04 no archive")


def damage_names(path):
    torch.save({"weight": torch.ones(2)}, path / "model.pth")


def change_state(path, change):
    state = torch.load(path / "model.pth", weights_only=True)
    torch.save(change(state), path / "model.pth")


def damage_kind(path):
    torch.save([torch.ones(2)], path / "model.pth")


def damage_values(path):
    change_state(path, lambda state: {**state, "more": 1})


def damage_sizes(path):
    """A weight of two gigabytes, which are one number."""
    name = "final_merge_network.2.weight"
    change_state(path, lambda state: {**state, name: torch.ones(1).expand(250_000, 2000)})


def damage_program(path):
    with zipfile.ZipFile(path / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"a": Harmful(os.system, "touch ran")}))


def damage_packing(path):
    """Zeros that unpack to more than the memory of any container."""
    with zipfile.ZipFile(path / "model.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/99", b"")
        archive.filelist[-1].file_size = 2**42


def absurd(**sizes):
    return lambda path: edit_json(path / "config.json", **sizes)


def damage_shapes(path):
    edit_json(path / "config.json", hidden_size=32)


def damage_config(path):
    (path / "config.json").write_text("{")


def damage_fields(path):
    config = json.loads((path / "hyperparameters.json").read_text())
    edit_json(path / "hyperparameters.json", tab_field_list=config["tab_field_list"][:-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_bytes, "model.pth"),
        (damage_names, "model.pth"),
        (damage_shapes, "model.pth: config.json names another hidden_size than the weights have, which is 64"),
        (damage_kind, "model.pth cannot be used: it is no state dict"),
        (damage_values, "model.pth cannot be used: it holds something else than tensors"),
        (damage_sizes, "model.pth cannot be used: a tensor says that it is larger than its numbers"),
        (damage_program, "model.pth cannot be read: it would build posix.system"),
        (damage_packing, "model.pth unpacks to 4194305 MB and this container has"),
        (absurd(vocab_size=10**9), "another vocab_size than the weights have, which is 1600"),
        (absurd(num_hidden_layers=10**9), "another num_hidden_layers than the weights have, which is 2"),
        (absurd(intermediate_size=10**9), "another intermediate_size"),
        (absurd(max_position_embeddings=10**9), "another max_position_embeddings"),
        (absurd(num_attention_heads=10**9), "num_attention_heads must divide hidden_size, which is 64"),
        (absurd(num_attention_heads=0), "num_attention_heads must divide hidden_size"),
        (absurd(num_attention_heads="2"), "num_attention_heads is of a wrong type"),
        (absurd(hidden_act="os.system"), "config.json does not make a BERT"),
        (damage_config, "config.json"),
        (damage_fields, "tab_field_list"),
    ],
)
def test_weights_that_make_no_network_are_an_error(directory, damage, words):
    (directory / "feature_columns.txt").unlink()
    damage(directory)

    with artifact_error(words):
        load_pytorch(read_artifacts(directory), 1)


def test_a_config_cannot_name_code_to_run(directory):
    """transformers would load such an attention from its hub, and run it."""
    edit_json(
        directory / "config.json",
        attn_implementation="someone/kernels:attention",
        _attn_implementation="someone/kernels:attention",
        auto_map={"AutoModel": "evil.Model"},
    )

    load_pytorch(read_artifacts(directory), 1)


def test_an_export_gives_the_same_scores(directory):
    assert export_model(directory, directory / "model.onnx", opset=14) < 1e-5
    assert [item.version for item in onnx.load(directory / "model.onnx").opset_import if not item.domain] == [14]
    assert replay_golden(load_pipeline(settings(directory)), directory / "golden.jsonl").refusal is None


def test_an_export_that_fails_leaves_nothing_behind(directory):
    before = sorted(path.name for path in directory.iterdir())
    damage_names(directory)

    with artifact_error("model.pth"):
        export_model(directory, directory / "model.onnx")
    with artifact_error("cannot be exported"):
        export_model(DEMO, directory / "absent" / "model.onnx")

    assert sorted(path.name for path in directory.iterdir()) == before


def test_without_torch_the_remedy_is_named(directory):
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("refused", name=name)
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from trimodal.errors import ArtifactError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.pytorch import load_pytorch
try:
    load_pytorch(read_artifacts(Path(sys.argv[1])), 1)
except ArtifactError as err:
    print(err)
"""
    done = subprocess.run([sys.executable, "-c", program, directory], capture_output=True, text=True, check=False)

    assert "use the full image or add model.onnx" in done.stdout, done.stderr
