"""What instruments give their measurements to."""

from __future__ import annotations

from typing import Protocol


class Recorder(Protocol):
    """Takes measurements; may be called from several threads, never blocks and never fails."""

    def record(self, name: str, value: float = 1.0, /, **dimensions: str) -> None:
        """Takes one measurement.

        Args:
            name: the metric, one of the table in `trimodal.metrics.table`.
            value: in the metric's unit; 1 counts one event.
            dimensions: the metric's own dimensions, such as `Stage="tokenize"`; those of the container (model,
                precision, endpoint, variant) are added later.
        """
