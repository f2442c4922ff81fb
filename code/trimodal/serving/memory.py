"""Encoder outputs of the texts seen last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from numpy.typing import NDArray

Key = tuple[int, bytes]
"""Side of a text (0 primary, 1 secondary) and the hash of its token ids."""

Outputs = tuple[NDArray[Any], ...]
"""What an encoder gave for one text."""


class EncoderCache:
    """Remembers encoder outputs of the texts seen last, exactly; may be used from several threads."""

    def __init__(self, entries: int) -> None:
        """Makes an empty cache of at most `entries` texts; 0 remembers nothing."""
        self.entries = entries
        self.hits = 0
        self.misses = 0
        self._outputs: OrderedDict[Key, Outputs] = OrderedDict()
        self._lock = Lock()

    def find(self, keys: Iterable[Key]) -> dict[Key, Outputs]:
        """Returns what is known of some texts."""
        with self._lock:
            known = {key: self._outputs[key] for key in keys if key in self._outputs}
            for key in known:
                self._outputs.move_to_end(key)
        return known

    def count(self, hits: int, misses: int) -> None:
        """Counts texts that were known, or equal to another of their request, and those that were computed."""
        with self._lock:
            self.hits += hits
            self.misses += misses

    def store(self, outputs: Mapping[Key, Outputs]) -> None:
        """Remembers some texts and forgets those that were used longest ago."""
        with self._lock:
            self._outputs.update(outputs)
            while len(self._outputs) > self.entries:
                self._outputs.popitem(last=False)

    def __len__(self) -> int:
        return len(self._outputs)
