"""Reads a model directory: every file but the graph, each checked, each complaint naming the file and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimodal.errors import ArtifactError
from trimodal.loading.calibration import read_calibrator
from trimodal.loading.config import ModelConfig, read_config
from trimodal.loading.directory import check_directory
from trimodal.loading.files import finite, read_value
from trimodal.records import Schema
from trimodal.serving.calibrate import Calibrator
from trimodal.serving.tabular import RiskTable

_MOST_COLUMNS = 100_000


@dataclass(frozen=True, slots=True)
class Artifacts:
    """A model directory, read.

    Attributes:
        model_dir: the directory.
        config: what `hyperparameters.json` and `model_artifacts.pth` say.
        schema: the model's fields.
        imputation: field name to the value of a missing one.
        risk_tables: field name to its risk table.
        calibrator: the calibration tables.
        exported: an export of `model.pth` that stands in for a missing `model.onnx`, or None.
    """

    model_dir: Path
    config: ModelConfig
    schema: Schema
    imputation: Mapping[str, float]
    risk_tables: Mapping[str, RiskTable]
    calibrator: Calibrator
    exported: Path | None = None

    @property
    def graph(self) -> Path:
        """The FP32 export."""
        return self.exported or self.model_dir / "model.onnx"

    @property
    def state_dict(self) -> Path:
        """The PyTorch weights."""
        return self.model_dir / "model.pth"

    @property
    def has_graph(self) -> bool:
        """Whether there is an FP32 export."""
        return self.graph.is_file()

    @property
    def has_state_dict(self) -> bool:
        """Whether there are PyTorch weights."""
        return self.state_dict.is_file()


def read_artifacts(model_dir: Path) -> Artifacts:
    """Reads a model directory.

    Raises:
        ArtifactError: a file is missing, unreadable, contradictory or malicious.
    """
    check_directory(model_dir)
    if not (model_dir / "model.onnx").is_file() and not (model_dir / "model.pth").is_file():
        raise ArtifactError(
            "model.onnx is missing from the model directory, and so is model.pth; export the model to ONNX and add it."
        )
    config = read_config(model_dir)
    schema = Schema(
        primary=config.primary,
        secondary=config.secondary,
        tabular=config.tabular,
        columns=_read_columns(model_dir, config),
        id_name=config.id_name,
        envelope=config.envelope,
    )
    return Artifacts(
        model_dir=model_dir,
        config=config,
        schema=schema,
        imputation=_read_imputation(model_dir),
        risk_tables=_read_risk_tables(model_dir),
        calibrator=read_calibrator(model_dir, config),
    )


def _read_columns(model_dir: Path, config: ModelConfig) -> tuple[str, ...] | None:
    """Reads the order of headerless columns: `index,name` lines, `#` for comments."""
    path = model_dir / "feature_columns.txt"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactError("feature_columns.txt is not readable as UTF-8 text.") from err
    names: list[str] = []
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        index, comma, name = line.partition(",")
        if not comma or not name.strip() or index.strip() != str(len(names)):
            raise ArtifactError(
                f"feature_columns.txt: expected “{len(names)},<name>” as line {len(names)} of the columns; "
                "number them from 0 without gaps."
            )
        names.append(name.strip())
        if len(names) > _MOST_COLUMNS:
            raise ArtifactError(f"feature_columns.txt lists more than {_MOST_COLUMNS} columns; list the model's.")
    known = set(names)
    missing = [name for name in (*config.tabular, config.primary, config.secondary) if name not in known]
    if missing:
        raise ArtifactError(
            f"feature_columns.txt lacks {', '.join(missing)}, which hyperparameters.json names as input; "
            "add the column or delete the file."
        )
    return tuple(names)


def _read_imputation(model_dir: Path) -> dict[str, float]:
    found = read_value(model_dir, "impute_dict")
    if found is None:
        return {}
    value, name = found
    numbers = _numbers(value)
    if numbers is None:
        raise ArtifactError(f"{name} must map field names to finite numbers.")
    return numbers


def _read_risk_tables(model_dir: Path) -> dict[str, RiskTable]:
    found = read_value(model_dir, "risk_table_map")
    if found is None:
        return {}
    value, name = found
    if not isinstance(value, dict):
        raise ArtifactError(f"{name} must map field names to risk tables.")
    return {str(field): _risk_table(table, str(field), name) for field, table in value.items()}


def _risk_table(table: object, field: str, name: str) -> RiskTable:
    bins = _numbers(table.get("bins")) if isinstance(table, dict) else None
    default = finite(table.get("default_bin")) if isinstance(table, dict) else None
    if bins is None or default is None:
        raise ArtifactError(f"{name}: the risk table of {field} must hold numbers as “bins” and “default_bin”.")
    return RiskTable(bins, default)


def _numbers(value: object) -> dict[str, float] | None:
    """Returns a dict of finite numbers with its keys as text, or None for anything else."""
    if not isinstance(value, dict):
        return None
    numbers = {str(key): finite(number) for key, number in value.items()}
    return (
        {key: number for key, number in numbers.items() if number is not None} if None not in numbers.values() else None
    )
