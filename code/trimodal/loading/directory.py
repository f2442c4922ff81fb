"""Looks at a model directory before any of its files is opened: whoever made it may be a stranger.

What stands in the files is looked at by whoever reads them. `code/` is left out: it is run, so it is trusted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from trimodal.errors import ArtifactError
from trimodal.loading.hardware import detect, no_gpu

MIB = 1024 * 1024

MOST_FILES = 10_000
MOST_BYTES = {".json": 16 * MIB, ".txt": 16 * MIB, ".pkl": 16 * MIB, ".md": 16 * MIB, ".jsonl": 64 * MIB}
"""Largest file of a kind that is read into memory whole; what it becomes there is up to 30 times as large."""

TOKENIZER_BYTES = 32 * MIB
"""Largest tokenizer.json; those of BERT have 1 MB."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def check_directory(model_dir: Path) -> None:
    """Checks that a model directory holds plain files of sizes that can be read, and nothing outside of it.

    Raises:
        ArtifactError: it does not exist, or something in it is a link that leads out, a pipe, a device, or too large.
    """
    if not model_dir.is_dir():
        raise ArtifactError(f"The model directory {model_dir} does not exist; mount or unpack the model there.")
    root = model_dir.resolve()
    memory = detect(gpu=no_gpu).memory
    for count, path in enumerate(_entries(model_dir), start=1):
        name = path.relative_to(model_dir).as_posix()
        if count > MOST_FILES:
            raise ArtifactError(f"The model directory holds more than {MOST_FILES} files; leave out what is no model.")
        if path.is_symlink() and not _leads_inside(path, root):
            raise ArtifactError(
                f"{name} is a link that leads out of the model directory, or nowhere; put a copy there."
            )
        if not path.is_dir():
            check_file(path, name, memory)


def check_file(path: Path, name: str, memory: int | None = None) -> None:
    """Checks that a file is one, and not larger than what may be read.

    Args:
        path: the file.
        name: how to name it.
        memory: bytes of the largest file of a kind without a limit of its own; None for any.

    Raises:
        ArtifactError: it is none, or too large.
    """
    try:
        facts = path.stat()
    except FileNotFoundError:
        return  # another container that starts has tidied up below `optimized/`
    except OSError as err:
        raise ArtifactError(f"{name} cannot be read; check its permissions.") from err
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "something else")
        raise ArtifactError(f"{name} is {kind} and not a file; remove it, or put the file in its place.")
    most = TOKENIZER_BYTES if path.name == "tokenizer.json" else MOST_BYTES.get(path.suffix, memory)
    if most is not None and facts.st_size > most:
        whose = "this container has memory" if most == memory else "such a file may have"
        raise ArtifactError(
            f"{name} has {facts.st_size // MIB} MB, more than {whose} ({most // MIB} MB); check how it was made."
        )


def _entries(model_dir: Path) -> Iterator[Path]:
    """Yields everything below a model directory but its `code/`; links to directories are not followed."""
    for folder, folders, names in os.walk(model_dir):
        if Path(folder) == model_dir and "code" in folders:
            folders.remove("code")
        yield from (Path(folder, name) for name in (*folders, *names))


def _leads_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # nowhere, or in a circle
        return False
