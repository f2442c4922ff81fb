"""Rows to records: which value belongs to which field of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimodal.errors import InvalidRecord, MalformedBody, RequestError
from trimodal.limits import DEFAULT_LIMITS, Limits
from trimodal.records import Payload, Record, Row, Schema


def name_fields(
    payload: Payload,
    schema: Schema,
    errors: dict[int, RequestError] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Record]:
    """Gives each row's values their field names; names decide, position only where there are none.

    Args:
        payload: the request.
        schema: the model's fields.
        errors: takes why a record is left out, by its place; None where one such record fails its request.
        limits: what a request may hold.

    Raises:
        PayloadTooLarge: there are too many records.
        RequestError: a row has the wrong number of values, lacks a required field, or cannot be read.
        MalformedBody: a CSV header is not followed by any record.
    """
    rows = _unwrap(payload.rows, schema)
    columns = schema.columns
    if payload.header_possible and (header := _header(rows[0], schema)) is not None:
        rows, columns = rows[1:], header
        if not rows:
            raise MalformedBody("The CSV body holds a header and no record.")
    if len(rows) > limits.records:
        raise limits.too_many_records()
    records: list[Record] = []
    for index, row in enumerate(rows):
        try:
            records.append(_record(index, row, columns, schema))
        except RequestError as err:
            if errors is None:
                raise
            errors[index] = err
    return records


def _unwrap(rows: Sequence[Row], schema: Schema) -> Sequence[Row]:
    """Takes the records out of `{"instances": […]}` where the model directory asks for that."""
    first = rows[0]
    key = schema.envelope
    if key is None or key in schema.fields or len(rows) > 1 or not isinstance(first, Mapping):
        return rows
    if key not in first:
        return rows
    inner = first[key]
    if not isinstance(inner, list) or not inner:
        raise MalformedBody(f"“{key}” must be a list of at least one record.")
    for index, item in enumerate(inner):
        if not isinstance(item, dict | list):
            raise MalformedBody(f"Each record of “{key}” must be a JSON object.", record=index)
    return inner


def _header(row: Row, schema: Schema) -> tuple[str, ...] | None:
    """Returns the column names when a CSV row holds them: a field's name, and nothing that is a number."""
    if isinstance(row, Mapping | RequestError):
        return None
    cells = tuple(str(cell).strip() for cell in row if cell is not None)
    if not set(cells) & set(schema.fields) or any(_is_number(cell) for cell in cells):
        return None
    names = tuple("" if cell is None else str(cell).strip() for cell in row)
    known = schema.columns or ()  # a file that lists a field twice may be sent as it is
    repeated = {name for name in schema.fields if names.count(name) > max(1, known.count(name))}
    if repeated:
        raise MalformedBody(f"The CSV header names “{min(repeated)}” more than once.")
    return names


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _record(index: int, row: Row, columns: tuple[str, ...] | None, schema: Schema) -> Record:
    if isinstance(row, RequestError):
        raise row
    if not isinstance(row, Mapping):
        row = _by_position(index, row, columns, schema)
    required = schema.fields if schema.columns is not None else ()
    missing = [name for name in required if name not in row]
    if not missing and not any(name in row for name in schema.fields):
        missing = list(schema.fields)
    if missing:
        names = ", ".join(missing)
        raise InvalidRecord(f"Record {index} lacks the field{'s' * (len(missing) > 1)} {names}.", record=index)
    return Record(index, row)


def _by_position(
    index: int, row: Sequence[object], columns: tuple[str, ...] | None, schema: Schema
) -> Mapping[str, object]:
    if columns is None:
        raise InvalidRecord(
            f"Record {index} has values without names, and the model directory has no feature_columns.txt; "
            "send named fields or a CSV header.",
            record=index,
        )
    if len(row) != len(columns):
        own = columns is schema.columns  # else they are the request's text, which no error quotes
        expected = f"the model expects {len(columns)}: {', '.join(columns)}" if own else f"its header {len(columns)}"
        raise InvalidRecord(f"Record {index} has {len(row)} columns; {expected}.", record=index)
    return dict(zip(columns, row, strict=True))
