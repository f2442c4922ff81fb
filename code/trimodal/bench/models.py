"""What is optimized, behind one interface: a trimodal model directory, or one encoder of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Item = Any
"""One record: `Features` of a trimodal model, the token ids of one text."""


class AnySession(Protocol):
    """What runs a graph, or stands for one."""

    def run(self, output_names: Sequence[str], input_feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a record costs an ideal machine.

    Attributes:
        operations: additions and multiplications.
        weights: numbers that the products read, once a call.
        activations: numbers that the products read and write.
    """

    operations: float = 0.0
    weights: float = 0.0
    activations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.operations + other.operations, max(self.weights, other.weights), self.activations + other.activations
        )


def encoder_work(layers: int, hidden: int, inner: int, tokens: int) -> Work:
    """Counts a BERT encoder's work for one text: six products with weights a layer, and attention."""
    weights = layers * (4 * hidden**2 + 2 * hidden * inner)
    return Work(
        operations=2.0 * weights * tokens + 4.0 * layers * tokens**2 * hidden,
        weights=weights,
        activations=float(layers * tokens * (10 * hidden + 2 * inner)),
    )


class Model(Protocol):
    """A model that is optimized and measured.

    Attributes:
        name: of the directory.
        graph: its FP32 export.
        embeds: the output is a vector, not probabilities.
        heads: attention heads of an encoder.
        hidden: width of a token.
        layers: attention layers, all encoders together.
        max_tokens: longest text.
        items: records that accuracy is judged on.
        labels: their true classes, or None.
        notes: what a reader of the results must know.
    """

    name: str
    embeds: bool
    heads: int
    hidden: int
    layers: int
    notes: list[str]

    @property
    def graph(self) -> Path:
        """See above."""

    @property
    def max_tokens(self) -> int:
        """See above."""

    @property
    def items(self) -> Sequence[Item]:
        """See above."""

    @property
    def labels(self) -> Sequence[int] | None:
        """See above."""

    def mix(self, count: int) -> Sequence[Item]:
        """Returns records of realistic lengths."""

    def fixed(self, count: int, tokens: int) -> Sequence[Item]:
        """Returns records whose every text has so many tokens."""

    def lengths(self, item: Item) -> list[int]:
        """Returns the tokens of each chunk that goes through an encoder."""

    def work(self, item: Item) -> Work:
        """Returns what a record costs at least."""

    def scorer(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns what opens a scorer of records on a session."""

    def padded(self, opening: Callable[[], AnySession]) -> Callable[[], Any]:
        """Returns the same for texts that are all padded to `max_tokens`."""

    def pytorch(self, threads: int, *, bf16: bool) -> Callable[[], Any]:
        """Returns what opens a scorer in PyTorch; raises `ArtifactError` where there is none."""
