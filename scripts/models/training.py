"""Trains and scores the network on encoded cases, in batches like those of the serving code."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

from trimodal.network import Array, TrimodalNetwork
from trimodal.records import EncodedText, Features, FloatArray

logger = logging.getLogger(__name__)

Labels = NDArray[np.int64]
Predict = Callable[[list[Array]], FloatArray]
"""Inputs in the network's order to probabilities, float32 `[B, K]`."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded cases.

    Attributes:
        features: one per case.
        labels: int64 `[N]`.
    """

    features: list[Features]
    labels: Labels

    def inputs(self, batch: Sequence[int]) -> list[Array]:
        """The network's inputs for some cases, which have equal chunk counts."""
        return collate([self.features[i] for i in batch])

    def without(self, modality: str, neutral: Features) -> Examples:
        """A copy in which every case has the neutral value of a modality.

        Args:
            modality: `primary`, `secondary` or `tabular`.
            neutral: an empty record's features: the placeholder as text, imputed numbers.
        """
        value = getattr(neutral, modality)
        return Examples(labels=self.labels, features=[replace(f, **{modality: value}) for f in self.features])


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: at most so many passes.
        patience: passes without a better validation AUC before training stops.
        batch: cases of a step, at most.
        rate: highest learning rate of the heads.
        encoder_rate: highest learning rate of the BERT encoders.
        seed: seed of the order, the weights and the dropout.
        frozen: the encoders' layers stay as they are, see `frozen.train_frozen`.
    """

    epochs: int = 7
    patience: int = 2
    batch: int = 16
    rate: float = 1e-3
    encoder_rate: float = 5e-4  # twice as much, or larger initial weights, learn less per epoch
    seed: int = 7
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Quality:
    """How good scores are; the threshold of F1 and accuracy is 0.5."""

    auc: float
    f1: float
    accuracy: float


def quality(probs: FloatArray, labels: Labels) -> Quality:
    """Judges probabilities `[N, 2]` by the labels `[N]`."""
    chosen = probs[:, 1] > 0.5
    return Quality(
        auc=float(roc_auc_score(labels, probs[:, 1])),
        f1=float(f1_score(labels, chosen)),
        accuracy=float(accuracy_score(labels, chosen)),
    )


def collate(batch: Sequence[Features]) -> list[Array]:
    """Pads cases with equal chunk counts to the longest chunk among them, in the network's order."""
    primary = _pad([features.primary for features in batch])
    secondary = _pad([features.secondary for features in batch])
    table = np.stack([features.tabular for features in batch])
    return [*primary, *secondary, *(table[:, i : i + 1] for i in range(table.shape[1]))]


def _pad(texts: Sequence[EncodedText]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns ids and mask, int64 `[B, C, T]`; the padding token is 0."""
    longest = max(len(chunk) for text in texts for chunk in text.chunks)
    ids = np.zeros((len(texts), len(texts[0].chunks), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        for place, chunk in enumerate(text.chunks):
            ids[row, place, : len(chunk)] = chunk
            mask[row, place, : len(chunk)] = 1
    return ids, mask


def batches(features: Sequence[Features], size: int, rng: np.random.Generator) -> list[list[int]]:
    """Random batches of cases with equal chunk counts and similar lengths, as indices."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index in rng.permutation(len(features)):
        case = features[index]
        key = len(case.primary.chunks), len(case.secondary.chunks)
        groups.setdefault(key, []).append(int(index))
    found: list[list[int]] = []
    for group in groups.values():
        for start in range(0, len(group), 8 * size):  # a pool to sort, so that batches stay random
            pool = sorted(group[start : start + 8 * size], key=lambda i: _length(features[i]))
            found += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [found[i] for i in rng.permutation(len(found))]


def _length(case: Features) -> int:
    return sum(len(chunk) for text in (case.primary, case.secondary) for chunk in text.chunks)


def score(predict: Predict, examples: Examples, size: int = 32) -> FloatArray:
    """Scores cases, `[N, K]` in their order."""
    order = batches(examples.features, size, np.random.default_rng(0))
    parts = [predict(examples.inputs(batch)) for batch in order]
    scores = np.concatenate(parts)
    return scores[np.argsort(np.concatenate(order))]


def train(network: TrimodalNetwork, examples: Examples, held_out: Examples, recipe: Recipe) -> TrimodalNetwork:
    """Trains a network and returns it with the weights of its best pass.

    Args:
        network: what to train, in place.
        examples: what to learn from.
        held_out: what the best pass is chosen by (AUC), and when to stop.
        recipe: how to train.
    """
    rng = np.random.default_rng(recipe.seed)
    torch.manual_seed(recipe.seed)
    optimizer, schedule = _optimizer(network, recipe, len(examples.features))
    best, best_auc, stale = copy.deepcopy(network.state_dict()), 0.0, 0
    for epoch in range(recipe.epochs):
        order = batches(examples.features, recipe.batch, rng)
        losses = _epoch(network.train(), examples, order, optimizer, schedule)
        shown = tqdm(losses, f"epoch {epoch + 1}", len(order), leave=False, disable=None)
        loss = float(np.mean(list(shown)))
        auc = quality(score(network.eval().predict, held_out), held_out.labels).auc
        logger.info("epoch %d: loss %.4f, validation AUC %.4f", epoch + 1, loss, auc)
        stale += 1
        if auc > best_auc:
            best, best_auc, stale = copy.deepcopy(network.state_dict()), auc, 0
        if stale == recipe.patience:
            break
    network.load_state_dict(best)
    return network.eval()


def _optimizer(
    network: TrimodalNetwork, recipe: Recipe, cases: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a short warm-up and a linear decay, at a rate of its own for the encoders."""
    encoders = [p for name, p in network.named_parameters() if ".bert." in name]
    heads = [p for name, p in network.named_parameters() if ".bert." not in name]
    rates = (recipe.encoder_rate, recipe.rate)
    optimizer = torch.optim.AdamW(
        [{"params": encoders, "lr": rates[0]}, {"params": heads, "lr": rates[1]}], weight_decay=0.01
    )
    steps = recipe.epochs * (cases / recipe.batch + 4)
    warm_up = 0.06 * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, max(0.02, 1 - step / steps))
    )
    return optimizer, schedule


def _epoch(
    network: TrimodalNetwork,
    examples: Examples,
    order: Sequence[list[int]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Iterator[float]:
    """Takes one step per batch and yields its loss."""
    for batch in order:
        inputs = [torch.from_numpy(a) for a in examples.inputs(batch)]
        logits = network.logits(*inputs)
        loss: Tensor = nn.functional.cross_entropy(logits, torch.from_numpy(examples.labels[batch]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
