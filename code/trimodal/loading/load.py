"""A model directory to a ready pipeline: read, open, warm up, check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from trimodal.errors import ArtifactError, InferenceFailed
from trimodal.loading.artifacts import Artifacts, read_artifacts
from trimodal.loading.graph import find_layout, open_session
from trimodal.loading.hardware import thread_count
from trimodal.loading.tokenizer import load_tokenizer
from trimodal.records import EncodedText, Features
from trimodal.serving.encode import ResponseFormat
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.pipeline import Pipeline
from trimodal.serving.runner import GraphLayout, Runner, TextInput
from trimodal.serving.tabular import TabularEncoder
from trimodal.serving.text import TextEncoder
from trimodal.settings import Settings


def load_pipeline(settings: Settings) -> Pipeline:
    """Loads the model directory and warms it up.

    Raises:
        ArtifactError: something in the model directory cannot be used.
    """
    artifacts = read_artifacts(settings.model_dir)
    tokenizer = load_tokenizer(settings.model_dir, artifacts.config.tokenizer)
    session = open_session(artifacts, thread_count(settings), settings.inter_op_threads)
    layout = find_layout(session, artifacts.schema)
    runner = Runner(session, layout, tokenizer.token_to_id("[PAD]") or 0)
    pipeline = Pipeline(
        schema=artifacts.schema,
        features=_feature_encoder(artifacts, tokenizer, layout),
        runner=runner,
        calibrator=artifacts.calibrator,
        form=response_format(settings),
        binary=artifacts.config.binary,
    )
    _warm_up(runner, artifacts, tokenizer.get_vocab_size() - 1)
    return pipeline


def response_format(settings: Settings) -> ResponseFormat:
    """Returns how answers are written."""
    return ResponseFormat(
        numbers=settings.score_numbers,
        label="output-label" in settings.response_fields,
        echo_id="id" in settings.response_fields,
        default=settings.default_accept,
    )


def _feature_encoder(artifacts: Artifacts, tokenizer: Tokenizer, layout: GraphLayout) -> FeatureEncoder:
    config = artifacts.config

    def text(steps: Sequence[str], inputs: TextInput) -> TextEncoder:
        if inputs.tokens is not None and inputs.tokens < config.max_tokens:
            raise ArtifactError(
                f"model.onnx takes texts of {inputs.tokens} tokens and max_sen_len is {config.max_tokens}; "
                "export it with a dynamic token axis, or lower max_sen_len."
            )
        limits = [limit for limit in (config.max_chunks, inputs.chunks) if limit is not None]
        return TextEncoder(tokenizer, steps, config.max_tokens, min(limits, default=None), config.read_unmarked)

    return FeatureEncoder(
        schema=artifacts.schema,
        primary=text(config.primary_steps, layout.primary),
        secondary=text(config.secondary_steps, layout.secondary),
        tabular=TabularEncoder(artifacts.schema.tabular, artifacts.imputation, artifacts.risk_tables),
    )


def _warm_up(runner: Runner, artifacts: Artifacts, largest_id: int) -> None:
    """Runs the graph on short and long texts, and checks that it answers with probabilities.

    Raises:
        ArtifactError: it does not, or it does not know every token of the tokenizer.
    """
    config = artifacts.config
    tabular = np.zeros(len(config.tabular), np.float32)
    short, long = 2, config.max_tokens
    for primary, secondary in ((short, short), (short, long), (long, short)):
        texts = [EncodedText([[largest_id] * tokens]) for tokens in (primary, secondary)]
        try:
            probabilities = runner.run([Features(0, texts[0], texts[1], tabular)])
        except InferenceFailed as err:
            raise ArtifactError(
                f"model.onnx fails on texts of {primary} and {secondary} tokens with token id {largest_id}; check that "
                "it was exported for this tokenizer and max_sen_len."
            ) from err
    if probabilities.shape != (1, config.num_classes):
        raise ArtifactError(
            f"model.onnx gives {probabilities.shape[-1]} scores a record and hyperparameters.json names "
            f"{config.num_classes} classes."
        )
    if abs(float(probabilities.sum()) - 1) > 1e-3 or probabilities.min() < 0:
        raise ArtifactError("model.onnx gives scores that are not probabilities; export it with its softmax.")
