from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_directories import RECORD, edit_json, write_json
from model_directories import write_model_directory as write
from trimodal import __version__, cli
from trimodal.loading.load import load_pipeline
from trimodal.records import Payload
from trimodal.settings import Settings

OURS = ("SAGEMAKER_", "SM_", "ONNX_", "TRIMODAL_", "SCORE_", "RESPONSE_", "LOG_", "MODEL_")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model directory whose golden records hold."""
    path = write(tmp_path_factory.mktemp("model"))
    (score,) = load_pipeline(Settings(model_dir=path, workers=1)).predict(Payload([RECORD])).raw[0].tolist()
    write_json(path / "golden.jsonl", {"record": RECORD, "probs": [1 - score, score]})
    return path


def trimodal(*arguments, **variables):
    """Runs the command in a process of its own, with none of our variables but the given ones."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    command = [sys.executable, "-m", "trimodal.cli", *map(str, arguments)]
    return subprocess.run(
        command, env={**environ, **variables}, capture_output=True, text=True, timeout=60, check=False
    )


def assert_one_line(result, *words):
    """Fails unless the command ended with status 1 and one line that holds the words."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    *logged, line = result.stderr.splitlines()
    assert [json.loads(entry)["level"] for entry in logged] == ["WARNING"] * len(logged)
    assert line.startswith("trimodal: ")
    assert [word for word in words if word not in line] == []


def test_help_names_the_commands():
    result = trimodal("--help")

    assert (result.returncode, result.stderr) == (0, "")
    for words in ("usage: trimodal", "serve", "verify", "--version", "/invocations", "golden.jsonl"):
        assert words in result.stdout


@pytest.mark.parametrize("command", ["serve", "verify", "doctor", "prepare", "export"])
def test_help_of_a_command(command):
    result = trimodal(command, "--help")

    assert result.returncode == 0
    assert f"usage: trimodal {command}" in result.stdout
    assert "SM_MODEL_DIR" in result.stdout


def test_version():
    result = trimodal("--version")

    assert (result.returncode, result.stdout) == (0, f"{__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve", "--fast"], ["verify", "a", "b"]])
def test_wrong_usage(arguments):
    result = trimodal(*arguments)

    assert result.returncode == 2
    assert result.stderr.startswith("usage: trimodal")
    assert "Traceback" not in result.stderr


def test_the_installed_command_is_the_same():
    command = Path(sys.executable).with_name("trimodal")
    if not command.exists():
        pytest.skip("the package is not installed")

    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, f"{__version__}\n")


def test_golden_records_that_hold(directory):
    result = trimodal("verify", directory)

    assert result.returncode == 0
    assert "level 2, tuned: 1 records, largest difference of a probability " in result.stdout
    assert result.stdout.endswith(": ok\n")
    lost = json.loads(result.stderr)
    assert (lost["message"], lost["fallback_level"]) == ("lost: fusion", 2)
    assert "the token ids are not looked up in a table of embeddings" in lost["cause"]


def test_the_directory_may_come_from_the_environment(directory):
    result = trimodal("verify", SM_MODEL_DIR=str(directory))

    assert (result.returncode, result.stdout.endswith(": ok\n")) == (0, True)


def test_the_argument_wins_over_the_environment(directory):
    assert trimodal("verify", directory, SM_MODEL_DIR="/nowhere").returncode == 0


@pytest.mark.parametrize("probs", [[0.0, 1.0], [0.5, float("nan")]])
def test_golden_records_that_do_not_hold(tmp_path, probs):
    path = write(tmp_path)
    write_json(path / "golden.jsonl", {"record": RECORD, "probs": probs})

    result = trimodal("verify", path)

    assert result.returncode == 1
    last = result.stdout.splitlines()[-1]
    assert last.startswith("level 2, tuned: 1 records, largest difference of a probability ")
    assert ": NOT ok: " in last


def test_no_golden_records(tmp_path):
    result = trimodal("verify", write(tmp_path))

    assert_one_line(result, "golden.jsonl is missing from the model directory")


def test_a_golden_record_that_cannot_be_scored(tmp_path):
    path = write(tmp_path)
    write_json(path / "golden.jsonl", {"record": {**RECORD, "amount": "x"}, "probs": [0.5, 0.5]})

    assert_one_line(trimodal("verify", path), "Record 0: the field amount is not a number")


@pytest.mark.parametrize("command", ["verify", "serve"])
def test_a_missing_directory(tmp_path, command):
    result = trimodal(command, tmp_path / "absent")

    assert_one_line(result, "does not exist; mount or unpack the model there")


def test_a_directory_that_cannot_be_loaded(tmp_path):
    path = write(tmp_path)
    edit_json(path / "hyperparameters.json", max_sen_len="long")

    assert_one_line(trimodal("verify", path), "hyperparameters.json: max_sen_len must be a whole number")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SAGEMAKER_BIND_TO_PORT": "http"}, "SAGEMAKER_BIND_TO_PORT='http' must be a whole number from 1 to 65535"),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "0"}, "SAGEMAKER_MODEL_SERVER_WORKERS='0' must be a whole number"),
        ({"SAGEMAKER_SAFE_PORT_RANGE": "9"}, "SAGEMAKER_SAFE_PORT_RANGE='9' must be two ports such as 9000-9999"),
        ({"LOG_LEVEL": "LOUD"}, "LOG_LEVEL='LOUD' must be one of DEBUG, INFO, WARNING, ERROR"),
        ({"SCORE_FORMAT": "roman"}, "SCORE_FORMAT='roman' must be one of string, number"),
        ({"RESPONSE_FIELDS": "id,name"}, "RESPONSE_FIELDS: 'name' must be one of output-label, id"),
        ({"MODEL_SERVER": "iis"}, "MODEL_SERVER='iis' must be one of mms"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "verify"])
def test_a_bad_environment_is_one_line(directory, command, variables, words):
    assert_one_line(trimodal(command, directory, **variables), words)


def test_the_function_returns_the_status(directory, capsys, monkeypatch):
    monkeypatch.setattr(cli.log, "configure", lambda *_arguments: None)  # the log of this process is pytest's

    assert cli.main(["verify", str(directory)]) == 0
    assert capsys.readouterr().out.endswith(": ok\n")
    assert cli.main(["verify", str(directory / "absent")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_log_is_one_json_object_a_line(tmp_path):
    path = write(tmp_path, config={"num_classes": 3}, calibration={"percentile_score": [[0, 1]]})

    result = trimodal("verify", path)

    *logged, last = result.stderr.splitlines()
    first = json.loads(logged[0])
    assert (first["level"], first["logger"]) == ("WARNING", "trimodal.loading.calibration")
    assert "percentile_score.json" in first["message"]
    assert result.returncode == 1
    assert last.startswith("trimodal: model.onnx gives 2 scores a record")


def test_doctor_tells_host_model_and_plan():
    demo = Path(__file__).parents[2] / "scripts" / "models" / "demo"

    result = trimodal("doctor", demo)

    assert (result.returncode, result.stderr) == (0, "")
    for words in ("cores", "2 layers, 2 heads, hidden 64", "try       rebuild-fp32", "CPUExecutionProvider"):
        assert words in result.stdout


def test_doctor_as_json():
    demo = Path(__file__).parents[2] / "scripts" / "models" / "demo"

    findings = json.loads(trimodal("doctor", demo, "--json", MODEL_PRECISION="auto", ENABLE_BERT_FUSION="false").stdout)

    assert findings["plan"]["groups"] == []
    assert set(findings["plan"]["skipped"].values()) == {"ENABLE_BERT_FUSION=false"}


def test_doctor_names_what_is_wrong(tmp_path):
    result = trimodal("doctor", tmp_path)

    assert result.returncode == 1
    assert "PROBLEM   model.onnx" in result.stdout


def test_prepare_writes_a_directory_that_needs_no_preparation(tmp_path):
    demo = Path(__file__).parents[2] / "scripts" / "models" / "demo"

    result = trimodal("prepare", demo, "--out", tmp_path / "out")

    assert result.returncode == 0, result.stderr
    assert "| rebuild-fp32 |" in result.stdout
    assert result.stdout.endswith("prepared\n")
    assert [json.loads(line)["level"] for line in result.stderr.splitlines()].count("ERROR") == 0
    second = trimodal("verify", tmp_path / "out", LOG_LEVEL="DEBUG")
    assert second.returncode == 0
    assert "optimized model found in the cache" in second.stderr
    assert_one_line(trimodal("prepare", demo, "--out", tmp_path / "out"), "is there already")


def test_prepare_that_loses_something_says_so(tmp_path):
    result = trimodal("prepare", write(tmp_path / "model"))

    assert result.returncode == 1
    assert result.stdout.endswith("NOT prepared\n")
