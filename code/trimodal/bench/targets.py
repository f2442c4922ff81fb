"""The targets of the project, each with what was measured; one that is not met is said, never bent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trimodal.bench.timing import Measured, Timing
from trimodal.bench.traffic import MIX
from trimodal.bench.variants import NAIVE, OURS, PEER, PLAIN, USUAL

TARGET_TOKENS = 512
"""Length to which the naive service pads in the targets."""

MET, MISSED, UNKNOWN = "met", "not met", "not measurable here"


@dataclass(frozen=True, slots=True)
class Target:
    """One target.

    Attributes:
        name: what is asked for.
        limit: the ratio.
        at_least: the ratio must be at least the limit; else at most.
        value: measured ratio, or None.
        note: what was compared, or why nothing could be.
        refused: what is compared gives wrong scores: its time is told, and the target is not met.
    """

    name: str
    limit: float
    at_least: bool
    value: float | None
    note: str
    refused: bool = False

    @property
    def state(self) -> str:
        """`met`, `not met` or `not measurable here`."""
        if self.value is None:
            return UNKNOWN
        if self.refused:
            return MISSED
        return MET if (self.value >= self.limit if self.at_least else self.value <= self.limit) else MISSED

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self) | {"state": self.state}


@dataclass(frozen=True, slots=True)
class Choice:
    """Some of the variants.

    Attributes:
        prefix: what their names begin with.
        kind: their kind, or empty for any.
        precision: their precision, or empty for any.
        wrong_too: also those whose scores are wrong.
    """

    prefix: str = ""
    kind: str = ""
    precision: str = ""
    wrong_too: bool = False

    def fits(self, one: Measured) -> bool:
        """Tells whether a variant is one of them."""
        variant = one.variant
        known = self.kind in ("", variant.kind) and self.precision in ("", variant.precision)
        return known and variant.name.startswith(self.prefix)


EXACT = Choice(kind=OURS, precision="fp32")
_FP32_PEER = Choice(kind=PEER, precision="fp32")
_INT8 = Choice("rebuild-int8", OURS, "int8")
_OPENVINO_BF16 = Choice("openvino-bf16")
_USUAL = Choice(USUAL, wrong_too=True)
_NOBODY = "(none)"


@dataclass(frozen=True, slots=True)
class Judge:
    """Holds measurements against the targets.

    Attributes:
        measured: every variant that was timed.
        skipped: variant to why it was not timed.
        auto: the variant that `MODEL_PRECISION=auto` serves, or None.
        traffics: names of the timed traffics.
        max_tokens: length to which the naive service pads here.
    """

    measured: Sequence[Measured]
    skipped: Mapping[str, str]
    auto: str | None
    traffics: Sequence[str]
    max_tokens: int

    def targets(self, cache: tuple[Timing, Timing] | None, cache_note: str) -> list[Target]:
        """Returns every target."""
        result = [
            self._over_naive("exact", 7, EXACT),
            self._over_naive("bf16 (OpenVINO)", 16, _OPENVINO_BF16),
            self._over_naive("INT8", 30, _INT8),
        ]
        lengths = [traffic for traffic in self.traffics if traffic != MIX]
        short = [traffic for traffic in self.traffics if traffic in (MIX, "S=32")]
        auto = Choice(self.auto or _NOBODY)
        pairs = [
            *(("exact to plain ONNX Runtime", 1.0, traffic, EXACT, Choice(PLAIN)) for traffic in lengths),
            *(("exact to the fastest fp32 peer", 1.05, traffic, EXACT, _FP32_PEER) for traffic in lengths),
            *(("INT8 to the usual route", 0.8, traffic, _INT8, _USUAL) for traffic in self.traffics),
            *(("INT8 to OpenVINO's INT8", 1.0, traffic, _INT8, Choice("openvino-int8")) for traffic in short),
            *(("auto to the fastest verified", 1.05, traffic, auto, Choice()) for traffic in self.traffics),
        ]
        result += [self._time(*pair) for pair in pairs]
        ratio = None if cache is None else cache[1].milliseconds / cache[0].milliseconds
        result.append(Target("encoder cache on to off, half the shipment texts repeat", 1.6, True, ratio, cache_note))
        return result

    def fastest(self, wanted: Choice, traffic: str) -> Measured | None:
        """Returns the fastest of some variants whose scores are right."""
        found = [one for one in self.measured if wanted.fits(one) and (wanted.wrong_too or one.wrong is None)]
        return min(found, key=lambda one: one.times[traffic].milliseconds, default=None)

    def _over_naive(self, what: str, limit: float, wanted: Choice) -> Target:
        name = f"{what}: requests/s on the mix over the naive service"
        own, naive = self._best(wanted, MIX), self.fastest(Choice(NAIVE), MIX)
        if own is None or naive is None:
            return Target(name, limit, True, None, self._why(wanted if own is None else Choice(NAIVE)))
        note = own.variant.name + _doubt(own)
        if self.max_tokens != TARGET_TOKENS:
            note += f"; the target is set for padding to {TARGET_TOKENS} tokens, this model takes {self.max_tokens}"
        ratio = naive.times[MIX].milliseconds / own.times[MIX].milliseconds
        return Target(name, limit, True, ratio, note, own.wrong is not None)

    def _time(self, what: str, limit: float, traffic: str, wanted: Choice, other: Choice) -> Target:
        name = f"{what}: time, {traffic}"
        own, peer = self._best(wanted, traffic), self.fastest(other, traffic)
        if own is None or peer is None:
            return Target(name, limit, False, None, self._why(wanted if own is None else other))
        note = f"{own.variant.name}{_doubt(own)} to {peer.variant.name}{_doubt(peer)}"
        ratio = own.times[traffic].milliseconds / peer.times[traffic].milliseconds
        return Target(name, limit, False, ratio, note, own.wrong is not None)

    def _best(self, wanted: Choice, traffic: str) -> Measured | None:
        """Returns the fastest whose scores are right; where none's are, the fastest of all."""
        return self.fastest(wanted, traffic) or self.fastest(replace(wanted, wrong_too=True), traffic)

    def _why(self, wanted: Choice) -> str:
        """Says why nothing of a kind was timed."""
        wrong = [f"{one.variant.name} is WRONG: {one.wrong}" for one in self.measured if wanted.fits(one)]
        skipped = [f"{name}: {why}" for name, why in self.skipped.items() if name.startswith(wanted.prefix)]
        return "; ".join(wrong + skipped) or "nothing of this kind was timed"


def _doubt(one: Measured) -> str:
    return "" if one.wrong is None else " (its scores are WRONG: by time alone)"
