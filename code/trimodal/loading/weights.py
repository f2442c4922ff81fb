"""Looks at `model.pth` and its `config.json` before memory is taken for what they say: both may be a stranger's."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimodal.errors import ArtifactError
from trimodal.loading.hardware import detect, no_gpu
from trimodal.loading.pickles import read_torch

_WORDS, _POSITIONS = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
_SIZES = {
    "vocab_size": (_WORDS, 0),
    "hidden_size": (_WORDS, 1),
    "max_position_embeddings": (_POSITIONS, 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}
"""Key of a BERT configuration to the weight, and its axis, that has this size."""

_MEANT = {"num_attention_heads": int, "hidden_act": str, "layer_norm_eps": float, "position_embedding_type": str}
"""What else a configuration decides while a network is used; the rest is for training, or names code to run."""


def check_weights(path: Path) -> None:
    """Checks that a file written by `torch.save` unpacks to what memory holds, and would build nothing but tensors.

    Raises:
        ArtifactError: it does not.
    """
    read_torch(path)
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > (memory := detect(gpu=no_gpu).memory):
        raise ArtifactError(
            f"{path.name} unpacks to {size >> 20} MB and this container has {memory >> 20} MB of memory; give it "
            "more, or check how the file was made."
        )


def check_tensors(state: object) -> Mapping[str, Any]:
    """Returns a state dict that holds tensors, each as large as it says.

    Raises:
        ValueError: it is something else, or a tensor repeats a few numbers.
    """
    if not isinstance(state, dict):
        raise ValueError("it is no state dict")  # noqa: TRY004  the file's fault, not the caller's
    for value in state.values():
        if not hasattr(value, "untyped_storage"):
            raise ValueError("it holds something else than tensors")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor says that it is larger than its numbers")
    return state


def bert_arguments(config: Mapping[str, Any], state: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Returns the arguments of a `BertConfig`: sizes as the weights have them, and what else a network needs.

    Args:
        config: `config.json`.
        state: the state dict.
        text: name of a text's subnetwork in it.

    Raises:
        ValueError: they contradict each other.
    """
    prefix = f"{text}.bert."
    found: dict[str, Any] = {}
    for key, (name, axis) in _SIZES.items():
        weight = state.get(prefix + name)
        if weight is None or weight.dim() != 2:
            raise ValueError(f"the state dict has no matrix {prefix}{name}: another kind of network")
        found[key] = int(weight.shape[axis])
    found["num_hidden_layers"] = sum(
        name.startswith(f"{prefix}encoder.layer.") and name.endswith(".attention.self.query.weight") for name in state
    )
    for key, size in found.items():
        if config.get(key, size) != size:
            raise ValueError(f"config.json names another {key} than the weights have, which is {size}")
    for key, kind in _MEANT.items():
        value = config.get(key)
        if isinstance(value, kind):
            found[key] = value
        elif value is not None:
            raise ValueError(f"config.json: {key} is of a wrong type")
    heads = found.get("num_attention_heads", 0)
    if heads < 1 or found["hidden_size"] % heads:
        raise ValueError(f"config.json: num_attention_heads must divide hidden_size, which is {found['hidden_size']}")
    return found
