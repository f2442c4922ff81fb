"""The optimizing process: builds each rung of the plan, proves it, measures it, writes everything into a journal.

It is a process of its own (`python -m trimodal.loading.optimize DIR`), so that its memory goes back, and so that
being killed costs the rung that it worked on and nothing else. `trimodal.loading.prepare` starts it.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimodal import log
from trimodal.errors import OptimizationError, TrimodalError
from trimodal.loading.artifacts import Artifacts, read_artifacts
from trimodal.loading.build import Source, build
from trimodal.loading.built import Built
from trimodal.loading.compare import SLOWER, compare
from trimodal.loading.facts import GraphInterface, ModelFacts, open_view, read_facts
from trimodal.loading.graph import find_layout
from trimodal.loading.hardware import Hardware, detect, libraries, shares_weights
from trimodal.loading.journal import Journal, cause_of
from trimodal.loading.load import feature_encoder, open_model
from trimodal.loading.opening import AnyRunner, open_built
from trimodal.loading.packing import pack, packable
from trimodal.loading.passes.view import GraphView
from trimodal.loading.plan import CPU, Plan, Rung, make_plan
from trimodal.loading.samples import Samples, make_probes, read_samples
from trimodal.loading.sessions import Tuning
from trimodal.loading.task import EXPORTED, JOURNAL, read_task
from trimodal.loading.tokenizer import load_tokenizer
from trimodal.records import Features, FloatArray
from trimodal.serving.runner import GraphLayout
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

MEASURE_SECONDS = 1.5
"""Candidate and reference are timed in turn until so much time is spent; four times as long while it is in doubt
whether the candidate is slower."""

TIMED_RECORDS = 2
"""Records that they are timed on, evenly picked by length."""

REFERENCE_RECORDS = 4
"""Recorded scores that level 2 is proven by; level 1 is proven on all of them."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is optimized, read.

    Attributes:
        artifacts: the model directory.
        layout: inputs and output of its graph.
        samples: what candidates are judged on.
        probes: made-up records.
        pad_id: token id that fills up a text.
    """

    artifacts: Artifacts
    layout: GraphLayout
    samples: Samples
    probes: Samples
    pad_id: int


def read_subject(artifacts: Artifacts, view: GraphView) -> Subject:
    """Reads what judging needs.

    Raises:
        ArtifactError: the directory cannot be used.
    """
    layout = find_layout(GraphInterface(view), artifacts.schema)
    tokenizer = load_tokenizer(artifacts.model_dir, artifacts.config.tokenizer)
    vocabulary = tokenizer.get_vocab_size()
    encoder = feature_encoder(artifacts, tokenizer, layout)
    return Subject(
        artifacts=artifacts,
        layout=layout,
        samples=read_samples(artifacts, encoder, vocabulary),
        probes=Samples(make_probes(artifacts, vocabulary)),
        pad_id=tokenizer.token_to_id("[PAD]") or 0,
    )


@dataclass(slots=True)
class Optimizer:
    """One run over the ladder.

    Attributes:
        settings: the container's settings.
        folder: the working directory.
        skip: rungs that are not tried again.
        tuning: how graphs are run.
        hardware: the host.
        journal: what was done.
    """

    settings: Settings
    folder: Path
    skip: Mapping[str, str]
    tuning: Tuning
    hardware: Hardware
    journal: Journal
    subject: Subject | None = None
    reference: AnyRunner | None = None
    expected: FloatArray | None = None
    rebuilt: bool = False

    def run(self) -> None:
        """Tries the groups of the plan in order, until one holds a rung that passes and is not slower.

        ONNX Runtime's own fusion is for encoders that cannot be written anew: it takes minutes and gigabytes.
        """
        plan: Plan | None = None
        place = 0
        before = {  # by a process that was killed later on
            event["rung"]
            for event in self.journal.read()
            if event["event"] == "judged" and event["comparison"]["refusal"] is None and event["ratio"] <= SLOWER
        }
        while plan is None or place < len(plan.groups):
            built: list[tuple[Rung, Built]] = []
            if plan is not None and not self._wanted(plan, place):
                place += 1
                continue
            self.reference = None  # its memory is needed to read the graph
            with self.journal.step("read"):
                view, facts, plan = self._read()
                if place == 0:
                    self.journal.write("plan", plan=plan.to_json(), facts=facts.to_json())
                    self.journal.write("layout", built=self._as_it_is())
            if self.subject is None or plan is None:
                return
            for rung in self._wanted(plan, place):
                built += self._build(rung, view, facts)
            del view
            gc.collect()
            if self.reference is None:
                with self.journal.step("reference"):
                    self._open_reference(self.subject)
            served = [self._judge(rung, one, self.subject) for rung, one in built]
            if self.reference is None or any(served) or before & {rung.name for rung in plan.rungs}:
                return
            place += 1

    def _wanted(self, plan: Plan, place: int) -> list[Rung]:
        """Returns what is to be tried of a group."""
        group = plan.groups[place] if plan.groups else ()
        return [rung for rung in group if rung.name not in self.skip and not (rung.method == "stock" and self.rebuilt)]

    def _read(self) -> tuple[GraphView, ModelFacts, Plan]:
        artifacts = self._with_graph(read_artifacts(self.settings.model_dir))
        view = open_view(artifacts.graph)
        facts = read_facts(artifacts, view)
        self.subject = self.subject or read_subject(artifacts, view)
        return view, facts, make_plan(self.settings, facts, self.hardware, libraries())

    def _as_it_is(self) -> dict[str, Any] | None:
        """Describes the graph served whole, for an export that has no other place than the cache."""
        if self.subject is None:
            return None
        layout = self.subject.layout
        return Built("tuned", "fp32", "onnxruntime", (CPU,), layout, whole="model.onnx").to_json()

    def _with_graph(self, artifacts: Artifacts) -> Artifacts:
        """Exports `model.pth` where there is no `model.onnx`."""
        if artifacts.has_graph:
            return artifacts
        exported = self.folder / EXPORTED / "model.onnx"
        if not exported.exists():
            from trimodal.loading.pytorch import export_model

            exported.parent.mkdir()
            difference = export_model(self.settings.model_dir, exported)
            self.journal.write("exported", difference=difference)
        return replace(artifacts, exported=exported)

    def _build(self, rung: Rung, view: GraphView, facts: ModelFacts) -> list[tuple[Rung, Built]]:
        """Builds one rung; returns it, or nothing where that failed."""
        built: list[tuple[Rung, Built]] = []
        with self.journal.step("build", rung.name):
            subject = self.subject
            if subject is None:
                return []
            started = time.perf_counter()
            folder = self.folder / rung.name
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            folder.mkdir()
            source = Source(
                graph=subject.artifacts.graph,
                view=view,
                layout=subject.layout,
                facts=facts,
                max_tokens=subject.artifacts.config.max_tokens,
                max_chunks=subject.artifacts.config.max_chunks,
                samples=subject.samples.features,
                reduced=not self.hardware.has_vnni,
                threads=self.tuning.threads,
            )
            one = build(rung, source, folder)
            self.journal.write(
                "built",
                rung=rung.name,
                built=one.to_json(),
                seconds=round(time.perf_counter() - started, 2),
                bytes=sum(path.stat().st_size for path in folder.iterdir()),
                peak_bytes=_peak(),
            )
            if one.layers and one.engine == "onnxruntime" and one.fused < one.layers:
                raise OptimizationError(f"partial: {one.fused} of {one.layers} attention layers were fused")
            built.append((rung, one))
        return built

    def _open_reference(self, subject: Subject) -> None:
        """Opens level 2 and proves it: by the recorded scores where there are any, else by the default session."""
        reference = open_model(subject.artifacts, subject.pad_id, self.tuning)
        if self.expected is None:
            features, recorded = subject.samples.features, subject.samples.expected
            few = evenly(len(features), REFERENCE_RECORDS)
            scores = reference.run([features[place] for place in few])
            if recorded is not None and compare(scores, recorded[few], "fp32").refusal is None:
                self.expected = recorded
            else:
                baseline = open_model(subject.artifacts, subject.pad_id)
                expected = baseline.run([features[place] for place in few])
                if (refusal := compare(scores, expected, "fp32").refusal) is not None:
                    raise OptimizationError(f"tuned options change the scores: {refusal}")
                if recorded is not None:
                    self.journal.write("stale", cause="golden.jsonl does not hold the scores of model.onnx")
                self.expected = reference.run(features)
            self.journal.write("reference", records=len(scores))
        self.reference = reference

    def _judge(self, rung: Rung, built: Built, subject: Subject) -> bool:
        """Verifies and measures a candidate; returns whether it passed and is not slower than level 2."""
        served = False
        with self.journal.step("judge", rung.name):
            if self.reference is None or self.expected is None:
                return False
            started = time.perf_counter()
            candidate = self._open_candidate(rung, built, subject)
            opened = time.perf_counter() - started
            probes = candidate.run(subject.probes.features)
            features = subject.samples.features
            scores = np.concatenate([candidate.run([item]) for item in features])
            comparison = compare(scores, self.expected, rung.precision, subject.samples.labels)
            by_length = sorted(features, key=_tokens)
            timed = [by_length[place] for place in evenly(len(features), TIMED_RECORDS)]
            own, other = time_in_turn((candidate, self.reference), timed)
            ratio = float(own.min(0).sum() / other.min(0).sum())
            served = comparison.refusal is None and ratio <= SLOWER
            self.rebuilt |= comparison.refusal is None and rung.method == "rebuild"
            self.journal.write(
                "judged",
                rung=rung.name,
                comparison=comparison.to_json(),
                ratio=round(ratio, 4),
                milliseconds=round(float(np.median(own)) * 1000, 3),
                reference_milliseconds=round(float(np.median(other)) * 1000, 3),
                open_seconds=round(opened, 2),
                peak_bytes=_peak(),
                probes=[row.tolist() for row in probes],
            )
        return served

    def _open_candidate(self, rung: Rung, built: Built, subject: Subject) -> AnyRunner:
        """Opens what is judged: with packed weights, which is what is served then, or as it was built."""
        folder = self.folder / rung.name
        # what engines keep is named after a path that will go
        tuning = replace(self.tuning, cache_dir=None, crowded=False)
        if shares_weights(self.settings, tuning.threads) and packable(built):
            started = time.perf_counter()
            try:
                packed, runner = pack(built, folder, tuning, subject.probes.features, subject.pad_id)
            except (TrimodalError, OSError) as err:
                self.journal.write("unpacked", rung=rung.name, cause=cause_of(err))
            else:
                seconds = round(time.perf_counter() - started, 2)
                size = sum(path.stat().st_size for path in folder.iterdir())
                self.journal.write("packed", rung=rung.name, built=packed.to_json(), seconds=seconds, bytes=size)
                return runner
        return open_built(built, folder, tuning, pad_id=subject.pad_id)


def time_in_turn(runners: tuple[AnyRunner, AnyRunner], features: Sequence[Features]) -> list[FloatArray]:
    """Runs every record alone through each runner, in turn, so that a busy host slows all of them alike.

    Returns:
        For each runner the seconds, float32 `[rounds, N]`; the least of a record is the least disturbed.
    """
    rounds: list[list[list[float]]] = []
    started = time.perf_counter()
    while True:
        rounds.append([[_seconds(runner, item) for runner in runners] for item in features])
        times = np.array(rounds, np.float32).transpose(2, 0, 1)
        own, other = times.min(axis=1).sum(axis=1)
        patience = MEASURE_SECONDS if own <= SLOWER * other else 4 * MEASURE_SECONDS
        if len(rounds) > 1 and time.perf_counter() - started > patience:
            return list(times)


def _seconds(runner: AnyRunner, item: Features) -> float:
    begun = time.perf_counter()
    runner.run([item])
    return time.perf_counter() - begun


def _tokens(item: Features) -> int:
    return sum(len(chunk) for text in (item.primary, item.secondary) for chunk in text.chunks)


def evenly(count: int, most: int) -> list[int]:
    """Picks at most `most` of `count` places: the middles of as many equal parts."""
    parts = min(count, most)
    return [(2 * place + 1) * count // (2 * parts) for place in range(parts)]


def _peak() -> int:
    """Returns the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder: Path) -> None:
    """Runs the task of a working directory."""
    settings, threads, skip = read_task(folder)
    log.configure(settings.log_level)
    Optimizer(
        settings=settings,
        folder=folder,
        skip=skip,
        tuning=replace(Tuning.of(settings, threads), profile=False),  # it takes time, and much room
        hardware=detect(),
        journal=Journal(folder / JOURNAL),
    ).run()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except OSError:  # the journal cannot be written, and whoever reads it will not find its end
        os._exit(1)
    os._exit(0)  # everything is written, and giving the weights back one by one takes a while
