"""A data set of parquet and JSON-lines files: its partitions, and the records of one of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from trimodal.errors import DatasetError, MalformedBody
from trimodal.records import Row
from trimodal.serving.decode import decode
from trimodal.serving.encode import JSON_LINES
from trimodal.serving.tabular import is_missing

PARQUET = (".parquet",)
LINES = (".jsonl", ".ndjson", ".jsonlines", ".json")

MAX_PARTITION_BYTES = 64 * 1024 * 1024
"""Bytes of records that a partition holds at most: one worker's memory, however long the texts are."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Consecutive records of one file, which are scored together.

    Attributes:
        name: of the file that takes their scores.
        file: the input file, relative to the input's folder.
        first: index of the first record in its file, counted from 0.
        records: how many, at least one.
        start: JSON lines: byte at which the first record's line begins.
        stop: JSON lines: byte after the last record's line.
    """

    name: str
    file: str
    first: int
    records: int
    start: int = 0
    stop: int = 0

    @property
    def place(self) -> str:
        """Says in words where the records are."""
        return f"{self.file}, records {self.first} to {self.first + self.records - 1}"


@dataclass(frozen=True, slots=True)
class Rows:
    """The records of a partition.

    Attributes:
        values: one a record: fields by name, or why its line cannot be read.
        ids: one a record, null where it has none: of a parquet column's own type, else texts.
    """

    values: Sequence[Row]
    ids: pa.Array


def find_files(source: Path) -> tuple[Path, list[str]]:
    """Finds the files of a data set; those whose name, or folder's name, begins with `.` or `_` do not count.

    Args:
        source: a file, or a folder that is searched with all below it.

    Returns:
        The folder, and the files relative to it, sorted by name.

    Raises:
        DatasetError: there is none, or one of a kind that is not read.
    """
    if source.is_file():
        folder, names = source.parent, [source.name]
    elif source.is_dir():
        found = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
        shown = (path for path in found if not any(part.startswith((".", "_")) for part in path.parts))
        folder, names = source, sorted(path.as_posix() for path in shown)
    else:
        raise DatasetError(
            f"The input {source} does not exist; name a parquet or JSON-lines file, or a folder of them."
        )
    for name in names:
        if _suffix(name) not in (*PARQUET, *LINES):
            kinds = ", ".join((*PARQUET, *LINES))
            raise DatasetError(f"The input holds {name}, whose kind is not read; keep only files named {kinds} there.")
    if not names:
        raise DatasetError(f"The input {source} holds no file; put parquet or JSON-lines files there.")
    return folder, names


def cut(folder: Path, names: Sequence[str], rows: int) -> list[Partition]:
    """Cuts files into partitions, the same ones each time.

    Args:
        folder: where the files are.
        names: the files, relative to it.
        rows: most records of a partition; fewer where they are large.

    Raises:
        DatasetError: a file cannot be read, or there is no record.
    """
    partitions: list[Partition] = []
    for name in names:
        cutter = _cut_parquet if _suffix(name) in PARQUET else _cut_lines
        try:
            pieces = list(cutter(folder / name, rows))
        except (OSError, pa.ArrowException) as err:
            raise DatasetError(f"The input file {name} cannot be read; check that it is complete.") from err
        for first, records, start, stop in pieces:
            partitions.append(Partition(f"part-{len(partitions):06d}.parquet", name, first, records, start, stop))
    if not partitions:
        raise DatasetError("The input holds no record.")
    return partitions


def read(folder: Path, partition: Partition, fields: Collection[str], id_name: str | None) -> Rows:
    """Reads the records of a partition.

    Args:
        folder: where the input files are.
        partition: which records.
        fields: columns that the model reads; a parquet file's others are not read.
        id_name: field whose values are the ids, or None.

    Raises:
        DatasetError: the file cannot be read, or has changed since it was cut.
    """
    path = folder / partition.file
    try:
        if _suffix(partition.file) in PARQUET:
            rows = _read_parquet(path, partition, fields, id_name)
        else:
            rows = _read_lines(path, partition, id_name)
    except (OSError, pa.ArrowException) as err:
        raise DatasetError(f"The input file {partition.file} cannot be read.") from err
    if len(rows.values) != partition.records:
        raise DatasetError(f"The input file {partition.file} has changed while it was scored.")
    return rows


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  names, not paths


def _cut_parquet(path: Path, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields first record and records of each partition."""
    with parquet.ParquetFile(path) as file:
        total = file.metadata.num_rows
        size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups))
    if total:
        rows = max(1, min(rows, MAX_PARTITION_BYTES * total // max(1, size)))
    for first in range(0, total, rows):
        yield first, min(rows, total - first), 0, 0


def _cut_lines(path: Path, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields first record, records, first byte and byte after the last of each partition; blank lines are no record."""
    first = records = start = position = 0
    with path.open("rb") as file:
        for line in file:
            if records and (records == rows or position + len(line) - start > MAX_PARTITION_BYTES):
                yield first, records, start, position
                first, records, start = first + records, 0, position
            position += len(line)
            if stripped := line.strip():
                if not first and not records and stripped.removeprefix(b"\xef\xbb\xbf").startswith(b"["):
                    raise DatasetError(f"The input file {path.name} holds a JSON list; write one JSON object a line.")
                records += 1
    if records:
        yield first, records, start, position


def _read_parquet(path: Path, partition: Partition, fields: Collection[str], id_name: str | None) -> Rows:
    with parquet.ParquetFile(path, memory_map=True) as file:
        columns = [name for name in file.schema_arrow.names if name in fields or name == id_name]
        if not columns:
            return Rows([{}] * partition.records, pa.nulls(partition.records, pa.string()))
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        table = pa.Table.from_batches(_batches(file, partition, columns), schema)
    values: list[Mapping[str, object]] = table.to_pylist()
    ids = table.column(id_name).combine_chunks() if id_name in columns else pa.nulls(len(values), pa.string())
    return Rows(values, ids)


def _batches(file: parquet.ParquetFile, partition: Partition, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields the partition's rows; those before them in their row group are decoded and thrown away."""
    before, groups, skip = 0, [], partition.first
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if before + count <= partition.first:
            skip -= count
        elif before < partition.first + partition.records:
            groups.append(group)
        before += count
    wanted = partition.records
    for batch in file.iter_batches(partition.records, row_groups=groups, columns=columns, use_threads=False):
        part = batch.slice(min(skip, len(batch)), wanted)
        skip, wanted = max(0, skip - len(batch)), wanted - len(part)
        yield part
        if not wanted:
            return


def _read_lines(path: Path, partition: Partition, id_name: str | None) -> Rows:
    with path.open("rb") as file:
        file.seek(partition.start)
        body = file.read(partition.stop - partition.start)
    values = [_line(line) for line in body.split(b"\n") if line.strip()]
    ids = [row.get(id_name) if isinstance(row, Mapping) and id_name is not None else None for row in values]
    return Rows(values, pa.array([_text(value) for value in ids], pa.string()))


def _line(line: bytes) -> Row:
    """Reads one record as the service reads a body of one line."""
    try:
        return decode(line, JSON_LINES, report=True).rows[0]
    except MalformedBody as err:
        return err


def _text(identity: object) -> str | None:
    """Returns an id as a text that can be written, or None where it is missing."""
    return None if is_missing(identity) else str(identity).encode(errors="replace").decode()
