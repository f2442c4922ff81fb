"""Cold start, once per container: finds the optimized model in the cache, or has it made, proven and measured."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimodal.errors import ArtifactError, OptimizationError
from trimodal.loading.cache import Store, cache_key, hash_files
from trimodal.loading.directory import check_directory
from trimodal.loading.facts import graph_files
from trimodal.loading.hardware import detect, libraries, shares_weights
from trimodal.loading.journal import Event, Journal, unfinished
from trimodal.loading.places import choose_root
from trimodal.loading.report import choose, make_report, outcomes, to_markdown
from trimodal.loading.selection import Selection
from trimodal.loading.task import EXPORTED, JOURNAL, victim, write_task
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of what an entry holds; another one makes every entry stale."""

_INPUTS = (
    "hyperparameters.json",
    "model_artifacts.pth",
    "golden.jsonl",
    "tokenizer.json",
    "config.json",
    "feature_columns.txt",
)
"""Files that decide what passes verification, beside the graph."""

_POLL_SECONDS = 0.05

_STOPPED = "the container was told to stop"
_OVER_BUDGET = "over OPTIMIZATION_BUDGET_SECONDS"
_KILLED = "killed by signal 9, probably for memory"


def prepare(settings: Settings, threads: int, stop: threading.Event | None = None) -> Selection:
    """Chooses what to serve; makes it where that has not been done before.

    Args:
        settings: the container's settings.
        threads: threads of one operator in each worker.
        stop: set when the container shall end.

    Returns:
        Level 1, or level 2 with the causes; nothing is raised for a lost optimization.

    Raises:
        ArtifactError: the model directory holds what none may hold, or `STRICT_OPTIMIZATION=true` and something that
            was asked for is lost.
    """
    check_directory(settings.model_dir)
    try:
        selection = _prepare(settings, threads, stop or threading.Event())
    except (OptimizationError, OSError) as err:
        cause = str(err) if isinstance(err, OptimizationError) else err.strerror or type(err).__name__
        selection = Selection(2, causes={"optimization": cause})
    except Exception as err:
        logger.exception("the optimization failed")  # a mistake of ours must not cost the service either
        selection = Selection(2, causes={"optimization": type(err).__name__})
    for name, cause in selection.causes.items():
        logger.warning("lost: %s", name, extra={"cause": cause, "fallback_level": selection.level})
    if settings.strict and selection.causes:
        lost = "; ".join(f"{name}: {cause}" for name, cause in selection.causes.items())
        raise ArtifactError(f"STRICT_OPTIMIZATION=true, and something that was asked for is lost: {lost}.")
    return selection


def _prepare(settings: Settings, threads: int, stop: threading.Event) -> Selection:
    graph = settings.model_dir / "model.onnx"
    if not graph.is_file():
        graph = settings.model_dir / "model.pth"
    started = time.perf_counter()
    key = _key(settings, graph, threads)
    need = 2 * sum(path.stat().st_size for path in graph_files(graph))
    for place in filter(None, (settings.model_dir / "optimized", settings.optimized_dir)):  # perhaps read-only
        if (entry := Store(place).find(key)) is not None:
            return _known(entry, started)
    store = Store(choose_root(settings, need))
    if (entry := store.find(key)) is not None:
        return _known(entry, started)
    with store.lock(key, settings.budget + 60, stop):
        if (entry := store.find(key)) is not None:  # another process was faster
            return _known(entry, started)
        with store.draft(key) as draft:
            events = run_optimizer(settings, threads, draft, stop)
            selection = _settle(store, key, draft, events, started)
    if graph.suffix == ".pth" and selection.level > 1:
        return replace(selection, level=4, rung="pytorch", engine="torch")
    return selection


def _key(settings: Settings, graph: Path, threads: int) -> str:
    hardware = detect()
    files = [*graph_files(graph), *(path for name in _INPUTS if (path := settings.model_dir / name).is_file())]
    asked = ("fusion", "precision", "tensorrt", "engine", "providers", "inter_op_threads")
    return cache_key(
        {
            "format": FORMAT,
            "code": hash_files(sorted(Path(__file__).parent.rglob("*.py"))),
            "model": hash_files(files),
            "settings": {name: getattr(settings, name) for name in asked},
            "threads": threads,
            "packed": shares_weights(settings, threads),
            "hardware": [hardware.processor, sorted(hardware.features), hardware.gpu and hardware.gpu.name],
            "libraries": {name: version for name, version in libraries().items() if name in _LIBRARIES},
        }
    )


REPORT = "report.md"

_MANIFEST = {
    "rung": str,
    "precision": str,
    "engine": str,
    "causes": dict,
    "declined": list,
    "files": dict,
    "built": dict | None,
    "probes": list | None,
}
"""What a manifest holds, beside its key."""

_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "onnx", "openvino", "numpy")


def _known(entry: Path, started: float) -> Selection:
    """Reads the selection of an entry that was made before."""
    manifest = read_manifest(entry)
    seconds = round(time.perf_counter() - started, 2)
    logger.info("optimized model found in the cache", extra={"rung": manifest["rung"], "seconds": seconds})
    return Selection(
        level=1,
        rung=manifest["rung"],
        precision=manifest["precision"],
        engine=manifest["engine"],
        entry=entry.resolve() if manifest["built"] else None,  # workers run in other directories
        causes=manifest["causes"],
        declined=tuple(manifest["declined"]),
        report=(entry / REPORT).read_text(encoding="utf-8") if REPORT in manifest["files"] else "",
    )


def read_manifest(entry: Path) -> dict[str, Any]:
    """Reads the manifest of an entry.

    Raises:
        OptimizationError: there is none, or it is of another form.
    """
    try:
        manifest: dict[str, Any] = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        wrong = [name for name, kind in _MANIFEST.items() if not isinstance(manifest[name], kind)]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as err:
        raise OptimizationError("the optimized model has no readable manifest") from err
    if wrong:
        raise OptimizationError(f"the optimized model's manifest is of another form ({wrong[0]})")
    return manifest


def _settle(store: Store, key: str, draft: Path, events: list[Event], started: float) -> Selection:
    """Chooses among what was tried, keeps it, and writes the report."""
    tried = outcomes(events)
    choice = choose(events, tried)
    seconds = round(time.perf_counter() - started, 2)
    for outcome in tried:
        logger.info("rung %s", outcome.rung, extra=outcome.summary())
    logger.info("optimization done", extra={"fallback_level": choice.level, "rung": choice.rung, "seconds": seconds})
    report = make_report(events, tried, choice, seconds)
    text = to_markdown(report)
    if choice.level != 1:  # a failure is never cached; its report lies beside the entries
        (store.root / f"report-{key[:16]}.md").write_text(text, encoding="utf-8")
        return Selection(choice.level, choice.rung, causes=choice.causes, declined=choice.declined, report=text)
    winner = choice.outcome
    exported = any(event["event"] == "exported" for event in events)
    kept = winner.rung if winner is not None else EXPORTED
    built = winner.built if winner is not None else None
    if winner is None and exported:
        built = next(event["built"] for event in events if event["event"] == "layout")
    for path in list(draft.iterdir()):
        if path.name == kept:
            for file in path.iterdir():
                file.rename(draft / file.name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (draft / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (draft / REPORT).write_text(text, encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "rung": choice.rung,
        "precision": winner.precision if winner else "fp32",
        "engine": winner.engine if winner else "onnxruntime",
        "built": built,
        "probes": winner.probes if winner else None,
        "causes": dict(choice.causes),
        "declined": list(choice.declined),
    }
    for path in draft.iterdir():
        path.chmod(0o644)  # prepared by one user, served by another
    entry = store.publish(key, draft, manifest)
    return _known(entry, started)


def run_optimizer(settings: Settings, threads: int, folder: Path, stop: threading.Event) -> list[Event]:
    """Runs the optimizing process, again without the rung that it died of, within the budget.

    Returns:
        The journal's events; a step that did not end has an `end` with its cause.
    """
    journal = Journal(folder / JOURNAL)
    deadline = time.monotonic() + settings.budget
    skip: dict[str, str] = {}
    while True:
        write_task(folder, settings, threads, skip)
        cause = _run_once(folder, deadline, stop)
        if cause is None:
            break
        begun = unfinished(journal.read())
        rung = begun["rung"] if begun else None
        outside = cause in (_STOPPED, _OVER_BUDGET, _KILLED)
        journal.write("end", step=begun["step"] if begun else "start", rung=rung, cause=cause, outside=outside)
        if rung is None or rung in skip or stop.is_set() or time.monotonic() > deadline:
            break
        skip[rung] = cause
        skip |= {event["rung"]: "judged before" for event in journal.read() if event["event"] == "judged"}
        shutil.rmtree(folder / rung, ignore_errors=True)
    return journal.read()


def _run_once(folder: Path, deadline: float, stop: threading.Event) -> str | None:
    """Runs the process to its end; returns why it did not end well, or None."""
    journal = Journal(folder / JOURNAL)
    seen = len(journal.read())
    code = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))}
    process = subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, "-m", "trimodal.loading.optimize", str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        preexec_fn=victim,  # noqa: PLW1509  it makes one system call and writes one file
    )
    try:
        while process.poll() is None:
            seen = _tell(journal, seen)
            if stop.is_set():
                return _STOPPED
            if time.monotonic() > deadline:
                return _OVER_BUDGET
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return _KILLED if process.returncode == -signal.SIGKILL else f"killed by signal {-process.returncode}"
    return f"the optimizing process ended with status {process.returncode}"


def _tell(journal: Journal, seen: int) -> int:
    """Logs the steps that were begun since the last call; returns how many events there are."""
    events = journal.read()
    for event in events[seen:]:
        if event["event"] == "begin":
            logger.info("cold start: %s", event["step"], extra={"rung": event["rung"]})
    return len(events)
