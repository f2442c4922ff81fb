"""Reads the calibration tables of a model directory."""

from __future__ import annotations

import logging
from pathlib import Path

from trimodal.errors import ArtifactError
from trimodal.loading.config import ModelConfig
from trimodal.loading.files import finite, read_value
from trimodal.serving.calibrate import Calibrator, Table

logger = logging.getLogger(__name__)

_MOST_PAIRS = 100_000
_CLASS_PREFIX = "calibration_model_class_"


def read_calibrator(model_dir: Path, config: ModelConfig) -> Calibrator:
    """Reads `calibration/`: the percentile table wins over the binary one, and that over per-class ones.

    Raises:
        ArtifactError: a table cannot be read, is not a table, or belongs to no class.
    """
    folder = model_dir / "calibration"
    for stem in ("percentile_score", "calibration_model"):
        found = read_value(folder, stem)
        if found is None:
            continue
        value, name = found
        if config.num_classes == 2:
            return Calibrator(binary=_table(value, f"calibration/{name}"))
        logger.warning("calibration/%s is for two classes and the model has %d: ignored", name, config.num_classes)
    return Calibrator(classes=_class_tables(folder / "calibration_models", config))


def _class_tables(folder: Path, config: ModelConfig) -> dict[int, Table]:
    """Reads one table per class, its file named by the class's index or label; an index wins."""
    tables: dict[int, Table] = {}
    stems = {path.stem for path in folder.glob(f"{_CLASS_PREFIX}*") if path.suffix in (".json", ".pkl")}
    for stem in sorted(stems):
        suffix = stem.removeprefix(_CLASS_PREFIX)
        found = read_value(folder, stem)
        if found is None:  # a directory of that name
            continue
        value, name = found
        where = f"calibration/calibration_models/{name}"
        table = _table(value, where)
        if suffix.isdecimal() and int(suffix) < config.num_classes:
            tables[int(suffix)] = table
        elif suffix in config.categories:
            tables.setdefault(config.categories.index(suffix), table)
        else:
            raise ArtifactError(
                f"{where} names no class; name it by an index from 0 to {config.num_classes - 1} or by a label of "
                "multiclass_categories."
            )
    return tables


def _table(value: object, where: str) -> Table:
    rows = value if isinstance(value, list | tuple) else []
    table: list[tuple[float, float]] = []
    for row in rows:
        numbers = [finite(number) for number in row] if isinstance(row, list | tuple) else []
        if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
            raise ArtifactError(f"{where} must be a list of [raw, calibrated] pairs of finite numbers.")
        table.append((numbers[0], numbers[1]))
    if len(table) > _MOST_PAIRS:
        raise ArtifactError(
            f"{where} has more than {_MOST_PAIRS} pairs; every score is looked up in them, so use fewer."
        )
    if not table:
        raise ArtifactError(f"{where} must be a list of at least one [raw, calibrated] pair.")
    return tuple(table)
