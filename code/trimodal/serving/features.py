"""Records to features: both texts and the tabular values of each record, read on their own."""

from __future__ import annotations

from dataclasses import dataclass

from trimodal.errors import InvalidRecord
from trimodal.limits import DEFAULT_LIMITS, Limits
from trimodal.records import EncodedText, Features, Record, Schema
from trimodal.serving.markup import TextError
from trimodal.serving.tabular import TabularEncoder, is_missing
from trimodal.serving.text import TextEncoder


@dataclass(frozen=True, slots=True)
class FeatureEncoder:
    """Reads records for one model.

    Attributes:
        schema: the model's fields.
        primary: reads the dialogue.
        secondary: reads the shipment history.
        tabular: reads the numeric fields.
        limits: how long a text may be.
    """

    schema: Schema
    primary: TextEncoder
    secondary: TextEncoder
    tabular: TabularEncoder
    limits: Limits = DEFAULT_LIMITS

    def encode(self, record: Record) -> Features:
        """Turns one record into features.

        Raises:
            InvalidRecord: a field holds what the model cannot read.
        """
        imputed, unknown = self.tabular.gaps(record)
        return Features(
            index=record.index,
            primary=self._text(record, self.schema.primary, self.primary),
            secondary=self._text(record, self.schema.secondary, self.secondary),
            tabular=self.tabular.encode(record),
            imputed=imputed,
            unknown=unknown,
        )

    def _text(self, record: Record, name: str, encoder: TextEncoder) -> EncodedText:
        value = record.values.get(name)
        if is_missing(value):
            value = ""
        if not isinstance(value, str | int | float):
            raise InvalidRecord(f"Record {record.index}: the field {name} is not a text.", record=record.index)
        text = str(value)
        if len(text) > self.limits.text:
            raise InvalidRecord(
                f"Record {record.index}: the field {name} has {len(text)} characters and MAX_TEXT_CHARACTERS="
                f"{self.limits.text} allows fewer; shorten it.",
                record=record.index,
            )
        try:
            return encoder.encode(text)
        except TextError as err:
            raise InvalidRecord(f"Record {record.index}: the field {name} {err}.", record=record.index) from err
