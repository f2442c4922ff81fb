"""Scorers that give wrong numbers, to be opened in a worker's process; wants this folder on its PYTHONPATH."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Skewed:
    """Changes what a scorer gives."""

    scorer: Any
    kind: str

    def run(self, items: Sequence[Any]) -> Any:
        scores = self.scorer.run(items)
        if self.kind == "dies":
            if [len(item) for item in items] == [21] * 4:  # of a fixed length alone
                os.kill(os.getpid(), signal.SIGKILL)
            return scores
        if self.kind == "batched":  # right for a record alone, wrong in a batch
            return scores if len(scores) == 1 else scores[::-1].copy()
        return {
            "other rows": np.roll(scores, 1, axis=1),
            "slightly": scores + np.linspace(-1, 1, scores.size).reshape(scores.shape) * np.abs(scores).max(),
            "nan": np.full_like(scores, np.nan),
            "short": scores[:, :-1],
        }[self.kind]


def open_skewed(opening: Callable[[], Any], kind: str) -> Skewed:
    return Skewed(opening(), kind)


def fail(_opening: Callable[[], Any], _kind: str) -> Any:
    raise MemoryError
