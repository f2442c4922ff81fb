"""Tiny encoders in Hugging Face directories, made for a test; imported only where torch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from model_directories import tokenizer

torch.set_num_threads(1)  # threads that wait for each other would take longer than these tiny products

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
DISTIL: dict[str, Any] = {
    "vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40,
    "initializer_range": 0.3,
}  # fmt: skip

KINDS = ("bert", "distilbert", "roberta", "minilm", "classifier")


def encoder(kind: str, **changes: Any) -> Any:
    """Returns a random encoder in the shape of a known one; large weights, so that anything wrong would show."""
    torch.manual_seed(5)
    sizes = SIZES | changes
    made = {
        "bert": lambda: BertModel(BertConfig(**sizes)),
        "distilbert": lambda: DistilBertModel(DistilBertConfig(**(DISTIL | changes))),
        "roberta": lambda: RobertaModel(RobertaConfig(**sizes, pad_token_id=1, type_vocab_size=1)),
        "minilm": lambda: BertModel(BertConfig(**(sizes | {"num_hidden_layers": 3, "intermediate_size": 128}))),
        "classifier": lambda: BertForSequenceClassification(BertConfig(**sizes, num_labels=3)),
    }[kind]()
    return made.eval()


def directory(kind: str, path: Path, **changes: Any) -> Path:
    """Writes the encoder with the tests' tokenizer."""
    encoder(kind, **changes).save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    return path
