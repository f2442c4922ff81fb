"""What one request may hold, beside its bytes, so that a small body cannot take much memory or time."""

from __future__ import annotations

from dataclasses import dataclass

from trimodal.errors import PayloadTooLarge


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request.

    Attributes:
        records: most records (`MAX_RECORDS`).
        depth: most lists and objects within each other (`MAX_JSON_DEPTH`).
        text: most characters of one text (`MAX_TEXT_CHARACTERS`).
    """

    records: int = 100_000
    depth: int = 32
    text: int = 200_000

    @property
    def values(self) -> int:
        """Most values of all records together: each takes up to 90 bytes of memory, and as little as two of a body."""
        return max(100_000, 20 * self.records)

    def too_many_records(self) -> PayloadTooLarge:
        """Returns the error of a request with too many records."""
        return PayloadTooLarge(f"The body holds more than MAX_RECORDS={self.records} records; send fewer at a time.")

    def too_many_values(self) -> PayloadTooLarge:
        """Returns the error of a request with too many values."""
        return PayloadTooLarge(
            f"The body holds more than {self.values} values; send fewer columns or records, or raise MAX_RECORDS."
        )


DEFAULT_LIMITS = Limits()
