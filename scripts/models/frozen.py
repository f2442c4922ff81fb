"""Trains on top of encoders that stay as they are: each text then runs through its encoder once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import Examples, Recipe, batches, collate, train
from trimodal.network import Array, TextSubnetwork, TrimodalNetwork
from trimodal.records import FloatArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrozenExamples(Examples):
    """Encoded cases with what the encoders make of them.

    Attributes:
        hidden: for each case the last hidden states of `[CLS]` of its texts, float32 `[C, H]` each.
    """

    hidden: list[tuple[FloatArray, FloatArray]]

    def inputs(self, batch: Sequence[int]) -> list[Array]:
        """Inputs of a network whose encoders are `_Pooling`: hidden states in place of ids and mask."""
        fields = collate([self.features[i] for i in batch])[4:]
        primary, secondary = (np.stack([self.hidden[i][side] for i in batch]) for side in (0, 1))
        return [primary, primary, secondary, secondary, *fields]


class _Pooling(nn.Module):
    """Stands in for a BERT whose hidden states are known: only its pooler runs, and learns."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:  # noqa: ARG002
        """Pools hidden states `[N, H]`."""
        return SimpleNamespace(pooler_output=self.pooler(input_ids[:, None]))


def train_frozen(network: TrimodalNetwork, examples: Examples, held_out: Examples, recipe: Recipe) -> TrimodalNetwork:
    """Trains the poolers, the tabular branch and the heads; see `training.train`."""
    frozen = [_run_encoders(network.eval(), part) for part in (examples, held_out)]
    logger.info("ran the encoders over %d cases", sum(len(part.features) for part in frozen))
    with _poolers_only(network):
        train(network, frozen[0], frozen[1], recipe)
    return network


def _run_encoders(network: TrimodalNetwork, examples: Examples) -> FrozenExamples:
    """Runs the two encoders over all cases."""
    hidden: dict[int, tuple[FloatArray, FloatArray]] = {}
    order = batches(examples.features, 16, np.random.default_rng(0))
    for batch in tqdm(order, "encoders", leave=False, disable=None):
        inputs = examples.inputs(batch)
        primary = _first(network.primary_text_subnetwork, inputs[0], inputs[1])
        secondary = _first(network.secondary_text_subnetwork, inputs[2], inputs[3])
        hidden |= {i: (primary[row], secondary[row]) for row, i in enumerate(batch)}
    return FrozenExamples(examples.features, examples.labels, [hidden[i] for i in sorted(hidden)])


def _first(text: TextSubnetwork, ids: Array, mask: Array) -> FloatArray:
    """Returns the last hidden states of `[CLS]`, float32 `[B, C, H]`, of int64 `[B, C, T]` inputs."""
    flat = [torch.from_numpy(array).reshape(-1, ids.shape[2]) for array in (ids, mask)]
    with torch.no_grad():
        states = text.bert(input_ids=flat[0], attention_mask=flat[1]).last_hidden_state[:, 0]
    found: FloatArray = states.reshape(*ids.shape[:2], -1).numpy()
    return found


@contextmanager
def _poolers_only(network: TrimodalNetwork) -> Iterator[None]:
    """Puts `_Pooling` in the place of both encoders; the poolers are theirs, so what is learnt stays."""
    texts = (network.primary_text_subnetwork, network.secondary_text_subnetwork)
    encoders = [text.bert for text in texts]
    for text, encoder in zip(texts, encoders, strict=True):
        setattr(text, "bert", _Pooling(cast("nn.Module", encoder.pooler)))  # noqa: B010  (not the type that mypy knows)
    try:
        yield
    finally:
        for text, encoder in zip(texts, encoders, strict=True):
            text.bert = encoder
