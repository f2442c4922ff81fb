"""What the optimizing process writes while it works, so that its end at any moment loses nothing that was done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimodal.errors import TrimodalError

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Journal:
    """A file of JSON lines.

    Attributes:
        path: the file.
    """

    path: Path

    def write(self, event: str, **facts: object) -> None:
        """Appends an event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")

    @contextmanager
    def step(self, name: str, rung: str | None = None) -> Iterator[None]:
        """Marks a step's begin and end; its failure is written down and does not go further.

        What fails here costs one rung, whatever it is: libraries raise what they like.
        """
        self.write("begin", step=name, rung=rung)
        try:
            yield
        except MemoryError:
            self.write("end", step=name, rung=rung, cause="out of memory")
        except (TrimodalError, OSError) as err:
            self.write("end", step=name, rung=rung, cause=cause_of(err))
        except Exception as err:  # noqa: BLE001
            self.write("end", step=name, rung=rung, cause=f"{type(err).__name__} in {name}")
        else:
            self.write("end", step=name, rung=rung, cause=None)

    def read(self) -> list[Event]:
        """Returns the events; a line that the writer did not finish is left out."""
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")
        except OSError:
            return []
        events = []
        for line in lines[:-1]:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events


def cause_of(err: TrimodalError | OSError) -> str:
    """Returns the text of an error without a path."""
    return str(err) if isinstance(err, TrimodalError) else err.strerror or type(err).__name__


def unfinished(events: list[Event]) -> Event | None:
    """Returns the step that was begun and not ended, or None."""
    begun: Event | None = None
    for event in events:
        if event["event"] == "begin":
            begun = event
        elif event["event"] == "end":
            begun = None
    return begun
