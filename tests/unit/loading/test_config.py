from __future__ import annotations

import numpy as np
import pytest

from model_directories import HYPERPARAMETERS, artifact_error, edit_json, write_json
from trimodal.loading.config import PRIMARY_STEPS, SECONDARY_STEPS, read_config


@pytest.fixture
def directory(tmp_path):
    write_json(tmp_path / "hyperparameters.json", HYPERPARAMETERS)
    return tmp_path


def change(directory, **changes):
    edit_json(directory / "hyperparameters.json", **changes)
    return read_config(directory)


def save_artifacts(directory, **config):
    torch = pytest.importorskip("torch", reason="torch is not installed: the file under test is written by it")
    torch.save({"config": config}, directory / "model_artifacts.pth")


def test_a_full_configuration(directory):
    config = change(
        directory,
        num_classes=3,
        multiclass_categories=["refund", "no refund", 2],
        tokenizer="words",
        request_envelope="instances",
        unmarked_text="whole",
        primary_text_processing_steps=["dialogue_splitter", "html_normalizer", "tokenizer"],
    )

    assert (config.primary, config.secondary, config.tabular) == ("chat", "events", ("amount", "count"))
    assert (config.id_name, config.tokenizer, config.envelope) == ("order_id", "words", "instances")
    assert (config.num_classes, config.binary, config.categories) == (3, False, ("refund", "no refund", "2"))
    assert (config.max_tokens, config.max_chunks, config.read_unmarked) == (16, 3, True)
    assert config.primary_steps == ("dialogue_splitter", "html_normalizer", "tokenizer")


def test_what_is_not_said_has_the_defaults_of_the_training(tmp_path):
    write_json(
        tmp_path / "hyperparameters.json",
        {"primary_text_name": "a", "secondary_text_name": "b", "tab_field_list": []},
    )

    config = read_config(tmp_path)

    assert (config.num_classes, config.binary, config.categories) == (2, True, ())
    assert (config.max_tokens, config.max_chunks, config.read_unmarked) == (512, 3, False)
    assert (config.id_name, config.tokenizer, config.envelope) == (None, None, None)
    assert (config.primary_steps, config.secondary_steps) == (PRIMARY_STEPS, SECONDARY_STEPS)


@pytest.mark.parametrize("steps", [None, []])
def test_default_steps_have_no_html_step_and_an_emoji_step_for_the_primary_text_only(directory, steps):
    config = change(directory, primary_text_processing_steps=steps, secondary_text_processing_steps=steps)

    assert config.primary_steps == (
        "dialogue_splitter", "emoji_remover", "text_normalizer", "dialogue_chunker", "tokenizer",
    )  # fmt: skip
    assert config.secondary_steps == ("dialogue_splitter", "text_normalizer", "dialogue_chunker", "tokenizer")


def test_the_number_of_classes_follows_from_their_labels(directory):
    config = change(directory, num_classes=None, multiclass_categories=["a", "b", "c"])

    assert (config.num_classes, config.binary) == (3, False)


def test_two_classes_may_have_a_score_each(directory):
    assert change(directory, is_binary=False).binary is False


def test_chunks_are_not_limited_when_the_training_did_not(directory):
    assert change(directory, chunk_trancate=False).max_chunks is None


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_name_is_no_name(directory, empty):
    config = change(directory, id_name=empty, tokenizer=empty)

    assert (config.id_name, config.tokenizer) == (None, None)


def test_limits_come_from_the_saved_model_where_they_differ(directory):
    save_artifacts(directory, max_sen_len=8, max_total_chunks=5, chunk_trancate=True, num_classes=7, id_name="other")

    config = read_config(directory)

    assert (config.max_tokens, config.max_chunks) == (8, 5)
    assert (config.num_classes, config.id_name) == (2, "order_id")


def test_a_limit_that_the_saved_model_does_not_hold_comes_from_the_hyperparameters(directory):
    save_artifacts(directory, max_total_chunks=None, max_sen_len=9)

    config = read_config(directory)

    assert (config.max_tokens, config.max_chunks) == (9, 3)


def test_the_saved_model_alone_is_enough(tmp_path):
    save_artifacts(tmp_path, **HYPERPARAMETERS)

    config = read_config(tmp_path)

    assert (config.primary, config.tabular, config.max_tokens) == ("chat", ("amount", "count"), 16)


def test_the_saved_limits_may_be_numpy_scalars(directory):
    save_artifacts(directory, max_sen_len=np.int64(8))

    assert read_config(directory).max_tokens == 8


def test_a_bad_limit_of_the_saved_model_names_its_file(directory):
    save_artifacts(directory, max_sen_len="many")

    with artifact_error("model_artifacts.pth: max_sen_len must be a whole number from 3 to 8192"):
        read_config(directory)


def test_a_bad_value_of_the_hyperparameters_beside_a_saved_model_names_theirs(directory):
    save_artifacts(directory, max_sen_len=8, is_binary="maybe")
    edit_json(directory / "hyperparameters.json", is_binary="maybe")

    with artifact_error("hyperparameters.json: is_binary must be true or false"):
        read_config(directory)


def test_a_bad_value_of_the_saved_model_alone_names_its_file(tmp_path):
    save_artifacts(tmp_path, **{**HYPERPARAMETERS, "is_binary": "maybe"})

    with artifact_error("model_artifacts.pth: is_binary must be true or false"):
        read_config(tmp_path)


def test_no_configuration_is_an_error_that_says_what_to_add(tmp_path):
    with artifact_error("hyperparameters.json is missing", "add the training's own file"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{'single': 1}", "not valid JSON"),
        (b"\xff\xfe{}", "not readable as UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"1" * 5000, "not valid JSON"),
    ],
    ids=["empty", "cut", "python", "binary", "deep", "list", "text", "null", "huge number"],
)
def test_a_configuration_that_is_no_json_object_is_an_error(directory, content, words):
    (directory / "hyperparameters.json").write_bytes(content)

    with artifact_error("hyperparameters.json", words):
        read_config(directory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"primary_text_name": None}, "must name primary_text_name and secondary_text_name"),
        ({"secondary_text_name": ""}, "must name primary_text_name and secondary_text_name"),
        ({"primary_text_name": 5}, "primary_text_name must be a text"),
        ({"tokenizer": ["a"]}, "tokenizer must be a text"),
        ({"id_name": {}}, "id_name must be a text"),
        ({"request_envelope": True}, "request_envelope must be a text"),
        ({"tab_field_list": None}, "tab_field_list must be a list of at most 10000 names"),
        ({"tab_field_list": "amount"}, "tab_field_list must be a list of at most 10000 names"),
        ({"tab_field_list": ["amount", 1]}, "tab_field_list must be a list of at most 10000 names"),
        ({"tab_field_list": ["amount", "amount"]}, "names one field twice"),
        ({"tab_field_list": ["amount", "chat"]}, "names one field twice"),
        ({"secondary_text_name": "chat"}, "names one field twice"),
        ({"num_classes": 1}, "num_classes must be a whole number from 2 to 10000"),
        ({"num_classes": "2"}, "num_classes must be a whole number"),
        ({"num_classes": 2.0}, "num_classes must be a whole number"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": 3, "multiclass_categories": ["a", "b"]}, "num_classes is 3 and multiclass_categories has 2"),
        ({"max_sen_len": 2}, "max_sen_len must be a whole number from 3 to 8192"),
        ({"max_sen_len": None, "max_total_chunks": 0}, "max_total_chunks must be a whole number from 1 to 10000"),
        ({"chunk_trancate": "yes"}, "chunk_trancate must be true or false"),
        ({"is_binary": 1}, "is_binary must be true or false"),
        ({"unmarked_text": "all"}, "unmarked_text must be “whole” or absent"),
        ({"primary_text_processing_steps": "tokenizer"}, "primary_text_processing_steps must be a list"),
        ({"secondary_text_processing_steps": ["stemmer"]}, "unknown step 'stemmer'; known are dialogue_chunker"),
        (
            {"primary_text_processing_steps": ["text_normalizer", "dialogue_splitter", "tokenizer"]},
            "primary_text_processing_steps must begin with dialogue_splitter",
        ),
        (
            {"secondary_text_processing_steps": ["dialogue_splitter", "dialogue_splitter", "tokenizer"]},
            "secondary_text_processing_steps must begin with dialogue_splitter",
        ),
        ({"multiclass_categories": 5}, "multiclass_categories must be a list of different labels"),
        ({"multiclass_categories": "ab"}, "multiclass_categories must be a list of different labels"),
        ({"multiclass_categories": ["a", "a"]}, "multiclass_categories must be a list of different labels"),
        ({"multiclass_categories": ["1", 1]}, "multiclass_categories must be a list of different labels"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(directory, changes, words):
    with artifact_error("hyperparameters.json", words):
        change(directory, **changes)
