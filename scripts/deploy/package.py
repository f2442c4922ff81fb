"""Packs a model directory as SageMaker wants it: one `model.tar.gz` with the files at its top.

The same directory gives the same bytes, whoever packs it and when, so that the archive's hash names its content.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from deploy.errors import DeployError

LEFT_OUT = ("__pycache__",)
NEEDED = ("model.onnx", "model.pth")


def build(directory: Path, out: Path, *, prepared: bool) -> str:
    """Packs a model directory, optimized first if asked.

    Args:
        directory: the model directory; it is not changed.
        out: the archive to write.
        prepared: whether to optimize a copy with `trimodal prepare` and to pack that.

    Returns:
        SHA-256 of the archive.

    Raises:
        DeployError: the directory cannot be optimized or packed.
    """
    if not prepared:
        return pack(directory, out)
    with tempfile.TemporaryDirectory(prefix="deploy-") as folder:
        copy = Path(folder, "model")
        command = [sys.executable, "-m", "trimodal.cli", "prepare", str(directory), "--out", str(copy)]
        if subprocess.run(command, check=False).returncode != 0:
            raise DeployError(f"`trimodal prepare {directory}` failed; see above, or pack it without --prepare.")
        return pack(copy, out)


def pack(directory: Path, out: Path) -> str:
    """Writes the archive under another name and renames it when it is whole.

    Args:
        directory: the model directory.
        out: the archive to write.

    Returns:
        SHA-256 of the archive.

    Raises:
        DeployError: it is no model directory, holds a link that leads out of it or something that is not a file, or
            cannot be read or written.
    """
    if not any((directory / name).is_file() for name in NEEDED):
        raise DeployError(f"{directory} holds neither {' nor '.join(NEEDED)}; name a model directory.")
    if out.resolve().is_relative_to(directory.resolve()):
        raise DeployError(f"{out} would lie in what it packs; name a file outside of {directory} with --out.")
    files = sorted(model_files(directory))
    partial = out.with_name(f"{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(files, partial)
        partial.replace(out)
    except OSError as err:
        raise DeployError(f"{out} cannot be written: {err.strerror}; check space and permissions.") from err
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return digest(out)


def model_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yields name in the archive and real path of each file; hidden files and bytecode stay out.

    Raises:
        DeployError: a link leads out of the directory or nowhere, or something is not a file.
    """
    root = directory.resolve()
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in LEFT_OUT]
        for name in (name for name in [*folders, *names] if not name.startswith(".")):
            path = Path(folder, name)
            shown = path.relative_to(directory).as_posix()
            if path.is_symlink():
                _check_link(path, shown, root)
            if name in folders:
                continue
            if not path.is_file():
                raise DeployError(f"{shown} is not a file; remove it from {directory}.")
            yield shown, path.resolve()


def _check_link(path: Path, shown: str, root: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(root):
        raise DeployError(f"{shown} is a link that leads out of the model directory; put a copy in its place.")
    if path.is_dir() or not target.exists():
        raise DeployError(f"{shown} is a link to a folder or to nothing; put a copy in its place.")


def _write(files: list[tuple[str, Path]], out: Path) -> None:
    with (
        out.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, path in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)


def digest(path: Path) -> str:
    """Returns a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
