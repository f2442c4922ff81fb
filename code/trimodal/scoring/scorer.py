"""Scores one partition: its records to a table of ids, scores and errors, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pyarrow import parquet

from trimodal import __version__
from trimodal.errors import DatasetError, InferenceFailed, TrimodalError
from trimodal.loading.entries import sync
from trimodal.loading.load import load_pipeline
from trimodal.records import Payload, Predictions, Row
from trimodal.scoring.dataset import Partition, Rows, read
from trimodal.serving.encode import ResponseFormat, to_objects
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

FILE, RECORD, ERROR = "file", "record", "error"
"""Columns beside the scores: the input file, the record's index in it counted from 0, why it has no scores."""

_FORM = ResponseFormat(numbers=True, label=True)
_MOST_WITHOUT_SCORE = 10
"""Records of a partition for which the model may give no finite score; more, and the model is at fault."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a partition.

    Attributes:
        place: in words, where its records are.
        records: how many it holds; 0 where it failed.
        seconds: how long it took.
        errors: how many of them have an error in the place of scores.
        error: the first of these errors, with its file, or None.
        failure: why nothing was written, or None.
    """

    place: str
    records: int = 0
    seconds: float = 0.0
    errors: int = 0
    error: str | None = None
    failure: str | None = None


class Scorer:
    """A loaded model that scores partitions, one after another.

    Attributes:
        pipeline: the model; answers an error in the place of a record that cannot be scored.
        folder: where the input files are.
        out: where the output files go.
        run: name of this run; no other has the same.
    """

    def __init__(self, pipeline: Pipeline, folder: Path, out: Path, run: str) -> None:
        schema = replace(pipeline.schema, envelope=None)  # a file holds records, never a request
        self.pipeline = replace(pipeline, schema=schema, report_errors=True)
        self.folder = folder
        self.out = out
        self.run = run

    @classmethod
    def load(cls, settings: Settings, folder: Path, out: Path, run: str, level: int) -> Scorer:
        """Loads the model.

        Args:
            settings: the container's settings; `run_dir` holds what the cold start chose.
            folder: where the input files are.
            out: where the output files go.
            run: name of this run.
            level: of the ladder at which the model must be served, so that all processes give the same scores.

        Raises:
            ArtifactError: the model cannot be loaded.
            DatasetError: it can be loaded at another level only.
        """
        pipeline = load_pipeline(settings)
        if pipeline.status["level"] != level:
            causes = "; ".join(f"{name}: {cause}" for name, cause in pipeline.status["causes"].items())
            raise DatasetError(f"A process could not load the model as the others do: {causes}.")
        return cls(pipeline, folder, out, run)

    def score(self, partition: Partition) -> Outcome:
        """Scores a partition and writes its output; whatever goes wrong stands in the outcome."""
        try:
            with draft(self.out, partition.name, self.run) as file:
                return self._score(partition, file)
        except TrimodalError as err:
            return Outcome(partition.place, failure=str(err))
        except OSError as err:
            return Outcome(partition.place, failure=f"Its output cannot be written: {err.strerror}.")
        except Exception as err:
            logger.exception("a partition failed")
            return Outcome(partition.place, failure=f"{type(err).__name__} in our own code.")

    def _score(self, partition: Partition, file: IO[bytes]) -> Outcome:
        started = time.perf_counter()
        schema = self.pipeline.schema
        rows = read(self.folder, partition, schema.fields, schema.id_name)
        predictions = self._predict(rows.values)
        errors = {
            place: _placed(str(err), partition.first + place) for place, err in sorted(predictions.errors.items())
        }
        table = to_table(partition, rows, predictions, errors)
        status = {key: self.pipeline.status.get(key) for key in ("level", "rung", "precision", "engine")}
        made_by = json.dumps({"version": __version__, **status})
        parquet.write_table(table.replace_schema_metadata({"trimodal": made_by}), file)
        first = next((f"{partition.file}: {error}" for error in errors.values()), None)
        return Outcome(partition.place, partition.records, time.perf_counter() - started, len(errors), first)

    def _predict(self, values: Sequence[Row]) -> Predictions:
        """Scores records; one for which the model gives no finite score costs itself.

        Raises:
            InferenceFailed: the model fails.
        """
        rows = list(values)
        for _ in range(_MOST_WITHOUT_SCORE):
            try:
                return self.pipeline.predict(Payload(rows))
            except InferenceFailed as err:
                if err.record is None:
                    raise
                rows[err.record] = err
        raise InferenceFailed("The model gives no finite scores.")


@contextlib.contextmanager
def draft(out: Path, name: str, run: str) -> Iterator[IO[bytes]]:
    """Opens an output file under another name, and renames it when it is written whole.

    Raises:
        DatasetError: this run has begun the file before, and the process that did has died.
        OSError: it cannot be written.
    """
    path = out / f".{name}.{run}.draft"
    try:
        file = path.open("xb")
    except FileExistsError as err:
        raise DatasetError(
            "The process that scored it died, perhaps for lack of memory; try fewer --workers or --partition-rows."
        ) from err
    try:
        with file:
            yield file
        sync(path)
        path.rename(out / name)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def to_table(partition: Partition, rows: Rows, predictions: Predictions, errors: Mapping[int, str]) -> pa.Table:
    """Returns the output: one row a record, in the order of the input.

    Args:
        partition: the records' place in the data set.
        rows: the records.
        predictions: their scores.
        errors: place of a record in the partition to why it has no scores.
    """
    objects = to_objects(replace(predictions, errors={}), _FORM)
    columns: dict[str, Any] = {
        FILE: pa.array([partition.file] * len(objects), pa.string()),
        RECORD: pa.array(range(partition.first, partition.first + len(objects)), pa.int64()),
    }
    if predictions.id_name is not None:
        columns[predictions.id_name] = rows.ids
    for name, value in objects[0].items():
        scores = [None if place in errors else row[name] for place, row in enumerate(objects)]
        columns[name] = pa.array(scores, pa.string() if isinstance(value, str) else pa.float64())
    columns[ERROR] = pa.array([errors.get(place) for place in range(len(objects))], pa.string())
    return pa.table(columns)


def _placed(message: str, record: int) -> str:
    """Returns an error's message with the record's index in its file, in the place of that in its request."""
    return re.sub(r"\b(?:Line|(Record|record)) \d+\b", lambda m: f"{m[1] or 'Record'} {record}", message, count=1)
