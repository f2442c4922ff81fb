"""Tabular values to float32: risk tables, imputation, and nothing that is not a finite number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from trimodal.errors import InvalidRecord
from trimodal.records import FloatArray, Record

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class RiskTable:
    """Maps a category to a number.

    Attributes:
        bins: `str(category)` to number, so that 1 and "1" are one category and 1.0 is another.
        default: the number of every other category, and of a missing one.
    """

    bins: Mapping[str, float]
    default: float


@dataclass(frozen=True, slots=True)
class TabularEncoder:
    """Reads the numeric fields of a record.

    Attributes:
        fields: the field names in the order of the model's inputs.
        imputation: field name to the value that stands in for a missing one; else 0.0.
        risk_tables: field name to its risk table.
    """

    fields: tuple[str, ...]
    imputation: Mapping[str, float]
    risk_tables: Mapping[str, RiskTable]

    def encode(self, record: Record) -> FloatArray:
        """Returns float32 `[F]`, every value finite.

        Raises:
            InvalidRecord: a value is not a number, is not finite, or does not fit into float32.
        """
        values = [self._number(record, name) for name in self.fields]
        return np.array(values, dtype=np.float32)

    def gaps(self, record: Record) -> tuple[int, int]:
        """Counts what stands for something else: missing values, and categories that no risk table lists."""
        missing = unknown = 0
        for name in self.fields:
            value = record.values.get(name)
            if is_missing(value):
                missing += 1
            elif name in self.risk_tables and str(value) not in self.risk_tables[name].bins:
                unknown += 1
        return missing, unknown

    def _number(self, record: Record, name: str) -> float:
        value = record.values.get(name)
        missing = is_missing(value)
        table = self.risk_tables.get(name)
        if table is not None:
            return table.default if missing else table.bins.get(str(value), table.default)
        if missing:
            return self.imputation.get(name, 0.0)
        number = _as_float(value)
        if number is None or not abs(number) <= _LARGEST:
            kind = "not a number" if number is None else "not a finite 32-bit number"
            raise InvalidRecord(f"Record {record.index}: the field {name} is {kind}.", record=record.index)
        return number


def is_missing(value: object) -> bool:
    """Tells a missing value: None, or the NaN that JSON and parquet writers put in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_float(value: object) -> float | None:
    """Returns the number that a value stands for, or None."""
    if not isinstance(value, int | float | str | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")
    except ValueError:
        return None
