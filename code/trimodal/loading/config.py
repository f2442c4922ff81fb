"""Reads the configuration that a model was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimodal.errors import ArtifactError
from trimodal.loading.files import read_json
from trimodal.loading.pickles import load_torch_config
from trimodal.serving.text import STEPS

PRIMARY_STEPS = ("dialogue_splitter", "emoji_remover", "text_normalizer", "dialogue_chunker", "tokenizer")
SECONDARY_STEPS = ("dialogue_splitter", "text_normalizer", "dialogue_chunker", "tokenizer")
"""Steps of a directory that names none: what the training pipeline falls back to."""

_LIMITS = ("max_sen_len", "max_total_chunks", "chunk_trancate")

_MOST_TOKENS, _MOST_CHUNKS, _MOST_NAMES, _MOST_STEPS, _LONGEST_NAME = 8192, 10_000, 10_000, 32, 500
"""What a configuration may ask for: memory, and time at each request, grow with these."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration.

    Attributes:
        primary: name of the dialogue field.
        secondary: name of the shipment-history field.
        tabular: names of the numeric fields.
        id_name: name of the id field, or None.
        num_classes: classes of the output.
        binary: one score for class 1 instead of one for each class.
        categories: labels of the classes, as text; may be empty.
        max_tokens: tokens of a chunk, special tokens included.
        max_chunks: chunks of a text that are scored; None for all.
        primary_steps: text steps of the dialogue.
        secondary_steps: text steps of the shipment history.
        read_unmarked: read texts without `[bom]…[eom]` whole (`"unmarked_text": "whole"`).
        tokenizer: path or hub name of the tokenizer, or None.
        envelope: key that may wrap the records of a request (`"request_envelope": "instances"`), or None.
    """

    primary: str
    secondary: str
    tabular: tuple[str, ...]
    id_name: str | None
    num_classes: int
    binary: bool
    categories: tuple[str, ...]
    max_tokens: int
    max_chunks: int | None
    primary_steps: tuple[str, ...]
    secondary_steps: tuple[str, ...]
    read_unmarked: bool
    tokenizer: str | None
    envelope: str | None


def read_config(model_dir: Path) -> ModelConfig:
    """Reads `hyperparameters.json`, and `model_artifacts.pth` for the limits of the texts.

    Raises:
        ArtifactError: neither file is there, or a value is missing or wrong.
    """
    path = model_dir / "hyperparameters.json"
    saved = model_dir / "model_artifacts.pth"
    saved_config = load_torch_config(saved) if saved.is_file() else {}
    if not path.is_file() and not saved_config:
        raise ArtifactError("hyperparameters.json is missing from the model directory; add the training's own file.")
    config = read_json(path) if path.is_file() else saved_config
    if not isinstance(config, dict):
        raise ArtifactError("hyperparameters.json must be a JSON object.")
    limits = {key: saved_config[key] for key in _LIMITS if saved_config.get(key) is not None}
    sources = dict.fromkeys(limits if path.is_file() else saved_config, saved.name)
    return _Reader({**config, **limits}, sources).read()


@dataclass(frozen=True, slots=True)
class _Reader:
    """Typed look-ups in the configuration."""

    config: Mapping[str, Any]
    sources: Mapping[str, str]

    def error(self, key: str, what: str) -> ArtifactError:
        """Returns the error that a value is wrong, naming the file that it stands in."""
        return ArtifactError(f"{self.sources.get(key, 'hyperparameters.json')}: {key} {what}.")

    def read(self) -> ModelConfig:
        tabular = self.names("tab_field_list")
        primary = self.name("primary_text_name")
        secondary = self.name("secondary_text_name")
        if primary is None or secondary is None:
            raise ArtifactError("hyperparameters.json must name primary_text_name and secondary_text_name.")
        if len({primary, secondary, *tabular}) != len(tabular) + 2:
            raise ArtifactError("hyperparameters.json names one field twice among the texts and tab_field_list.")
        categories = self.labels("multiclass_categories")
        num_classes = self.integer("num_classes", len(categories) or 2, 2, _MOST_NAMES)
        if categories and len(categories) != num_classes:
            raise ArtifactError(
                f"hyperparameters.json: num_classes is {num_classes} and multiclass_categories has {len(categories)}."
            )
        whole = self.config.get("unmarked_text")
        if whole not in (None, "whole"):
            raise ArtifactError("hyperparameters.json: unmarked_text must be “whole” or absent.")
        limit = self.integer("max_total_chunks", 3, 1, _MOST_CHUNKS)
        return ModelConfig(
            primary=primary,
            secondary=secondary,
            tabular=tabular,
            id_name=self.name("id_name"),
            num_classes=num_classes,
            binary=num_classes == 2 and self.flag("is_binary", default=True),
            categories=categories,
            max_tokens=self.integer("max_sen_len", 512, 3, _MOST_TOKENS),
            max_chunks=limit if self.flag("chunk_trancate", default=True) else None,
            primary_steps=self.steps("primary_text_processing_steps", PRIMARY_STEPS),
            secondary_steps=self.steps("secondary_text_processing_steps", SECONDARY_STEPS),
            read_unmarked=whole == "whole",
            tokenizer=self.name("tokenizer"),
            envelope=self.name("request_envelope"),
        )

    def name(self, key: str) -> str | None:
        value = self.config.get(key)
        if value is None or value == "":
            return None
        if not _is_name(value):
            raise self.error(key, f"must be a text of one line and at most {_LONGEST_NAME} characters")
        return str(value)

    def names(self, key: str) -> tuple[str, ...]:
        value = self.config.get(key)
        if not isinstance(value, list | tuple) or len(value) > _MOST_NAMES or not all(map(_is_name, value)):
            raise self.error(
                key, f"must be a list of at most {_MOST_NAMES} names of one line and at most {_LONGEST_NAME} characters"
            )
        return tuple(value)

    def labels(self, key: str) -> tuple[str, ...]:
        value = self.config.get(key)
        if value is None:
            return ()
        plain = isinstance(value, list | tuple) and all(isinstance(label, str | int | float) for label in value)
        labels = tuple(map(str, value)) if plain else ()
        if not plain or len(set(labels)) != len(labels) or not all(map(_is_name, labels)):
            raise self.error(key, "must be a list of different labels, texts or numbers")
        return labels

    def steps(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        if not self.config.get(key):
            return default
        steps = self.names(key)
        if len(steps) > _MOST_STEPS:
            raise self.error(key, f"names more than {_MOST_STEPS} steps")
        for step in steps:
            if step not in STEPS:
                raise self.error(key, f"names the unknown step {step!r}; known are {', '.join(sorted(STEPS))}")
        if "dialogue_splitter" in steps[1:]:
            raise self.error(key, "must begin with dialogue_splitter, which reads the text as it was sent")
        return steps

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"must be a whole number from {low} to {high}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value


def _is_name(value: object) -> bool:
    """Tells what may be a name: it stands in messages of one line."""
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and len(value.splitlines()) < 2
