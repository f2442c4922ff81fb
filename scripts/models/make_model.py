"""Makes a model directory that the container can serve, from synthetic return and refund cases.

    python scripts/models/make_model.py demo --out DIR        # small and trained, in minutes
    python scripts/models/make_model.py minilm --out DIR      # two MiniLM encoders, trained heads
    python scripts/models/make_model.py bert-base --out DIR   # two BERT-base encoders, random

The first two are for accuracy, the last is for latency. Everything is drawn from the seed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from encoders import Encoders, bert_base, minilm, small
from frozen import train_frozen
from model_directory import ModelDirectory, Reader, imputation, pick_golden, run
from report import Ablation, Report
from returns_data import Case, make_cases
from training import Examples, Quality, Recipe, quality, score, train
from trimodal.network import TrimodalNetwork
from trimodal.records import FloatArray

logger = logging.getLogger("make_model")

MODALITIES = {"dialogue": "primary", "shipment history": "secondary", "table": "tabular"}
SPREAD = 1.0
"""Standard deviation of the logits' difference that a random network's scores get."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a kind of model is made from.

    Attributes:
        cases: numbers of training, validation and test cases.
        max_tokens: tokens of a chunk.
        golden: test cases to record.
        recipe: how to train; None for random weights.
    """

    cases: tuple[int, int, int]
    max_tokens: int
    golden: int
    recipe: Recipe | None


PLANS = {
    "demo": Plan((10_000, 1000, 2000), 128, 64, Recipe()),
    "minilm": Plan((4000, 500, 1000), 128, 64, Recipe(epochs=40, patience=5, encoder_rate=1e-3, frozen=True)),
    "bert-base": Plan((200, 0, 8), 512, 8, None),
}
MAX_CHUNKS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    make(options.kind, options.out, options.seed, retrain=options.retrained_ablation)
    logger.info("made %s in %.0f s", options.out, time.monotonic() - started)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(PLANS), help="what to make")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=7, help="of data, weights and order (7)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument(
        "--retrained-ablation",
        action="store_true",
        help="also train once without each modality: three more trainings",
    )
    return parser.parse_args(arguments)


def make(kind: str, out: Path, seed: int, *, retrain: bool) -> None:
    """Makes one model directory.

    Args:
        kind: a key of `PLANS`.
        out: the directory.
        seed: of everything that is drawn.
        retrain: whether to train again without each modality.
    """
    plan = PLANS[kind]
    recipe = None if plan.recipe is None else replace(plan.recipe, seed=seed)
    training, validation, test = split(make_cases(sum(plan.cases), seed), plan.cases)
    logger.info("drew %d cases", sum(plan.cases))
    encoders = choose(kind, training, plan.max_tokens)
    reader = Reader(encoders.tokenizer, plan.max_tokens, MAX_CHUNKS, imputation(training))
    data = Data(reader, reader.examples(training), reader.examples(validation), reader.examples(test))
    network = encoders.network(seed)
    if recipe is None:
        spread_scores(network, data.training)
    else:
        teach(network, data.training, data.validation, recipe)
    directory = ModelDirectory(out, network, encoders.bert, reader)
    directory.write()
    directory.write_golden(pick_golden(data.test, test, plan.golden))
    options = " --retrained-ablation" * retrain
    report = Report(kind, f"--seed {seed}{options}", plan.cases, data.test.labels)
    if recipe is not None:
        directory.write_calibration(score(network.predict, data.validation)[:, 1])
        report = judge(report, directory, data, encoders, recipe if retrain else None)
    directory.path.joinpath("README.md").write_text(report.text(directory.path), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Data:
    """The encoded cases, and what encoded them."""

    reader: Reader
    training: Examples
    validation: Examples
    test: Examples


def split(cases: list[Case], sizes: tuple[int, int, int]) -> list[list[Case]]:
    """Cuts cases into parts of the given sizes."""
    ends = np.cumsum(sizes)
    return [cases[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def choose(kind: str, cases: Sequence[Case], max_tokens: int) -> Encoders:
    """The encoders of a kind of model."""
    if kind == "minilm":
        return minilm()
    return bert_base(cases) if kind == "bert-base" else small(cases, max_tokens)


def teach(network: TrimodalNetwork, examples: Examples, held_out: Examples, recipe: Recipe) -> TrimodalNetwork:
    """Trains the whole network, or what stands on its frozen encoders."""
    return (train_frozen if recipe.frozen else train)(network, examples, held_out, recipe)


def spread_scores(network: TrimodalNetwork, examples: Examples) -> None:
    """Scales a random network's last layer, so that its scores differ from case to case."""
    probs = score(network.predict, Examples(examples.features[:32], examples.labels[:32]), size=4)
    logits = np.log(probs[:, 1] / probs[:, 0])
    last = cast("torch.nn.Linear", network.final_merge_network[-1])
    scale = SPREAD / float(logits.std())
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale)
        last.bias[1].sub_(scale * float(logits.mean()))


def judge(report: Report, directory: ModelDirectory, data: Data, encoders: Encoders, again: Recipe | None) -> Report:
    """Scores the test cases with the written graph, whole and without each modality."""
    session, neutral = directory.session(), data.reader.neutral()

    def graph(examples: Examples) -> Quality:
        scores: FloatArray = score(lambda inputs: run(session, inputs), examples)
        return quality(scores, examples.labels)

    ablations = []
    for name, modality in MODALITIES.items():
        retrained = None if again is None else train_without(modality, data, encoders, again)
        neutralised = graph(data.test.without(modality, neutral))
        ablations.append(Ablation(name, neutralised, retrained))
        logger.info("without the %s: %s", name, ablations[-1])
    whole = graph(data.test)
    logger.info("whole: %s", whole)
    return replace(report, whole=whole, ablations=tuple(ablations))


def train_without(modality: str, data: Data, encoders: Encoders, recipe: Recipe) -> Quality:
    """Quality of a network that was trained and tested without a modality."""
    neutral = data.reader.neutral()
    training = data.training.without(modality, neutral)
    validation = data.validation.without(modality, neutral)
    test = data.test.without(modality, neutral)
    network = teach(encoders.network(recipe.seed), training, validation, recipe)
    return quality(score(network.predict, test), test.labels)


if __name__ == "__main__":
    sys.exit(main())
