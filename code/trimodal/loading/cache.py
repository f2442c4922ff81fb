"""The store of optimized models, addressed by content.

::

    <root>/<key>/manifest.json      written last; lists every other file with its size and hash
    <root>/<key>/model.onnx …       never changed once there
    <root>/<key>.lock               held by whoever makes the entry
    <root>/.draft-<host>-<pid>-…    an entry in the making, or one on its way out

A key is a hash of all that the result depends on, so an entry is right or damaged and never out of date. An entry
appears by one rename, complete; a damaged one is never returned.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trimodal.errors import OptimizationError
from trimodal.loading.entries import Damaged, complete, measure, parallel, sync, verify
from trimodal.loading.locks import is_free, locked, try_lock

logger = logging.getLogger(__name__)

DRAFT = ".draft-"

_KEY = re.compile(r"[0-9a-z][0-9a-z_-]{0,127}", re.ASCII)
_HOUSEKEEPING_SECONDS = 60
_TAKEN = frozenset((errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR))


class CacheError(OptimizationError):
    """The store cannot be used; the text says what to fix."""


def hash_files(paths: Sequence[Path]) -> str:
    """Returns one SHA-256 (hexadecimal) of names and contents; order and the folder that they share do not matter.

    Raises:
        CacheError: a file cannot be read.
    """
    absolute = sorted(path.absolute() for path in paths)
    shared = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()

    def describe(path: Path) -> tuple[str, int, str]:
        try:
            with path.open("rb") as file:
                return path.relative_to(shared).as_posix(), *measure(file.fileno())
        except OSError as err:
            raise CacheError(f"{path.name} cannot be read.") from err

    return cache_key({"files": parallel(describe, absolute)})


def cache_key(parts: Mapping[str, object]) -> str:
    """Returns the SHA-256 (hexadecimal) of plain values, as JSON with sorted names.

    Raises:
        TypeError: a value is not a plain one.
        ValueError: a number is not finite.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """The entries under one directory, which need not exist, or be writable, to look for some.

    Attributes:
        root: the directory.
    """

    root: Path

    def find(self, key: str) -> Path | None:
        """Returns the folder of an entry whose every file was found to be as published, else None.

        A damaged entry is removed where that is allowed, with a warning that names the cause.
        """
        entry = self._entry(key)
        with ExitStack() as stack:
            try:
                folder = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, folder)
                verify(folder, key)
            except FileNotFoundError:
                return None
            except Damaged as err:
                logger.warning("an optimized model in the cache is damaged and not used: %s", err)
                self._discard(entry, os.fstat(folder))
            except OSError as err:  # of this process or the disk, perhaps; other readers may be able to use the entry
                logger.warning("an optimized model in the cache cannot be read: %s", _name(err))
            else:
                return entry
        return None

    @contextmanager
    def draft(self, key: str) -> Iterator[Path]:
        """Yields an empty folder for the files of an entry; whatever is not published is removed.

        Raises:
            CacheError: it cannot be made.
        """
        self._entry(key)
        path = self._draft_path()
        with ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with locked(self.root / ".drafts.lock", _HOUSEKEEPING_SECONDS):
                    self._remove_abandoned_drafts()
                    path.mkdir()
                    stack.callback(shutil.rmtree, path, ignore_errors=True)
                    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    stack.callback(os.close, folder)
                    try_lock(folder)  # tells other processes, whatever their names for this one, that it is alive
            except OSError as err:
                raise _cannot_write(err) from err
            yield path

    def publish(self, key: str, draft: Path, manifest: Mapping[str, object]) -> Path:
        """Makes a draft an entry, durably and at once, unless another process was faster.

        Args:
            key: of the entry.
            draft: from `draft`; it holds plain files only.
            manifest: plain values; `key` and `files` are added.

        Returns:
            The folder of the entry, whoever has made it.

        Raises:
            CacheError: it cannot be written.
        """
        entry = self._entry(key)
        try:
            complete(draft, key, manifest)
            self._rename(key, draft, entry)
            sync(self.root)
        except Damaged as err:
            raise CacheError(f"The optimized model cannot be kept: {err}.") from err
        except OSError as err:
            raise _cannot_write(err) from err
        return entry

    @contextmanager
    def lock(self, key: str, seconds: float, stop: threading.Event | None = None) -> Iterator[None]:
        """Keeps every other process from making the same entry; where there are no locks two may do the same work.

        Args:
            key: of the entry.
            seconds: how long to wait for another process.
            stop: ends the waiting when it is set.

        Raises:
            CacheError: the time is over, waiting was ended, or the directory cannot be written.
        """
        path = self._entry(key).with_suffix(".lock")
        with ExitStack() as stack:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context(locked(path, seconds, stop))
            except InterruptedError as err:
                raise CacheError("The container was told to stop.") from err
            except TimeoutError as err:
                raise CacheError(
                    f"Another process has been optimizing the same model for more than {seconds:g} s; "
                    "raise OPTIMIZATION_BUDGET_SECONDS."
                ) from err
            except OSError as err:
                raise _cannot_write(err) from err
            if not held:
                logger.warning("the cache's file system has no locks; several processes may optimize the same model")
            yield

    def _entry(self, key: str) -> Path:
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"not a key: {key!r}")
        return self.root / key

    def _draft_path(self) -> Path:
        return self.root / f"{DRAFT}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def _rename(self, key: str, draft: Path, entry: Path) -> None:
        for _ in range(3):
            try:
                draft.rename(entry)
            except OSError as err:
                if err.errno not in _TAKEN:
                    raise
            else:
                return
            if self.find(key) is not None:  # a damaged one is out of the way now
                return
        raise CacheError("A bad entry of the cache cannot be replaced; empty the directory of optimized models.")

    def _discard(self, entry: Path, identity: os.stat_result) -> None:
        """Moves a damaged entry away and removes it, but not a good one that has been put in its place meanwhile."""
        trash = self._draft_path()
        with suppress(OSError):  # a directory that cannot be written keeps it, and the warning has been given
            if not os.path.samestat(identity, entry.lstat()):
                return
            entry.rename(trash)
            if not os.path.samestat(identity, trash.lstat()):
                trash.rename(entry)
            elif stat.S_ISDIR(identity.st_mode):
                shutil.rmtree(trash, ignore_errors=True)
            else:
                trash.unlink()

    def _remove_abandoned_drafts(self) -> None:
        for path in self.root.glob(f"{DRAFT}*"):
            with suppress(OSError):
                if _abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)


def _abandoned(draft: Path) -> bool:
    """Tells whether the process that made a draft has ended: it has let go of the draft's lock."""
    if (free := is_free(draft)) is not None:
        return free
    owner = draft.name.removeprefix(DRAFT).rsplit("-", 2)  # without locks only names of this host say something
    return owner[0] == socket.gethostname() and len(owner) == 3 and not Path(f"/proc/{owner[1]}").exists()


def _name(err: OSError) -> str:
    return errno.errorcode.get(err.errno or 0, "unknown error")


def _cannot_write(err: OSError) -> CacheError:
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return CacheError("The disk of the optimized models is full; mount a larger volume or set OPTIMIZED_MODEL_DIR.")
    return CacheError(f"The optimized models cannot be written ({_name(err)}); set OPTIMIZED_MODEL_DIR.")
