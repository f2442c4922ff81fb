"""Reads the journal: what became of each rung, which one is served, and the report that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimodal.loading.compare import SLOWER
from trimodal.loading.journal import Event
from trimodal.loading.plan import phases_of


@dataclass(slots=True)
class Outcome:
    """What became of one rung.

    Attributes:
        rung: its name.
        phases: what it applies.
        precision: of its products with weights.
        engine: what runs it.
        group: place of its group in the plan.
        result: `passed`, `declined` (works, slower), `refused` (other scores), `failed`, `skipped` or `not tried`.
        cause: why not passed, or None.
        facts: what was counted and measured.
        built: description of the model that it built, or None.
        probes: its scores of the made-up records, or None.
    """

    rung: str
    phases: tuple[str, ...]
    precision: str
    engine: str
    group: int
    result: str = "not tried"
    cause: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    built: Mapping[str, Any] | None = None
    probes: Sequence[Sequence[float]] | None = None

    def summary(self) -> dict[str, Any]:
        """Returns what the log says."""
        names = ("fused", "layers", "ratio", "milliseconds", "largest", "agreement", "unpacked")
        return {"result": self.result, "cause": self.cause} | {n: self.facts[n] for n in names if n in self.facts}


@dataclass(frozen=True, slots=True)
class Choice:
    """What is served.

    Attributes:
        level: 1 or 2.
        rung: the rung's name; `tuned` for `model.onnx` with tuned options.
        outcome: the rung's outcome, or None for `tuned`.
        causes: what was asked for and is lost, with the cause.
        declined: rungs that work and are slower here.
    """

    level: int
    rung: str
    outcome: Outcome | None
    causes: Mapping[str, str]
    declined: tuple[str, ...]


def outcomes(events: Sequence[Event]) -> list[Outcome]:
    """Sums up the events of each rung of the plan, in its order."""
    plan = next((event["plan"] for event in events if event["event"] == "plan"), None)
    if plan is None:
        return []
    found = {
        rung["name"]: Outcome(
            rung["name"], tuple(rung["phases"]), rung["precision"],
            "openvino" if rung["method"] == "openvino" else "onnxruntime", place,
        )
        for place, group in enumerate(plan["groups"])
        for rung in group
    }  # fmt: skip
    for event in events:
        outcome = found.get(event.get("rung") or "")
        if outcome is not None:
            _READERS.get(event["event"], _ignore)(outcome, event)
    skipped = [
        Outcome(name, phases_of(name), "", "", len(plan["groups"]), "skipped", cause)
        for name, cause in plan["skipped"].items()
    ]
    return [*found.values(), *skipped]


def _ignore(outcome: Outcome, event: Event) -> None:
    """Leaves the outcome as it is."""


def _read_built(outcome: Outcome, event: Event) -> None:
    outcome.built = event["built"]
    outcome.facts |= {
        "fused": event["built"]["fused"],
        "layers": event["built"]["layers"],
        "build_seconds": event["seconds"],
        "bytes": event["bytes"],
        "peak_bytes": event["peak_bytes"],
    }


def _read_packed(outcome: Outcome, event: Event) -> None:
    outcome.built = event["built"]
    outcome.facts |= {"bytes": event["bytes"], "pack_seconds": event["seconds"]}


def _read_unpacked(outcome: Outcome, event: Event) -> None:
    outcome.facts["unpacked"] = event["cause"]


def _read_judged(outcome: Outcome, event: Event) -> None:
    outcome.probes = event["probes"]
    names = ("ratio", "milliseconds", "reference_milliseconds", "open_seconds", "peak_bytes")
    outcome.facts |= {name: event[name] for name in names} | dict(event["comparison"])
    outcome.cause = event["comparison"]["refusal"]
    outcome.result = "refused" if outcome.cause else "passed"
    if outcome.result == "passed" and event["ratio"] > SLOWER:
        outcome.result = "declined"
        outcome.cause = f"{event['ratio']:.2f} times the time of the graph as it is"


def _read_end(outcome: Outcome, event: Event) -> None:
    if event["cause"] is not None:
        outcome.result, outcome.cause = "failed", event["cause"]


_READERS = {
    "built": _read_built,
    "packed": _read_packed,
    "unpacked": _read_unpacked,
    "judged": _read_judged,
    "end": _read_end,
}


def choose(events: Sequence[Event], tried: Sequence[Outcome]) -> Choice:
    """Chooses the fastest rung that passed in the first group that has one.

    A phase that was asked for counts as lost where no rung that passed or was merely slower has it.
    """
    declined = tuple(outcome.rung for outcome in tried if outcome.result == "declined")
    plan = next((event["plan"] for event in events if event["event"] == "plan"), None)
    passed = [outcome for outcome in tried if outcome.result == "passed"]
    winner = min(passed, key=lambda outcome: (outcome.group, outcome.facts["ratio"]), default=None)
    reference = any(event["event"] == "reference" for event in events)
    if plan is None or not reference:
        # Where the tuned session was opened and gave other scores, or could not be, the default one is left; where
        # the process was ended from outside meanwhile, nothing speaks against it.
        ends = [event for event in events if event["event"] == "end" and event["step"] == "reference"]
        tuned_fails = any(event["cause"] and not event.get("outside", False) for event in ends)
        level, rung = (3, "baseline") if tuned_fails else (2, "tuned")
        return Choice(level, rung, None, {"optimization": _first_cause(events)}, declined)
    have = {phase for outcome in tried if outcome.result == "declined" for phase in outcome.phases}
    have |= set(winner.phases) if winner is not None else set()
    lost = {phase: _why(phase, tried, events) for phase in plan["asked"] if phase not in have}
    # Of everything that was asked for nothing is left: that is level 2. One phase of several costs no level.
    level = 2 if lost and len(lost) == len(plan["asked"]) and winner is None else 1
    return Choice(level, winner.rung if winner is not None else "tuned", winner, lost, declined)


def _why(phase: str, tried: Sequence[Outcome], events: Sequence[Event]) -> str:
    causes = [
        f"{outcome.rung}: {outcome.cause}"
        for outcome in tried
        if outcome.cause and phase in outcome.phases and (phase == "engine" or "engine" not in outcome.phases)
    ]
    return "; ".join(causes) or _first_cause(events)


def _first_cause(events: Sequence[Event]) -> str:
    causes: list[str] = [event["cause"] for event in events if event["event"] == "end" and event["cause"]]
    if causes:
        return causes[0]
    planned = any(event["event"] == "plan" for event in events)
    return "nothing that brings it was tried" if planned else "the optimizing process did not start"


def make_report(events: Sequence[Event], tried: Sequence[Outcome], choice: Choice, seconds: float) -> dict[str, Any]:
    """Returns the report in plain values: what is served, what was tried, what became of it."""
    facts: Mapping[str, Any] = next((event["facts"] for event in events if event["event"] == "plan"), {})
    return {
        "served": choice.rung,
        "level": choice.level,
        "seconds": seconds,
        "lost": dict(choice.causes),
        "model": facts,
        "notes": list(next((event["plan"]["notes"] for event in events if event["event"] == "plan"), ())),
        "rungs": [{"rung": o.rung, "result": o.result, "cause": o.cause, **o.facts} for o in tried],
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """Returns the report as text for people."""
    lines = [
        f"Served: **{report['served']}**, level {report['level']}, after {report['seconds']} s of optimization.",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
        *(_row(rung) for rung in report["rungs"]),
    ]
    causes = [f"- {rung['rung']}: {rung['cause']}" for rung in report["rungs"] if rung["cause"]]
    unpacked = {rung["rung"]: rung["unpacked"] for rung in report["rungs"] if "unpacked" in rung}
    causes += [f"- {name}: its weights are not packed: {cause}" for name, cause in unpacked.items()]
    lost = [f"- lost: {name}: {cause}" for name, cause in report["lost"].items()]
    notes = [f"- {note}" for note in report["notes"]]
    return "\n".join([*lines, *([""] if causes or lost or notes else []), *causes, *lost, *notes, ""])


_COLUMNS = (
    *("rung", "result", "fused", "largest Δ", "mean Δ", "labels", "F1 (reference)", "p50, ms (model.onnx)", "ratio"),
    *("MB", "build + open, s", "peak MB"),
)


def _row(rung: Mapping[str, Any]) -> str:
    def cell(form: str, *names: str) -> str:
        values = [rung.get(name) for name in names]
        return "" if any(value is None for value in values) else form.format(*values)

    def mega(name: str) -> str:
        return "" if rung.get(name) is None else f"{rung[name] / 1e6:.0f}"

    cells = [
        rung["rung"],
        rung["result"],
        cell("{}/{}", "fused", "layers"),
        cell("{:.1e}", "largest"),
        cell("{:.1e}", "mean"),
        cell("{:.1%}", "agreement"),
        cell("{:.3f} ({:.3f})", "f1", "f1_reference"),
        cell("{:.1f} ({:.1f})", "milliseconds", "reference_milliseconds"),
        cell("{:.2f}", "ratio"),
        mega("bytes"),
        cell("{:.1f} + {:.1f}", "build_seconds", "open_seconds"),
        mega("peak_bytes"),
    ]
    return "| " + " | ".join(cells) + " |"
