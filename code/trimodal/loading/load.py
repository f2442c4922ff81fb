"""A model directory to a ready pipeline: read, open what the cold start chose, warm up, check; else a level lower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from trimodal.errors import ArtifactError, InferenceFailed, OptimizationError
from trimodal.limits import DEFAULT_LIMITS, Limits
from trimodal.loading.artifacts import Artifacts, read_artifacts
from trimodal.loading.built import Built
from trimodal.loading.compare import TOLERANCES
from trimodal.loading.graph import check_layout, find_layout, open_session
from trimodal.loading.hardware import thread_count
from trimodal.loading.opening import AnyRunner, open_built
from trimodal.loading.prepare import prepare, read_manifest
from trimodal.loading.samples import make_probes
from trimodal.loading.selection import Selection
from trimodal.loading.sessions import Tuning
from trimodal.loading.tokenizer import failed, largest_id, load_tokenizer
from trimodal.records import EncodedText, Features, Record, Schema
from trimodal.serving.encode import ResponseFormat
from trimodal.serving.features import FeatureEncoder
from trimodal.serving.pipeline import Pipeline, Reader
from trimodal.serving.runner import GraphLayout, Runner, TextInput
from trimodal.serving.steps import always, finish, never
from trimodal.serving.tabular import TabularEncoder
from trimodal.serving.text import TextEncoder
from trimodal.settings import Settings

logger = logging.getLogger(__name__)


def load_pipeline(settings: Settings) -> Pipeline:
    """Loads the model directory and warms it up.

    What the container's main process has chosen is served; without one, the choice is made here. Where it cannot be
    opened, the level below is tried, down to PyTorch.

    Raises:
        ArtifactError: nothing in the model directory can be served, or only at a level that
            `STRICT_OPTIMIZATION=true` forbids.
    """
    artifacts = read_artifacts(settings.model_dir)
    tokenizer = load_tokenizer(settings.model_dir, artifacts.config.tokenizer)
    threads = thread_count(settings)
    told = Selection.read(settings.run_dir) if settings.run_dir is not None else None
    selection = told or prepare(settings, threads)
    loader = _Loader(settings, artifacts, tokenizer, Tuning.of(settings, threads))
    causes = dict(selection.causes)
    failure: ArtifactError | None = None
    for rung, load in loader.ladder(selection):
        try:
            pipeline = load()
        except (ArtifactError, OptimizationError) as err:
            logger.warning("a level is lost", extra={"fallback_level": rung.level, "cause": str(err)})
            causes[f"level {rung.level}"] = str(err)
            failure = failure if isinstance(failure, ArtifactError) else ArtifactError(str(err))
            if settings.strict:
                raise ArtifactError(f"STRICT_OPTIMIZATION=true, and level {rung.level} is lost: {err}") from err
            continue
        status = replace(rung, causes=causes).to_json()
        facts = {key: status[key] for key in ("rung", "precision", "engine")}
        logger.info("model ready", extra={"fallback_level": rung.level, **facts})
        return replace(pipeline, status=status)
    raise failure or ArtifactError("The model directory holds nothing that can be served; add model.onnx.")


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads one model directory at any level."""

    settings: Settings
    artifacts: Artifacts
    tokenizer: Tokenizer
    tuning: Tuning

    @property
    def pad_id(self) -> int:
        return self.tokenizer.token_to_id("[PAD]") or 0

    def ladder(self, selection: Selection) -> Iterator[tuple[Selection, Callable[[], Pipeline]]]:
        """Yields the levels from the chosen one down, each with what loads it."""
        if selection.entry is not None:
            yield selection, lambda: self.entry(selection)
        if self.artifacts.has_graph:
            level = selection.level if selection.entry is None else 2
            if level < 3:
                yield Selection(level, declined=selection.declined, report=selection.report), self.tuned
            yield Selection(3, "baseline"), self.baseline
        if self.artifacts.has_state_dict:
            yield Selection(4, "pytorch", engine="torch"), self.pytorch

    def entry(self, selection: Selection) -> Pipeline:
        """Opens an optimized model and checks that it still gives the scores that were proven."""
        try:
            return self._entry(selection)
        except (ArtifactError, OptimizationError):
            raise
        except Exception as err:  # whatever is wrong with an optimized model, there is the one it was made from
            logger.exception("an optimized model cannot be opened")
            raise OptimizationError(f"the optimized model cannot be opened ({type(err).__name__})") from err

    def _entry(self, selection: Selection) -> Pipeline:
        if selection.entry is None:
            raise OptimizationError("there is no optimized model")
        manifest = read_manifest(selection.entry)
        built = Built.from_json(manifest["built"])
        check_layout(built.layout)
        if not built.files <= set(manifest["files"]):
            raise OptimizationError("the manifest describes a model of other files than it lists")
        runner = open_built(
            built, selection.entry, self.tuning, pad_id=self.pad_id, cache_entries=self.settings.encoder_cache
        )
        pipeline = self.pipeline(runner, built.layout)
        if manifest["probes"] is None:  # the graph as it was exported, proven by its parity with PyTorch
            return pipeline
        probes = make_probes(self.artifacts, self.tokenizer.get_vocab_size())
        expected = np.array(manifest["probes"], np.float32)
        for alone in (always, never):  # both sets of encoders, where there are two
            scores = finish(runner.steps(probes, alone))
            if scores.shape != expected.shape or np.abs(scores - expected).max() > TOLERANCES[built.precision].largest:
                raise OptimizationError("the optimized model does not give the scores that it was proven to give")
        return pipeline

    def tuned(self) -> Pipeline:
        runner = open_model(self.artifacts, self.pad_id, self.tuning)
        return self.pipeline(runner, runner.layout)

    def baseline(self) -> Pipeline:
        runner = open_model(self.artifacts, self.pad_id)
        return self.pipeline(runner, runner.layout)

    def pytorch(self) -> Pipeline:
        from trimodal.loading.pytorch import load_pytorch

        session, layout = load_pytorch(self.artifacts, self.tuning.threads)
        return self.pipeline(Runner(session, layout, self.pad_id), layout)

    def pipeline(self, runner: AnyRunner, layout: GraphLayout) -> Pipeline:
        pipeline = Pipeline(
            schema=self.artifacts.schema,
            features=feature_encoder(self.artifacts, self.tokenizer, layout, self.settings.limits),
            runner=runner,
            calibrator=self.artifacts.calibrator,
            form=response_format(self.settings),
            binary=self.artifacts.config.binary,
            classes=self.artifacts.config.num_classes,
            limits=self.settings.limits,
            report_errors=self.settings.report_errors,
        )
        _warm_up(runner, self.artifacts, largest_id(self.tokenizer))
        _try_text(pipeline.features, self.artifacts.schema)
        return pipeline


def open_model(artifacts: Artifacts, pad_id: int, tuning: Tuning | None = None) -> Runner:
    """Opens `model.onnx` as it is: level 2 with tuned options, level 3 without.

    Raises:
        ArtifactError: it cannot be opened, or does not fit the model directory.
    """
    session = open_session(artifacts, tuning.options("model") if tuning is not None else None)
    return Runner(session, find_layout(session, artifacts.schema), pad_id)


def open_reference(settings: Settings) -> Runner:
    """Opens `model.onnx` as it is, on one thread: what an optimized model is compared with while it serves.

    Raises:
        ArtifactError: it cannot be opened.
    """
    artifacts = read_artifacts(settings.model_dir)
    tokenizer = load_tokenizer(settings.model_dir, artifacts.config.tokenizer)
    return open_model(artifacts, tokenizer.token_to_id("[PAD]") or 0, Tuning(1))


def response_format(settings: Settings) -> ResponseFormat:
    """Returns how answers are written."""
    return ResponseFormat(
        numbers=settings.score_numbers,
        label="output-label" in settings.response_fields,
        echo_id="id" in settings.response_fields,
        default=settings.default_accept,
    )


def feature_encoder(
    artifacts: Artifacts, tokenizer: Tokenizer, layout: GraphLayout, limits: Limits = DEFAULT_LIMITS
) -> FeatureEncoder:
    """Returns what reads records for a graph.

    Raises:
        ArtifactError: the graph takes shorter texts than the model directory says.
    """
    config = artifacts.config

    def text(steps: Sequence[str], inputs: TextInput) -> TextEncoder:
        if inputs.tokens is not None and inputs.tokens < config.max_tokens:
            raise ArtifactError(
                f"model.onnx takes texts of {inputs.tokens} tokens and max_sen_len is {config.max_tokens}; "
                "export it with a dynamic token axis, or lower max_sen_len."
            )
        added = tokenizer.num_special_tokens_to_add(is_pair=False)
        if added >= config.max_tokens:
            raise ArtifactError(
                f"tokenizer.json adds {added} special tokens to each text and max_sen_len is {config.max_tokens}; "
                "raise max_sen_len."
            )
        limits = [limit for limit in (config.max_chunks, inputs.chunks) if limit is not None]
        return TextEncoder(tokenizer, steps, config.max_tokens, min(limits, default=None), config.read_unmarked)

    return FeatureEncoder(
        schema=artifacts.schema,
        primary=text(config.primary_steps, layout.primary),
        secondary=text(config.secondary_steps, layout.secondary),
        tabular=TabularEncoder(artifacts.schema.tabular, artifacts.imputation, artifacts.risk_tables),
        limits=limits,
    )


def _try_text(reader: Reader, schema: Schema) -> None:
    """Reads a text with words and signs that no vocabulary has, as customers send them.

    Raises:
        ArtifactError: the tokenizer cannot.
    """
    text = "[bom]Where is it? \u2603 \u0416\u4e2d zzqx <b>&amp;</b>[eom]"
    try:
        reader.encode(Record(0, {schema.primary: text, schema.secondary: text}))
    except BaseException as err:
        if not failed(err):
            raise
        raise ArtifactError(
            "tokenizer.json cannot read a text with words that it does not know; save the fast tokenizer again."
        ) from err


def _warm_up(runner: AnyRunner, artifacts: Artifacts, largest_id: int) -> None:
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
