"""One entry of the store of optimized models: plain files in a folder, and a manifest that lists each with its hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

MANIFEST = "manifest.json"

_MANIFEST_BYTES = 16 * 1024 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in a file's place must not block
_NOT_THAT_FILE = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG))

SEGMENT = 64 * 1024 * 1024
"""Bytes that one thread hashes at a time."""

_BLOCK = 1024 * 1024

T = TypeVar("T")
R = TypeVar("R")


class Damaged(Exception):
    """An entry is not what its manifest says, or cannot become an entry; the text says why."""


def verify(folder: int, key: str) -> None:
    """Checks every file of an open folder.

    Args:
        folder: its descriptor: all is read below it, whatever happens to its name meanwhile.
        key: of the entry.

    Raises:
        Damaged: the folder is not what its manifest says.
        OSError: that cannot be found out.
    """
    if not stat.S_ISDIR(os.fstat(folder).st_mode):
        raise Damaged("it is not a folder")
    files = _listed(folder, key)

    def check(item: tuple[str, object]) -> None:
        name, expected = item
        with _opened(folder, name) as descriptor:
            size, digest = measure(descriptor)
        if expected != {"size": size, "sha256": digest}:
            raise Damaged(f"{name[:100]!r} has changed")

    parallel(check, list(files.items()))


def _listed(folder: int, key: str) -> dict[str, object]:
    """Returns what the manifest says of each file."""
    with _opened(folder, MANIFEST) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
        content = file.read(_MANIFEST_BYTES)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise Damaged(f"{MANIFEST} is not valid JSON") from err
    if not isinstance(manifest, dict) or manifest.get("key") != key:
        raise Damaged(f"{MANIFEST} is another key's")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise Damaged(f"{MANIFEST} lists no files")
    for name in files:
        if not _plain(name):
            raise Damaged(f"{MANIFEST} lists {name[:100]!r}, which is not a plain name")
    return files


def complete(draft: Path, key: str, manifest: Mapping[str, object]) -> None:
    """Writes the manifest of a folder, when all its other files are on the disk.

    Args:
        draft: the folder; it holds plain files only.
        key: of the entry that it will be.
        manifest: plain values; `key` and `files` are added.

    Raises:
        Damaged: there is something else than plain files.
        OSError: a file cannot be read, or the disk is full.
    """
    paths = sorted(draft.iterdir())
    for path in paths:
        if not _plain(path.name) or path.is_symlink() or not path.is_file():
            raise Damaged(f"{path.name[:100]!r} is not a plain file")

    def describe(path: Path) -> tuple[str, dict[str, object]]:
        sync(path)
        with path.open("rb") as file:
            size, digest = measure(file.fileno())
        return path.name, {"size": size, "sha256": digest}

    content = {**manifest, "key": key, "files": dict(parallel(describe, paths))}
    (draft / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sync(draft / MANIFEST)
    sync(draft)


@contextmanager
def _opened(folder: int, name: str) -> Iterator[int]:
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except OSError as err:
        if err.errno in _NOT_THAT_FILE:
            raise Damaged(f"{name[:100]!r} is missing or not a file") from err
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Damaged(f"{name[:100]!r} is not a file")
        yield descriptor
    finally:
        os.close(descriptor)


def _plain(name: str) -> bool:
    return name not in ("", ".", "..", MANIFEST) and name.isprintable() and "/" not in name and "\\" not in name


def measure(descriptor: int) -> tuple[int, str]:
    """Returns size and SHA-256 of an open file; of a large one that of its segments' hashes, made side by side."""
    size = os.fstat(descriptor).st_size
    digests = parallel(lambda start: _digest(descriptor, start), range(0, max(size, 1), SEGMENT))
    if len(digests) == 1:
        return size, digests[0].hex()
    return size, f"{SEGMENT}:{hashlib.sha256(b''.join(digests)).hexdigest()}"


def _digest(descriptor: int, start: int) -> bytes:
    """Returns the SHA-256 of a segment; its end may have gone meanwhile."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    for offset in range(start, start + SEGMENT, _BLOCK):
        count = os.preadv(descriptor, [block], offset)
        digest.update(block[:count])
        if count < _BLOCK:
            break
    return digest.digest()


def parallel(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Maps in threads; hashing and waiting for a disk leave the interpreter to the others."""
    threads = min(len(items), len(os.sched_getaffinity(0)), 8)
    if threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
