"""The types that flow through the serving pipeline, each the output of one stage and the input of the next.

::

    bytes ─decode▶ Payload ─name▶ Record ─text, tabular▶ Features
          ─runner▶ probabilities ─calibrate▶ Predictions ─encode▶ bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimodal.errors import RequestError

Row = Mapping[str, object] | Sequence[object] | RequestError
"""One record as it was sent: by name, by position, or why its line cannot be read."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields of a model.

    Attributes:
        primary: name of the dialogue field.
        secondary: name of the shipment-history field.
        tabular: names of the numeric fields, in the order of the model's inputs.
        columns: names in the order of headerless rows (`feature_columns.txt`), or None when there is no such file;
            with it, each of them must be in every record.
        id_name: field that is echoed when asked for, or None.
        envelope: name of the key that may wrap a list of records (`"instances"`), or None.
    """

    primary: str
    secondary: str
    tabular: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    id_name: str | None = None
    envelope: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that the model reads."""
        return (*self.tabular, self.primary, self.secondary)


@dataclass(frozen=True, slots=True)
class Payload:
    """A decoded request body.

    Attributes:
        rows: the records as they were sent; at least one.
        header_possible: the first row may hold the column names (CSV).
    """

    rows: Sequence[Row]
    header_possible: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One record, its values by field name.

    Attributes:
        index: place in the request, counted from 0.
        values: field name to value as sent; a field that is absent or None is missing.
    """

    index: int
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One text as token ids.

    Attributes:
        chunks: one list of token ids per chunk, `[CLS]` and `[SEP]` included; at least one chunk.
        unmarked: no `[bom]…[eom]` message was found.
        cut_messages: messages that were longer than the limit and lost their rest.
        dropped_chunks: chunks beyond the limit of chunks, which are not scored.
    """

    chunks: list[list[int]]
    unmarked: bool = False
    cut_messages: int = 0
    dropped_chunks: int = 0


@dataclass(frozen=True, slots=True)
class Features:
    """One record as the model reads it.

    Attributes:
        index: place in the request, counted from 0.
        primary: the dialogue.
        secondary: the shipment history.
        tabular: float32 `[F]`, in the order of `Schema.tabular`; every value is finite.
        imputed: tabular values that were missing.
        unknown: categories that their risk table does not list.
    """

    index: int
    primary: EncodedText
    secondary: EncodedText
    tabular: FloatArray
    imputed: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answer to one request, before it is written in a media type.

    Attributes:
        raw: float32 `[N, S]`; S is 1 for a binary model (the probability of class 1), else the number of classes.
        calibrated: float32 `[N, S]`; equal to `raw` where the model has no calibrator.
        labels: most probable class of each record, counted from 0.
        ids: the echoed ids; None where a record has none.
        binary: two classes, one score.
        id_name: key under which an id is echoed, or None.
        errors: place of a record to why it could not be scored; its other values then mean nothing.
    """

    raw: FloatArray
    calibrated: FloatArray
    labels: Sequence[int]
    ids: Sequence[object]
    binary: bool
    id_name: str | None = None
    errors: Mapping[int, RequestError] = field(default_factory=dict)
