"""Examines host and model: what there is, what will be tried, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime

from trimodal.errors import TrimodalError
from trimodal.loading.artifacts import read_artifacts
from trimodal.loading.facts import ModelFacts, open_view, read_facts
from trimodal.loading.hardware import Hardware, detect, libraries, thread_count, worker_count
from trimodal.loading.plan import make_plan
from trimodal.settings import Settings


def examine(settings: Settings) -> dict[str, Any]:
    """Returns the findings in plain values; what is wrong stands under `problems`."""
    problems: list[str] = []
    facts = ModelFacts()
    try:
        artifacts = read_artifacts(settings.model_dir)
        if artifacts.has_graph:
            facts = read_facts(artifacts, open_view(artifacts.graph))
    except TrimodalError as err:
        problems.append(str(err))
    hardware, versions = detect(), libraries()
    plan = make_plan(settings, facts, hardware, versions)
    workers, threads = worker_count(settings), thread_count(settings)
    return {
        "host": hardware.to_json(),
        "libraries": versions,
        "providers": list(onnxruntime.get_available_providers()),
        "model": facts.to_json(),
        "workers": {"processes": workers, "threads": threads, "why": _sizing(settings, hardware, facts)},
        "precision": settings.precision,
        "engine": settings.engine,
        "plan": plan.to_json(),
        "problems": problems,
    }


def _sizing(settings: Settings, hardware: Hardware, facts: ModelFacts) -> str:
    told = [
        name
        for name, value in (
            ("SAGEMAKER_MODEL_SERVER_WORKERS", settings.workers),
            ("ONNX_INTRA_OP_THREADS", settings.intra_op_threads),
        )
        if value is not None
    ]
    if told:
        return f"as {' and '.join(told)} say"
    return (
        f"two cores a worker of {hardware.cores}, as many workers as {hardware.memory >> 20} MB hold with a model of "
        f"{facts.bytes >> 20} MB"
    )


def to_text(findings: Mapping[str, Any]) -> str:
    """Returns the findings for people."""
    host, model, workers, plan = (findings[name] for name in ("host", "model", "workers", "plan"))
    gpu = host["gpu"]
    processor = f"{host['processor'] or 'unknown processor'} ({' '.join(host['features']) or 'no known features'})"
    lines = [
        f"host      {host['cores']} cores, {host['memory'] >> 20} MB, {processor}",
        "gpu       " + (f"{gpu['name']}, {gpu['memory'] >> 20} MB, driver {gpu['driver']}" if gpu else "none"),
        "libraries " + ", ".join(f"{name} {version}" for name, version in findings["libraries"].items()),
        "providers " + ", ".join(findings["providers"]),
        *(_encoder(encoder) for encoder in model["encoders"]),
        f"workers   {workers['processes']} of {workers['threads']} threads: {workers['why']}",
        f"asked     precision {findings['precision']}, engine {findings['engine']}"
        + (f", phases {', '.join(plan['asked'])}" if plan["asked"] else ""),
    ]
    for place, group in enumerate(plan["groups"], start=1):
        for rung in group:
            head = ("try " if place == 1 else "else") if rung is group[0] else "or  "
            lines.append(f"{head}      {rung['name']}: {rung['why']}")
    lines += [
        "then      model.onnx with tuned options (level 2), its default session (3), model.pth (4)",
        *(f"skipped   {name}: {reason}" for name, reason in plan["skipped"].items()),
        *(f"note      {note}" for note in plan["notes"]),
        *(f"PROBLEM   {problem}" for problem in findings["problems"]),
    ]
    return "\n".join(lines)


def _encoder(facts: Mapping[str, Any]) -> str:
    if facts["problem"] is not None:
        return f"encoder   {facts['text']}: not known: {facts['problem']}"
    return (
        f"encoder   {facts['text']}: {facts['layers']} layers, {facts['heads']} heads, hidden {facts['hidden']}, "
        f"inner {facts['inner']}, vocabulary {facts['vocabulary']}, {facts['activation']}"
    )
