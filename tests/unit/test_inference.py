from __future__ import annotations

import inspect
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import inference
from model_directories import PRIMARY, RECORD, SECONDARY, TABLE
from model_directories import write_model_directory as write
from trimodal.errors import ArtifactError, InvalidRecord, MalformedBody, NotAcceptable, SettingsError, UnsupportedMedia
from trimodal.loading.load import load_pipeline
from trimodal.settings import Settings

OURS = ("SAGEMAKER_", "SM_", "ONNX_", "TRIMODAL_", "SCORE_", "RESPONSE_", "LOG_", "MODEL_")
OTHER = {**RECORD, "order_id": "A-2", PRIMARY: "[bom]thanks[eom]"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment in which none of our variables is set."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    inference._settings.cache_clear()
    yield monkeypatch
    inference._settings.cache_clear()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("model"), calibration={"percentile_score": TABLE})


def chain(directory, body, content_type, accept):
    """Answers one request as SageMaker's toolkit does."""
    model = inference.model_fn(str(directory))
    return inference.output_fn(inference.predict_fn(inference.input_fn(body, content_type), model), accept)


def csv_line(record):
    return ",".join(json.dumps(record[name]) for name in ("order_id", "amount", "count", PRIMARY, SECONDARY))


@pytest.mark.parametrize("accept", ["application/json", "application/jsonlines", "text/csv", "*/*"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps(RECORD), "application/json"),
        (json.dumps([RECORD, OTHER], indent=2), "application/json; charset=utf-8"),
        (f"{json.dumps(RECORD)}\n{json.dumps(OTHER)}\n", "application/jsonlines"),
        (f"{csv_line(RECORD)}\n{csv_line(OTHER)}\n", "text/csv"),
    ],
)
def test_the_four_functions_chained_answer_as_the_pipeline_does(directory, body, content_type, accept):
    pipeline = load_pipeline(Settings(model_dir=directory))

    answer = chain(directory, body.encode(), content_type, accept)

    assert answer == pipeline.answer(body.encode(), content_type, accept)


def test_an_answer_has_the_scores(directory):
    body, media = chain(directory, json.dumps([RECORD, OTHER]).encode(), "application/json", "application/json")

    first, second = json.loads(body)["predictions"]
    assert media == "application/json"
    assert list(first) == ["legacy-score", "calibrated-score", "score-percentile"]
    assert first["legacy-score"] != second["legacy-score"]
    assert first["calibrated-score"] == first["score-percentile"] != first["legacy-score"]


def test_the_environment_sets_the_form_of_the_answer(directory, environment):
    environment.setenv("SCORE_FORMAT", "number")
    environment.setenv("RESPONSE_FIELDS", "id")

    body, _ = chain(directory, json.dumps(RECORD).encode(), "application/json", "*/*")

    (answer,) = json.loads(body)["predictions"]
    assert isinstance(answer["legacy-score"], float)
    assert answer["order_id"] == "A-1"


def test_the_given_directory_wins_over_the_environment(directory, environment):
    environment.setenv("SM_MODEL_DIR", "/nowhere")

    assert inference.model_fn(str(directory)).schema.primary == PRIMARY


def test_a_directory_that_cannot_be_used_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        inference.model_fn(str(tmp_path / "absent"))


def test_a_bad_environment_is_an_error(directory, environment):
    environment.setenv("SCORE_FORMAT", "roman")

    with pytest.raises(SettingsError, match="SCORE_FORMAT"):
        inference.model_fn(str(directory))


@pytest.mark.parametrize(
    ("body", "content_type", "accept", "error"),
    [
        (b"{", "application/json", "*/*", MalformedBody),
        (b"", "text/csv", "*/*", MalformedBody),
        (b"{}", "image/png", "*/*", UnsupportedMedia),
        (json.dumps({**RECORD, "amount": "x"}).encode(), "application/json", "*/*", InvalidRecord),
        (json.dumps(RECORD).encode(), "application/json", "image/png", NotAcceptable),
    ],
)
def test_a_bad_request_is_one_of_our_errors(directory, body, content_type, accept, error):
    with pytest.raises(error):
        chain(directory, body, content_type, accept)


def test_the_file_is_short_and_takes_what_the_toolkit_gives():
    assert len(Path(inference.__file__).read_text().splitlines()) <= 60
    counts = {name: len(inspect.signature(getattr(inference, name)).parameters) for name in inference_functions()}
    assert counts == {"model_fn": 1, "input_fn": 2, "predict_fn": 2, "output_fn": 2}


def inference_functions():
    return [name for name in vars(inference) if name.endswith("_fn")]


def test_the_defaults_of_these_tests_are_the_settings_of_the_container(directory):
    assert replace(inference._settings(), model_dir=directory) == Settings(model_dir=directory)
