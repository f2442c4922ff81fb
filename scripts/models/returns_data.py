"""Synthetic return and refund cases: a dialogue, a shipment history and nine numbers each.

The label, 1 for a refund that should be reversed, is drawn from a logistic of three scores. Each
modality carries one of them, so that a model has to read all three:

* dialogue: what is claimed, in which tone, with which evidence, and whether the story changes;
* shipment: how the parcel's journey ended, from lost to signed for, and whether that contradicts
  the claim;
* table: how many concessions the customer had, and how large they were beside this one.

Being drawn and not decided, the label keeps a noise that no model can learn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ID_NAME = "order_id"
PRIMARY = "dialogue"
SECONDARY = "shiptrack_event_history_by_order"
FIELDS = (
    "net_conc_amt",
    "ttm_conc_amt",
    "ttm_conc_count",
    "concsi",
    "deliverable_flag",
    "undeliverable_flag",
    "unique_message_count",
    "total_ship_track_events_by_order",
    "total_unique_ship_track_events_by_order",
)
"""Tabular fields in the order of the model's inputs."""

CLAIM = {
    "changed_mind": -1.1,
    "late": -0.8,
    "damaged": -0.3,
    "wrong_item": 0.0,
    "not_received": 0.6,
    "empty_box": 1.1,
}
TONE = {"polite": -0.6, "plain": 0.0, "hostile": 0.8}
EVIDENCE = {"offered": -0.8, "none": 0.1, "refused": 0.9}
STORY = {"consistent": -0.3, "changed": 0.9}
OUTCOME = {
    "lost": -1.6,
    "returned": -1.1,
    "damaged": -0.9,
    "undeliverable": -0.6,
    "door": 0.2,
    "third_party": 0.5,
    "handed": 1.0,
    "signed": 1.5,
}
"""What each statement adds to its modality's score."""

OUTCOME_SHARES = (0.09, 0.08, 0.08, 0.07, 0.26, 0.14, 0.14, 0.14)
ARRIVED = frozenset({"door", "third_party", "handed", "signed"})
CONTRADICTION = 0.5
"""Added where "never arrived" meets "handed over", taken off where it meets "lost"."""

SHARPNESS, THRESHOLD = 2.8, 0.75
"""Slope and centre of the logistic: for an AUC near 0.94, and 2 of 5 refunds to be reversed."""

MISSING_NUMBERS, MISSING_TEXTS = 0.03, 0.01
"""Shares of values that are null."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        record: what a client would send; a value may be None.
        label: 1 when the refund should be reversed.
    """

    record: dict[str, Any]
    label: int


@cache
def phrases() -> dict[str, Any]:
    """What people and carriers say, by its meaning (`phrases.json`)."""
    text = Path(__file__).with_name("phrases.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def make_cases(count: int, seed: int) -> list[Case]:
    """Draws cases; the same seed gives the same cases, whatever the count."""
    return [_Writer(np.random.default_rng([seed, i])).case() for i in range(count)]


@dataclass
class _Writer:
    """Writes one case."""

    rng: np.random.Generator
    slots: dict[str, str] = field(default_factory=dict)

    def case(self) -> Case:
        claim, outcome = self.claim_and_outcome()
        self.slots = self.new_slots()
        dialogue, said = self.dialogue(claim)
        history, events, distinct = self.history(outcome)
        table, customer = self.table(outcome)
        table |= {
            "unique_message_count": dialogue.count("[bom]"),
            "total_ship_track_events_by_order": events,
            "total_unique_ship_track_events_by_order": distinct,
        }
        shipped = OUTCOME[outcome] + self.contradiction(claim, outcome)
        score = SHARPNESS * (0.9 * said + shipped + 0.9 * customer - THRESHOLD)
        label = int(self.rng.random() < 1 / (1 + math.exp(-score)))
        order = {ID_NAME: self.slots["order"]}
        texts = {PRIMARY: dialogue, SECONDARY: history}
        return Case(order | self.with_gaps(table, texts), label)

    def pick(self, options: Sequence[str], shares: Sequence[float] | None = None) -> str:
        return options[int(self.rng.choice(len(options), p=shares))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def say(self, options: Sequence[str]) -> str:
        """One of several phrases, its slots filled."""
        return self.pick(options).format(**self.slots)

    def digits(self, count: int) -> str:
        return "".join(str(d) for d in self.rng.integers(0, 10, count))

    def new_slots(self) -> dict[str, str]:
        known = phrases()
        return {
            "order": f"{self.digits(3)}-{self.digits(7)}",
            "item": self.pick(known["items"]),
            "other": self.pick(known["items"]),
            "name": self.pick(known["names"]),
            "carrier": self.pick(known["carriers"]),
            "town": self.pick(known["cities"])[:-3].title(),
            "days": str(self.rng.integers(2, 15)),
            "digits": self.digits(8),
            "amount": f"${self.rng.lognormal(3.6, 0.7):.2f}",
        }

    def claim_and_outcome(self) -> tuple[str, str]:
        """A parcel that never arrived is mostly claimed as such; else the two are unrelated."""
        outcome = self.pick(list(OUTCOME), OUTCOME_SHARES)
        claim = self.pick(list(CLAIM))
        if outcome not in ARRIVED and outcome != "damaged" and self.chance(0.35):
            claim = "not_received"
        return claim, outcome

    @staticmethod
    def contradiction(claim: str, outcome: str) -> float:
        if claim not in {"not_received", "empty_box"}:
            return 0.0
        return {"signed": 1, "handed": 1, "lost": -1}.get(outcome, 0) * CONTRADICTION

    def dialogue(self, claim: str) -> tuple[str, float]:
        """Returns the marked-up messages and the dialogue's score."""
        tone = self.pick(list(TONE), (0.4, 0.35, 0.25))
        evidence = self.pick(list(EVIDENCE), (0.35, 0.35, 0.3))
        story = self.pick(list(STORY), (0.72, 0.28))
        known, support = phrases(), phrases()["support"]
        customer = [
            f"{self.say(known['greetings'])} {self.say(known['claim'][claim])}",
            self.say(known["evidence"][evidence]),
            self.say(known["tone"][tone]),
            self.say(known["story"][story]),
        ]
        answers = [self.say(support[kind]) for kind in ("open", "ask", "inform", "close")]
        messages = self.interleave(customer, answers)
        score = CLAIM[claim] + TONE[tone] + EVIDENCE[evidence] + STORY[story]
        return " ".join(f"[bom] {message} [eom]" for message in messages), score

    def interleave(self, customer: list[str], answers: list[str]) -> list[str]:
        """Merges sentences into turns, with a long tail of small talk."""
        merge, skip = self.rng.uniform(0, 0.6), self.rng.uniform(0, 0.7)
        turns: list[str] = []
        for said, answer in zip(customer, answers, strict=True):
            if turns and self.chance(merge):
                turns[-1] = f"{turns[-1]} {said}"
            else:
                turns.append(said)
            if not self.chance(skip):
                turns.append(answer)
        for _ in range(int(self.rng.geometric(0.3)) - 1):
            place = int(self.rng.integers(0, len(turns)))
            turns[place] += " " + self.say(phrases()["filler"])
        while self.chance(0.24):
            turns += [self.say(phrases()["filler"]) for _ in range(3)]
        if self.chance(0.02):  # a letter that one chunk cannot hold
            turns.append(" ".join(self.say(phrases()["filler"]) for _ in range(18)))
        if self.chance(0.02):  # a correspondence beyond the chunks that are read
            turns += [self.say(phrases()["filler"]) for _ in range(30)]
        return [self.disturb(turn) for turn in turns]

    def disturb(self, message: str) -> str:
        """Typos, shouting, markup and emoji, now and then."""
        if self.chance(0.3):
            message = " ".join(self.misspell(word) for word in message.split())
        if self.chance(0.04):
            message = message.upper()
        if self.chance(0.06):
            message = f"<p>{message.replace('. ', '.<br/> ')}</p>"
        if self.chance(0.05):
            message = message.replace(" and ", " &amp; ").replace(", ", ",&nbsp;")
        if self.chance(0.08):
            message += " " + self.pick(phrases()["emoji"])
        return message

    def misspell(self, word: str) -> str:
        if len(word) < 4 or not word.isalpha() or not self.chance(0.06):
            return word
        at = int(self.rng.integers(1, len(word) - 1))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return swapped if self.chance(0.5) else word[:at] + word[at + 1 :]

    def history(self, outcome: str) -> tuple[str, int, int]:
        """Returns the marked-up events, their number and the number of distinct ones."""
        known = phrases()["events"]
        events = [self.pick(known["start"])] if self.chance(0.75) else []
        events += [self.pick(known["transit"]) for _ in range(self.rng.poisson(1.8))]
        if outcome in ARRIVED or self.chance(0.4):
            events.append(self.pick(known["near"], (0.6, 0.2, 0.1, 0.1)))
        events.append(self.pick(phrases()["outcome"][outcome]))
        when = datetime(2024, 1, 1)  # noqa: DTZ001  (carriers write local time without a zone)
        when += timedelta(minutes=int(self.rng.integers(0, 525_600)))
        origin, town = self.pick(phrases()["cities"]), self.pick(phrases()["cities"])
        lines = []
        for left, event in zip(reversed(range(len(events))), events, strict=True):
            place = town if left < 2 else origin
            lines.append(f"[bom]{event} {place} {when:%Y-%m-%d %H:%M}[eom]")
            when += timedelta(minutes=int(self.rng.lognormal(6.4, 0.9)))
        scans = len(events) + int(self.rng.poisson(1.5))
        return " ".join(lines), scans, len(set(events))

    def table(self, outcome: str) -> tuple[dict[str, float], float]:
        """Returns the customer's concession history and flags, and the table's score."""
        habit = self.rng.normal()
        count = int(self.rng.poisson(math.exp(1.0 + 0.9 * habit)))
        amount = self.rng.lognormal(3.6, 0.5)
        total = float(self.rng.lognormal(3.6, 0.3) * count)
        share = 1 / (1 + math.exp(-(1.2 * habit - 1.0 + self.rng.normal(0, 0.5))))
        good = outcome in ARRIVED
        score = 0.9 * (math.log1p(count) - 1.1) + 0.5 * (math.log1p(total / amount) - 1.0)
        return {
            "net_conc_amt": round(float(amount), 2),
            "ttm_conc_amt": round(total, 2),
            "ttm_conc_count": count,
            "concsi": round(share, 4),
            "deliverable_flag": int(self.chance(0.85 if good else 0.45)),
            "undeliverable_flag": int(self.chance(0.08 if good else 0.4)),
        }, score

    def with_gaps(self, table: dict[str, float], texts: dict[str, str]) -> dict[str, Any]:
        """Leaves out some values; fields in the order of the model's inputs."""
        numbers = {k: None if self.chance(MISSING_NUMBERS) else table[k] for k in FIELDS}
        return numbers | {k: None if self.chance(MISSING_TEXTS) else text for k, text in texts.items()}
