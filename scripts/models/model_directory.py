"""Writes a model directory in the format that the container serves."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from transformers import BertConfig

from returns_data import FIELDS, ID_NAME, PRIMARY, SECONDARY, Case
from training import Examples, collate
from trimodal.network import Array, TrimodalNetwork, export_onnx
from trimodal.records import Features, FloatArray, Record, Schema
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.tabular import TabularEncoder
from trimodal.serving.text import TextEncoder

logger = logging.getLogger(__name__)

PRIMARY_STEPS = (
    "dialogue_splitter",
    "html_normalizer",
    "emoji_remover",
    "text_normalizer",
    "dialogue_chunker",
    "tokenizer",
)
SECONDARY_STEPS = ("dialogue_splitter", "text_normalizer", "dialogue_chunker", "tokenizer")
"""Text steps of the two fields, in training as in serving."""

BRANCH_DIM, MERGE_DIM, CLASSES = 32, 128, 2


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads cases exactly as the container will.

    Attributes:
        tokenizer: the fast tokenizer, shared by both texts.
        max_tokens: tokens of a chunk, special tokens included.
        max_chunks: chunks of a text.
        imputation: field name to the mean of the training cases.
    """

    tokenizer: Tokenizer
    max_tokens: int
    max_chunks: int
    imputation: Mapping[str, float]

    def encoder(self) -> FeatureEncoder:
        """The serving code's own encoder."""
        limits = self.max_tokens, self.max_chunks
        return FeatureEncoder(
            schema=Schema(PRIMARY, SECONDARY, FIELDS),
            primary=TextEncoder(self.tokenizer, PRIMARY_STEPS, *limits),
            secondary=TextEncoder(self.tokenizer, SECONDARY_STEPS, *limits),
            tabular=TabularEncoder(FIELDS, self.imputation, {}),
        )

    def examples(self, cases: Sequence[Case]) -> Examples:
        """Encodes cases."""
        encoder = self.encoder()
        features = [encoder.encode(Record(i, case.record)) for i, case in enumerate(cases)]
        return Examples(features, np.array([case.label for case in cases], np.int64))

    def neutral(self) -> Features:
        """The features of a record without any value: the placeholder text, imputed numbers."""
        return self.encoder().encode(Record(0, {}))


def imputation(cases: Sequence[Case]) -> dict[str, float]:
    """Means of the tabular fields over the cases that have them."""
    known = {name: [c.record[name] for c in cases if c.record[name] is not None] for name in FIELDS}
    return {name: round(float(np.mean(values)), 4) for name, values in known.items()}


def percentiles(scores: FloatArray) -> list[tuple[float, float]]:
    """Pairs of (raw score, share of cases below it), both rising, from float32 `[N]` scores."""
    shares = np.linspace(0, 1, 101)
    raw = np.quantile(scores.astype(np.float64), shares)
    pairs = {round(float(r), 6): round(float(s), 2) for r, s in zip(raw, shares, strict=True)}
    return list(pairs.items())


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A model directory being written.

    Attributes:
        path: the directory; made when it is not there.
        network: the model, in evaluation mode.
        bert: configuration of both encoders.
        reader: reads the cases that the model takes.
    """

    path: Path
    network: TrimodalNetwork
    bert: BertConfig
    reader: Reader

    def write(self) -> None:
        """Writes the weights, the graph, the tokenizer and the configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        torch.save(self.network.state_dict(), self.path / "model.pth")
        self.reader.tokenizer.save(str(self.path / "tokenizer.json"))
        self.write_json("config.json", self.bert.to_diff_dict())
        config = self.hyperparameters()
        self.write_json("hyperparameters.json", config)
        torch.save(self.artifacts(config), self.path / "model_artifacts.pth")
        self.write_json("impute_dict.json", dict(self.reader.imputation))
        columns = enumerate((*FIELDS, PRIMARY, SECONDARY))
        lines = ["# Order of the columns of headerless CSV: index,name"]
        lines += [f"{index},{name}" for index, name in columns]
        (self.path / "feature_columns.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        graph = self.path / "model.onnx"
        difference = export_onnx(self.network, (PRIMARY, SECONDARY), FIELDS, graph)
        logger.info("model.onnx differs from PyTorch by at most %.1e", difference)

    def hyperparameters(self) -> dict[str, Any]:
        """What the container reads to treat a request as the training treated its data."""
        return {
            "model_class": "trimodal_bert",
            "id_name": ID_NAME,
            "label_name": "reversal_flag",
            "primary_text_name": PRIMARY,
            "secondary_text_name": SECONDARY,
            "tab_field_list": list(FIELDS),
            "cat_field_list": [PRIMARY, SECONDARY],
            "full_field_list": [ID_NAME, *FIELDS, PRIMARY, SECONDARY],
            "input_tab_dim": len(FIELDS),
            "max_sen_len": self.reader.max_tokens,
            "max_total_chunks": self.reader.max_chunks,
            "chunk_trancate": True,
            "fixed_tokenizer_length": True,
            "hidden_common_dim": BRANCH_DIM,
            "is_binary": True,
            "num_classes": CLASSES,
            "multiclass_categories": [0, 1],
            "primary_text_processing_steps": list(PRIMARY_STEPS),
            "secondary_text_processing_steps": list(SECONDARY_STEPS),
            "text_input_ids_key": "input_ids",
            "text_attention_mask_key": "attention_mask",
            "tokenizer": "tokenizer.json",
            "imputation_dict": dict(self.reader.imputation),
            "risk_tables": None,
            "request_envelope": "instances",
        }

    def artifacts(self, config: dict[str, Any]) -> dict[str, Any]:
        """What training saves beside the weights; nothing but containers, numbers and strings.

        The embedding matrix that older directories repeat here is in `model.pth` already.
        """
        versions = {f"{name}_version": version(name) for name in ("torch", "transformers")}
        return {
            "config": config,
            "vocab": self.reader.tokenizer.get_vocab(),
            "model_class": config["model_class"],
            **versions,
        }

    def session(self) -> onnxruntime.InferenceSession:
        """The written graph in ONNX Runtime's default session."""
        return onnxruntime.InferenceSession(str(self.path / "model.onnx"), providers=["CPUExecutionProvider"])

    def write_golden(self, cases: Sequence[Case]) -> None:
        """Records cases with what the graph answers to each of them alone."""
        examples, session = self.reader.examples(cases), self.session()
        with (self.path / "golden.jsonl").open("w", encoding="utf-8") as file:
            for case, features in zip(cases, examples.features, strict=True):
                probs = run(session, collate([features]))[0]
                line = {"record": case.record, "probs": probs.tolist(), "label": case.label}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def write_calibration(self, scores: FloatArray) -> None:
        """Writes the percentile table of held-out scores, float32 `[N]`."""
        (self.path / "calibration").mkdir(exist_ok=True)
        self.write_json("calibration/percentile_score.json", percentiles(scores))

    def write_json(self, name: str, value: object) -> None:
        """Writes one JSON file."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


def run(session: onnxruntime.InferenceSession, inputs: Sequence[Array]) -> FloatArray:
    """Runs a graph on inputs in its order; returns probabilities, float32 `[B, K]`."""
    names = [node.name for node in session.get_inputs()]
    probs: FloatArray = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return probs


def pick_golden(examples: Examples, cases: Sequence[Case], count: int) -> list[Case]:
    """Chooses cases to record: a quarter with several chunks, a quarter with nulls, then the rest."""
    several = [len(f.primary.chunks) + len(f.secondary.chunks) > 2 for f in examples.features]
    gaps = [None in case.record.values() for case in cases]
    chosen: dict[int, None] = {}
    for wanted, size in ((several, count // 4), (gaps, count // 4), ([True] * len(cases), count)):
        found = [i for i, fits in enumerate(wanted) if fits and i not in chosen]
        chosen |= dict.fromkeys(found[: min(size, count - len(chosen))])
    return [cases[i] for i in sorted(chosen)]


def version(package: str) -> str:
    """The installed version of a package."""
    return importlib.metadata.version(package)
