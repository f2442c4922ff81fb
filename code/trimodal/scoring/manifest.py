"""What an output folder was begun with, and which of its partitions are done: so that a run can be taken up again.

::

    OUTPUT_DIR/_manifest.json        model, input and partitions; written first, never changed
    OUTPUT_DIR/part-000000.parquet   one partition's scores; appears by one rename, whole
    OUTPUT_DIR/.part-….draft         one that is being written, or was when its run was killed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from trimodal.errors import DatasetError, OptimizationError
from trimodal.loading.cache import hash_files
from trimodal.loading.entries import sync
from trimodal.scoring.dataset import Partition

FORMAT = 1
"""Version of the output's form; another one is not mixed with it."""

NAME = "_manifest.json"
LOCK = ".lock"

Manifest = Mapping[str, Any]

_PARTS = {
    "format": "by another version of this command",
    "model": "with another model",
    "precision": "with the model in another precision",
    "input": "with another input",
    "rows": "with another --partition-rows",
}
"""Key of a manifest to what a difference there means, the most telling first."""


def describe(model_dir: Path, precision: str, folder: Path, names: Sequence[str], rows: int) -> Manifest:
    """Returns the manifest of a run.

    Args:
        model_dir: the model directory; every file in it counts, but for what a cold start keeps there.
        precision: in which the model is served.
        folder: where the input files are.
        names: the input files, relative to it.
        rows: most records of a partition.

    Raises:
        DatasetError: a file cannot be read.
    """
    kept = model_dir / "optimized"
    files = [path for path in model_dir.rglob("*") if path.is_file() and not path.is_relative_to(kept)]
    try:
        return {
            "format": FORMAT,
            "model": hash_files(files),
            "precision": precision,
            "input": {name: hash_files([folder / name]) for name in names},
            "rows": rows,
        }
    except OptimizationError as err:
        raise DatasetError(f"A file of the model or of the input is not readable: {err}") from err


def begin(out: Path, manifest: Manifest) -> None:
    """Writes the manifest into a new output folder, or checks that of one that was begun.

    Raises:
        DatasetError: the folder holds other things, or was begun with another model or input.
    """
    path = out / NAME
    if not path.exists():
        if any(child.name != LOCK and not child.name.startswith(f".{NAME}") for child in out.iterdir()):
            raise DatasetError(f"The output folder {out} holds other files; name a new or an empty one.")
        draft = out / f".{NAME}.draft"
        draft.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync(draft)
        draft.rename(path)
        return
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DatasetError(f"{path} is not readable; name a new output folder.") from err
    for key, difference in _PARTS.items():
        if begun.get(key) != manifest[key]:
            named = _difference(begun.get(key), manifest[key])
            raise DatasetError(f"The output folder {out} was begun {difference}{named}; name a new one, or delete it.")


def _difference(begun: object, now: object) -> str:
    """Names an input file that was added, removed or changed."""
    if not isinstance(begun, Mapping) or not isinstance(now, Mapping):
        return ""
    names = [name for name in sorted({*begun, *now}) if begun.get(name) != now.get(name)]
    return f" ({names[0]})" if len(names) == 1 else f" ({names[0]} and {len(names) - 1} more)"


def remaining(out: Path, partitions: Sequence[Partition]) -> list[Partition]:
    """Returns the partitions that are not done, and removes what killed runs left half written."""
    for path in out.glob(".part-*.draft"):
        path.unlink(missing_ok=True)
    return [partition for partition in partitions if not _done(out / partition.name, partition)]


def _done(path: Path, partition: Partition) -> bool:
    try:
        return int(parquet.read_metadata(path).num_rows) == partition.records
    except (OSError, pa.ArrowException):
        return False
