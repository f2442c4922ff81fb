"""Locks between processes: an open file holds them, so they end with their process however it ends (flock(2)).

They hold between containers that share the directory, whose process ids say nothing to each other. The package
filelock takes the same lock; where there is none it leaves a marker file instead, which outlives a killed process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD = frozenset((errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES))
_UNSUPPORTED = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF))
"""What file systems without locks answer; NFS answers EBADF to the lock of a directory."""

_POLL_SECONDS = 0.05


def try_lock(descriptor: int) -> bool | None:
    """Takes the lock of an open file unless somebody holds it.

    Returns:
        Whether it is taken now; None where the file system has no locks.

    Raises:
        OSError: the lock cannot be asked for.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in _HELD:
            return False
        if err.errno in _UNSUPPORTED:
            return None
        raise
    return True


def is_free(folder: Path) -> bool | None:
    """Tells whether no process holds the lock of a folder; None where the file system has no locks.

    Raises:
        OSError: it is no folder, or the lock cannot be asked for.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, seconds: float, stop: threading.Event | None = None) -> Iterator[bool]:
    """Holds the lock of a file, which is made and stays.

    Args:
        path: the file.
        seconds: how long to wait for whoever holds it.
        stop: ends the waiting when it is set.

    Yields:
        Whether it is held; False where the file system has no locks.

    Raises:
        TimeoutError: it was held by another all the time.
        InterruptedError: `stop` was set meanwhile.
        OSError: the file cannot be opened.
    """
    descriptor = _open(path)
    try:
        deadline = time.monotonic() + seconds
        while (taken := try_lock(descriptor)) is False:
            if stop is not None and stop.is_set():
                raise InterruptedError(errno.EINTR, "told to stop")
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "held by another process")
            time.sleep(_POLL_SECONDS)
        yield bool(taken)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDWR, 0o666)
    except PermissionError:  # made by another user: reading is enough for a lock, except on NFS
        return os.open(path, flags | os.O_RDONLY, 0o666)
