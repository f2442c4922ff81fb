from __future__ import annotations

import json

import pytest

from model_directories import RECORD
from model_directories import write_model_directory as write
from trimodal.errors import ArtifactError, SettingsError
from trimodal.servers.mms import handle
from trimodal.servers.workers import failure, ready_workers

pytestmark = pytest.mark.usefixtures("fresh_process")

BODY = json.dumps(RECORD).encode()
JSON = {"Content-Type": "application/json"}
SECRET = "a-very-private-dialogue"


def test_a_loaded_worker_reports_ready(worker, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    worker(variables={"TRIMODAL_RUN_DIR": run_dir})

    assert (ready_workers(run_dir), failure(run_dir)) == (1, None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model.onnx").unlink(), "model.onnx is missing from the model directory"),
        (lambda d: (d / "model.onnx").write_bytes(b"x"), "model.onnx cannot be loaded"),
        (lambda d: (d / "hyperparameters.json").write_text("{"), "hyperparameters.json is not valid"),
    ],
)
def test_a_directory_that_cannot_be_loaded_is_reported(tmp_path, environment, damage, message, context_of):
    environment(TRIMODAL_RUN_DIR=tmp_path)
    directory = write(tmp_path / "model")
    damage(directory)

    with pytest.raises(ArtifactError, match=message):
        handle(None, context_of(directory))

    assert failure(tmp_path).startswith(message)
    assert ready_workers(tmp_path) == 0


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("def model_fn(model_dir): raise OSError('no weights')", OSError, "model_fn failed: OSError: no weights"),
        ("def model_fn(): ...", TypeError, "model_fn failed: TypeError: "),
        ("import no_such_module", ArtifactError, "code/inference.py cannot be imported: ModuleNotFoundError"),
        (
            "def transform_fn(*a): ...\ndef input_fn(*a): ...",
            ArtifactError,
            "code/inference.py: define either transform_fn or",
        ),
    ],
)
def test_a_users_module_that_fails_is_reported(worker, tmp_path, code, error, message):
    with pytest.raises(error):
        worker(code, variables={"TRIMODAL_RUN_DIR": tmp_path})

    assert failure(tmp_path).startswith(message)
    assert ready_workers(tmp_path) == 0


@pytest.mark.parametrize("name", ["pre_model_fn", "model_warmup_fn"])
def test_the_function_of_the_user_that_failed_is_named(worker, tmp_path, name):
    with pytest.raises(OSError, match="no disk"):
        worker(f"def {name}(*arguments): raise OSError('no disk')", variables={"TRIMODAL_RUN_DIR": tmp_path})

    assert failure(tmp_path) == f"{name} failed: OSError: no disk"


def test_a_failure_to_load_without_anybody_listening_is_still_an_error(tmp_path, environment, context_of):
    environment()

    with pytest.raises(ArtifactError, match="does not exist"):
        handle(None, context_of(tmp_path / "absent"))


def test_a_bad_environment_is_an_error(tmp_path, environment, context_of):
    environment(SCORE_FORMAT="roman")

    with pytest.raises(SettingsError, match="SCORE_FORMAT='roman' must be one of string, number"):
        handle(None, context_of(write(tmp_path)))


def test_the_environment_sets_the_form_of_the_answers(worker):
    (answer,) = worker(variables={"SCORE_FORMAT": "number", "RESPONSE_FIELDS": "id,output-label"})((BODY, JSON))

    (prediction,) = answer.json()["predictions"]
    assert isinstance(prediction["legacy-score"], float)
    assert prediction["order_id"] == "A-1"
    assert prediction["output-label"] in ("class-0", "class-1")
