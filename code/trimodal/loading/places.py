"""Where optimized models are kept."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from trimodal.loading.cache import CacheError
from trimodal.settings import Settings

logger = logging.getLogger(__name__)


def choose_root(settings: Settings, need: int) -> Path:
    """Chooses where optimized models are kept, and makes the directory.

    `OPTIMIZED_MODEL_DIR` when set; else beside the model, where it lasts as long as the model; else this user's own
    directory among the temporary files.

    Args:
        settings: the container's settings.
        need: bytes that will be written.

    Raises:
        CacheError: there is no place that can be written and is large enough; the text says what to do.
    """
    if settings.optimized_dir is not None:
        return _place(settings.optimized_dir, need, f"OPTIMIZED_MODEL_DIR={settings.optimized_dir}")
    if settings.model_dir.is_dir():
        try:
            return _place(settings.model_dir / "optimized", need, "The model directory")
        except CacheError as err:  # it is often mounted read-only
            logger.info("optimized models are not kept beside the model: %s", err)
    return _place(temporary_root(), need, "The directory for temporary files", private=True)


def temporary_root() -> Path:
    """Returns this user's own directory among the temporary files, which need not be there.

    Raises:
        CacheError: there is no directory for temporary files.
    """
    try:
        return Path(tempfile.gettempdir()) / f"trimodal-cache-{os.geteuid()}"
    except FileNotFoundError as err:
        raise CacheError("There is no directory for temporary files; set OPTIMIZED_MODEL_DIR.") from err


def _place(folder: Path, need: int, name: str, *, private: bool = False) -> Path:
    """Returns a folder that has been written to and has room.

    Raises:
        CacheError: there is none; the text begins with the name.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if shutil.disk_usage(existing).free < need:
            megabytes = -(-need // 1_000_000)
            raise CacheError(
                f"{name} needs {megabytes} MB of free space; mount a larger volume or set OPTIMIZED_MODEL_DIR."
            )
        folder.mkdir(mode=0o700 if private else 0o777, parents=not private, exist_ok=True)
        if private and not _own(folder):
            raise CacheError(f"{name} holds another user's {folder.name}; remove it or set OPTIMIZED_MODEL_DIR.")
        with tempfile.TemporaryFile(dir=folder):  # permission bits say little to root or of a read-only mount
            return folder
    except OSError as err:
        raise CacheError(f"{name} is not writable; mount it writable or set OPTIMIZED_MODEL_DIR.") from err


def _own(folder: Path) -> bool:
    """Tells whether nobody else can have put anything into a folder: among temporary files names can be guessed."""
    facts = folder.lstat()
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
