"""Reads the calibration tables of a model directory."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from trimodal.errors import ArtifactError
from trimodal.loading.config import ModelConfig
from trimodal.loading.files import read_value
from trimodal.serving.calibrate import Calibrator, Table

logger = logging.getLogger(__name__)

_CLASS_PREFIX = "calibration_model_class_"


def read_calibrator(model_dir: Path, config: ModelConfig) -> Calibrator:
    """Reads `calibration/`: the percentile table wins over the binary one, and that over per-class ones.

    Raises:
        ArtifactError: a table cannot be read, is not a table, or belongs to no class.
    """
    folder = model_dir / "calibration"
    for stem in ("percentile_score", "calibration_model"):
        value, name = read_value(folder, stem)
        if value is None:
            continue
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
        value, name = read_value(folder, stem)
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
    try:
        table = tuple((float(raw), float(calibrated)) for raw, calibrated in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as err:
        raise ArtifactError(f"{where} must be a list of [raw, calibrated] pairs of numbers.") from err
    if not table or not all(math.isfinite(number) for pair in table for number in pair):
        raise ArtifactError(f"{where} must hold at least one pair, and finite numbers only.")
    return table
