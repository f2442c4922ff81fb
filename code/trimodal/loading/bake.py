"""Does the cold start ahead of time: writes a model directory that holds its optimized model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from trimodal.errors import ArtifactError
from trimodal.loading.directory import check_directory
from trimodal.loading.hardware import thread_count
from trimodal.loading.prepare import prepare
from trimodal.loading.selection import Selection
from trimodal.settings import Settings


def bake(settings: Settings, out: Path | None) -> Selection:
    """Optimizes a model directory.

    The result is used by a container whose hardware, libraries and settings are those of this host: prepare on the
    kind of machine that will serve.

    Args:
        settings: the container's settings.
        out: a directory to copy the model to first, or None to write into the model directory itself.

    Raises:
        ArtifactError: the directory cannot be written, or `STRICT_OPTIMIZATION=true` and something is lost.
    """
    model_dir = settings.model_dir
    if out is not None:
        if out.exists():
            raise ArtifactError(f"{out} is there already; name a new directory.")
        check_directory(model_dir)  # the copy follows links
        try:
            shutil.copytree(model_dir, out, ignore=shutil.ignore_patterns("optimized", ".*"))
        except (OSError, shutil.Error) as err:
            raise ArtifactError(f"The model directory cannot be copied to {out}; check space and permissions.") from err
        model_dir = out
    settings = replace(settings, model_dir=model_dir, optimized_dir=model_dir / "optimized")
    selection = prepare(settings, thread_count(settings))
    for lock in (model_dir / "optimized").glob("*.lock"):
        lock.unlink(missing_ok=True)
    return selection
