from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from model_directories import VOCABULARY, artifact_error, tokenizer
from trimodal.loading.tokenizer import load_tokenizer

OTHER = (*VOCABULARY[:4], *reversed(VOCABULARY[4:]))
TEXT = "The item was late!"
IDS = [VOCABULARY.index(token) for token in ("the", "item", "was", "late", "!")]


def ids(directory, name=None):
    return load_tokenizer(directory, name).encode(TEXT, add_special_tokens=False).ids


def write_vocabulary(folder, **settings):
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer/tokenizer.json"])
def test_the_usual_places(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    tokenizer().save(str(tmp_path / place))

    assert ids(tmp_path) == IDS
    assert ids(tmp_path, "bert-base-uncased") == IDS


@pytest.mark.parametrize("name", ["words", "deep/er/words", "./words", "words/tokenizer.json", "../beside"])
def test_a_named_path_is_relative_to_the_model_directory(tmp_path, name):
    directory = tmp_path / "model"
    directory.mkdir()
    tokenizer(OTHER).save(str(directory / "tokenizer.json"))
    file = directory / name if name.endswith(".json") else directory / name / "tokenizer.json"
    file.parent.mkdir(parents=True)
    tokenizer().save(str(file))

    assert ids(directory, name) == IDS


def test_a_named_path_may_be_absolute(tmp_path):
    directory, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    directory.mkdir()
    elsewhere.mkdir()
    tokenizer(OTHER).save(str(directory / "tokenizer.json"))
    tokenizer().save(str(elsewhere / "tokenizer.json"))

    assert ids(directory, str(elsewhere)) == IDS


def test_tokenizer_json_wins_over_the_directory(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    tokenizer(OTHER).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    tokenizer().save(str(tmp_path / "tokenizer.json"))

    assert ids(tmp_path) == IDS


@pytest.mark.parametrize("folder", ["tokenizer", "words"])
def test_a_vocabulary_alone_is_enough(tmp_path, folder):
    write_vocabulary(tmp_path / folder)

    found = load_tokenizer(tmp_path, folder)

    assert found.encode(TEXT).tokens == ["[CLS]", "the", "item", "was", "late", "!", "[SEP]"]


def test_a_vocabulary_is_used_as_the_settings_beside_it_say(tmp_path):
    write_vocabulary(tmp_path / "tokenizer", do_lower_case=False)

    assert load_tokenizer(tmp_path, None).encode("The item", add_special_tokens=False).tokens == ["[UNK]", "item"]


def test_a_fast_tokenizer_wins_over_the_vocabulary_beside_it(tmp_path):
    write_vocabulary(tmp_path / "tokenizer")
    tokenizer(OTHER).save(str(tmp_path / "tokenizer" / "tokenizer.json"))

    assert ids(tmp_path) == [OTHER.index(VOCABULARY[index]) for index in IDS]


def test_padding_and_truncation_of_the_file_are_off(tmp_path):
    padded = tokenizer()
    padded.enable_padding(length=20)
    padded.enable_truncation(2)
    padded.save(str(tmp_path / "tokenizer.json"))

    assert ids(tmp_path) == IDS


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"[]", b"\xff\xfe", b'{"version": "1.0", "model": null}'])
@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer/tokenizer.json", "words/tokenizer.json"])
def test_a_damaged_tokenizer_is_an_error(tmp_path, place, content):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(content)

    with artifact_error("tokenizer.json is not ", " again"):
        load_tokenizer(tmp_path, "words")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.txt", b"\xff\xfe\x00", "vocab.txt is not a readable tokenizer; save the fast tokenizer again"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not valid JSON; write it again"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json is not readable as UTF-8 text"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json must be a JSON object"),
    ],
)
def test_a_damaged_vocabulary_is_an_error_that_names_its_file(tmp_path, name, content, words):
    write_vocabulary(tmp_path / "tokenizer", do_lower_case=True)
    (tmp_path / "tokenizer" / name).write_bytes(content)

    with artifact_error(words):
        load_tokenizer(tmp_path, None)


def test_a_name_that_no_file_may_have_is_an_error(tmp_path):
    with artifact_error("tokenizer.json"):
        load_tokenizer(tmp_path, "n" * 300)


def test_no_tokenizer_is_an_error_that_says_what_to_add(tmp_path):
    with artifact_error("has no tokenizer", "add the fast tokenizer's tokenizer.json, or its directory tokenizer/"):
        load_tokenizer(tmp_path, None)


def test_a_hub_name_without_network_is_an_error_that_says_what_to_add(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from trimodal.errors import ArtifactError\n"
        "from trimodal.loading.tokenizer import load_tokenizer\n"
        f"try: load_tokenizer(Path({str(tmp_path)!r}), 'bert-base-uncased')\n"
        "except ArtifactError as err: sys.exit(str(err))\n"
    )
    # read when the hub's library is imported, which another test may have caused already: a process of its own
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}

    result = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)

    assert result.returncode == 1, result.stderr
    assert "add the fast tokenizer's tokenizer.json, or its directory tokenizer/" in result.stderr


def test_a_tokenizer_of_the_hub_is_looked_at_as_any_other(tmp_path):
    """A model directory may name one that explodes: where it comes from makes it no better."""
    commit = "0" * 40
    cache = tmp_path / "hub" / "models--someone--words"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots" / commit).mkdir(parents=True)
    document = json.loads(tokenizer().to_str())
    document["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    (cache / "snapshots" / commit / "tokenizer.json").write_text(json.dumps(document))
    program = (
        "import sys; from pathlib import Path\n"
        "from trimodal.errors import ArtifactError\n"
        "from trimodal.loading.tokenizer import load_tokenizer\n"
        f"try: load_tokenizer(Path({str(tmp_path)!r}), 'someone/words')\n"
        "except ArtifactError as err: sys.exit(str(err))\n"
    )
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}

    result = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)

    assert result.returncode == 1, result.stderr
    assert "someone/words: a Replace uses a pattern" in result.stderr
