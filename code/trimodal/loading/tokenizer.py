"""Finds and reads the tokenizer of a model directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer

from trimodal.errors import ArtifactError
from trimodal.loading.directory import check_file
from trimodal.loading.files import read_json
from trimodal.loading.tokenizer_check import check_tokenizer

_LARGEST_ID = 10_000_000


def load_tokenizer(model_dir: Path, name: str | None) -> Tokenizer:
    """Reads the fast tokenizer, its own padding and truncation off.

    Looks at the path that the config names (also relative to the model directory), then for `tokenizer.json` and
    `tokenizer/`, and last for a copy of the named hub tokenizer on this machine.

    Args:
        model_dir: the model directory.
        name: `tokenizer` of `hyperparameters.json`, or None.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    candidates = [model_dir / "tokenizer.json", model_dir / "tokenizer"]
    if name:
        candidates.insert(0, model_dir / name)  # an absolute name replaces the directory
    # requests are what runs side by side; the library's own threads would take the cores from them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    found = (tokenizer for place in candidates if (tokenizer := _read(place)) is not None)
    tokenizer = next(found, None) or _from_hub(name)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if largest_id(tokenizer) > _LARGEST_ID:
        raise ArtifactError(f"tokenizer.json has a token id beyond {_LARGEST_ID}; number its tokens from 0.")
    return tokenizer


def largest_id(tokenizer: Tokenizer) -> int:
    """Returns the largest token id that a tokenizer gives."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)


def _read(place: Path) -> Tokenizer | None:
    """Reads `tokenizer.json`, or a directory that holds it or a WordPiece `vocab.txt`."""
    try:
        file = place / "tokenizer.json" if place.is_dir() else place
        vocabulary = place / "vocab.txt"
        read = _from_file if file.is_file() else _from_vocabulary if vocabulary.is_file() else None
    except OSError:  # a name that no file can have
        return None
    if read is None:
        return None
    found = file if read is _from_file else vocabulary
    check_file(found, found.name)
    try:
        return read(found)
    except ArtifactError:
        raise
    except BaseException as err:
        if not failed(err):
            raise
        raise ArtifactError(f"{found.name} is not a readable tokenizer; save the fast tokenizer again.") from err


def failed(err: BaseException) -> bool:
    """Tells an error of the library, which raises bare exceptions, and Rust's panics, which are none."""
    return isinstance(err, Exception) or type(err).__name__ == "PanicException"


def _from_file(file: Path) -> Tokenizer:
    check_tokenizer(read_json(file), file.name)
    return Tokenizer.from_file(str(file))


def _from_vocabulary(vocabulary: Path) -> Tokenizer:
    """Builds BERT's WordPiece tokenizer from `vocab.txt` and the settings beside it."""
    settings = vocabulary.with_name("tokenizer_config.json")
    config = read_json(settings) if settings.is_file() else {}
    if not isinstance(config, dict):
        raise ArtifactError(f"{settings.name} must be a JSON object; save the tokenizer again.")
    wrapper = BertWordPieceTokenizer(
        str(vocabulary),
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(wrapper.to_str())


def _from_hub(name: str | None) -> Tokenizer:
    """Reads a hub tokenizer, which a container without network finds only in its cache."""
    missing = (
        "The model directory has no tokenizer; add the fast tokenizer's tokenizer.json, or its directory tokenizer/."
    )
    if not name:
        raise ArtifactError(missing)
    try:
        found = Tokenizer.from_pretrained(name)
    except BaseException as err:  # offline, unknown, not allowed: the remedy is the same
        if not failed(err):
            raise
        raise ArtifactError(missing) from err
    check_tokenizer(json.loads(found.to_str()), name)
    return found
