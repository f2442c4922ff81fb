"""Values of a model directory that stand in a JSON file, or in an older pickle of the same name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from trimodal.errors import ArtifactError
from trimodal.loading.pickles import load_pickle

_MOST_CONTAINERS = 1_000_000
"""Two bytes make a list, which takes ninety in memory."""

_LARGEST = float(np.finfo(np.float32).max)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ArtifactError: the file cannot be read or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.count("[") + text.count("{") > _MOST_CONTAINERS:
            raise ArtifactError(
                f"{path.name} holds more than {_MOST_CONTAINERS} lists and objects; check how it was made."
            )
        return json.loads(text)
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactError(f"{path.name} is not readable as UTF-8 text; write it again.") from err
    except (ValueError, RecursionError) as err:
        raise ArtifactError(f"{path.name} is not valid JSON; write it again.") from err


def read_value(folder: Path, stem: str) -> tuple[Any, str] | None:
    """Reads `{stem}.json`, else `{stem}.pkl`.

    Returns:
        The value and the file's name; None when there is no such file.

    Raises:
        ArtifactError: the file cannot be read.
    """
    for suffix, read in ((".json", read_json), (".pkl", load_pickle)):
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return read(path), path.name
    return None


def finite(value: object) -> float | None:
    """Returns a number that is finite in 32 bits, as scores and inputs are, or None for anything else."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if abs(number) <= _LARGEST else None
