"""Values of a model directory that stand in a JSON file, or in an older pickle of the same name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trimodal.errors import ArtifactError
from trimodal.loading.pickles import load_pickle


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ArtifactError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise ArtifactError(f"{path.name} is not readable as UTF-8 text.") from err
    except (ValueError, RecursionError) as err:
        raise ArtifactError(f"{path.name} is not valid JSON; write it again.") from err


def read_value(folder: Path, stem: str) -> tuple[Any, str]:
    """Reads `{stem}.json`, else `{stem}.pkl`.

    Returns:
        The value (None when there is no such file) and the file's name.

    Raises:
        ArtifactError: the file cannot be read.
    """
    path = folder / f"{stem}.json"
    if path.is_file():
        return read_json(path), path.name
    path = folder / f"{stem}.pkl"
    if path.is_file():
        return load_pickle(path), path.name
    return None, path.name
