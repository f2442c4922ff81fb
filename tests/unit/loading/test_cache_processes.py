"""Several processes with one store, as several containers with one volume are."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from trimodal.loading import locks
from trimodal.loading.cache import CacheError, Store

KEY, OTHER = "a" * 64, "b" * 64

PREAMBLE = """
import os, sys, time
from pathlib import Path
from trimodal.loading.cache import CacheError, Store
KEY, store = "a" * 64, Store(Path(sys.argv[1]))
"""

MAKE = """
sys.stdin.readline()
with store.lock(KEY, 60):
    if store.find(KEY) is None:
        with store.draft(KEY) as draft:
            with open(sys.argv[2], "a") as made:
                made.write(f"{os.getpid()}\\n")
            (draft / "model.onnx").write_bytes(b"graph" * 100_000)
            time.sleep(0.3)
            store.publish(KEY, draft, {"pid": os.getpid()})
assert store.find(KEY) == store.root / KEY
"""

PUBLISH = """
with store.draft(KEY) as draft:
    (draft / "model.onnx").write_bytes(str(os.getpid()).encode() * 100_000)
    print("ready", flush=True)
    sys.stdin.readline()
    entry = store.publish(KEY, draft, {})
    print(entry.joinpath("model.onnx").read_bytes()[:20], store.find(KEY) == entry, flush=True)
"""

HOLD = """
with store.lock(KEY, 1), store.draft(KEY) as draft:
    (draft / "model.onnx").write_bytes(b"half a gra")
    print(draft.name, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


@pytest.fixture
def start():
    """Starts processes that are gone at the end of the test."""
    processes = []

    def run(script, *arguments):
        command = [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def entries(store):
    return sorted(path.name for path in store.root.iterdir() if path.suffix != ".lock")


def test_of_several_processes_exactly_one_does_the_work(store, start, tmp_path):
    processes = [start(MAKE, store.root, tmp_path / "made") for _ in range(3)]
    for process in processes:
        process.communicate("go\n", timeout=120)

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "made").read_text().split()) == 1
    assert entries(store) == [KEY]


def test_without_the_lock_the_first_entry_stays_and_all_use_it(store, start):
    processes = [start(PUBLISH, store.root) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3

    answers = {process.communicate("go\n", timeout=120)[0] for process in processes}

    assert len(answers) == 1
    assert answers.pop().endswith("True\n")
    assert entries(store) == [KEY]


def test_a_lock_that_is_held_is_waited_for_until_the_deadline(store, start):
    process = start(HOLD, store.root)
    process.stdout.readline()
    lock = store.lock(KEY, 0.2)

    with pytest.raises(CacheError, match=r"for more than 0\.2 s; raise OPTIMIZATION_BUDGET_SECONDS\."):
        lock.__enter__()
    with store.lock(OTHER, 0):
        pass

    process.communicate("go\n", timeout=60)
    with store.lock(KEY, 0):
        pass


def test_what_a_killed_process_held_is_free_and_its_draft_is_removed(store, start):
    process = start(HOLD, store.root)
    draft = process.stdout.readline().strip()
    with store.draft(OTHER) as other:
        assert entries(store) == sorted([draft, other.name])

    process.kill()
    process.wait()

    assert entries(store) == [draft]
    with store.lock(KEY, 10), store.draft(KEY) as mine:
        assert entries(store) == [mine.name]


def test_a_draft_of_another_container_that_has_ended_is_removed(store):
    store.root.mkdir()
    (store.root / ".draft-another-host-1-0a1b2c3d").mkdir()

    with store.draft(KEY) as mine:
        assert entries(store) == [mine.name]


def test_what_only_looks_like_a_draft_does_not_matter(store):
    store.root.mkdir()
    (store.root / ".draft-file").write_text("")
    (store.root / ".draft-link").symlink_to(store.root)

    with store.draft(KEY) as mine:
        assert entries(store) == sorted([".draft-file", ".draft-link", mine.name])


@contextmanager
def file_system_without_locks(monkeypatch, code):
    """Answers every lock as such a file system does; none can be mounted here."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        yield


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_the_work_is_done_unlocked(store, caplog, monkeypatch, code):
    with file_system_without_locks(monkeypatch, code), store.lock(KEY, 1), store.draft(KEY) as draft:
        store.publish(KEY, draft, {})

    assert store.find(KEY) is not None
    assert [record.getMessage() for record in caplog.records] == [
        "the cache's file system has no locks; several processes may optimize the same model"
    ]


def test_without_locks_only_drafts_of_this_hosts_dead_processes_are_removed(store, start, monkeypatch):
    process = start("")
    process.wait()
    store.root.mkdir()
    here = socket.gethostname()
    names = [
        f".draft-{here}-{process.pid}-0a",
        f".draft-{here}-{os.getpid()}-0a",
        f".draft-x{here}-{process.pid}-0a",
        f".draft-{here}",
    ]
    for name in names:
        (store.root / name).mkdir()

    with file_system_without_locks(monkeypatch, errno.ENOLCK), store.draft(KEY) as mine:
        assert entries(store) == sorted([mine.name, *names[1:]])


def test_a_lock_that_fails_otherwise_is_told(store, monkeypatch):
    with file_system_without_locks(monkeypatch, errno.EIO):
        lock = store.lock(KEY, 1)
        with pytest.raises(CacheError, match="EIO"):
            lock.__enter__()
        draft = store.draft(KEY)
        with pytest.raises(CacheError, match="EIO"):
            draft.__enter__()


def test_a_folder_is_free_unless_its_lock_is_held(tmp_path):
    assert locks.is_free(tmp_path) is True
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert locks.try_lock(descriptor) is True
        assert locks.is_free(tmp_path) is False
    finally:
        os.close(descriptor)
    assert locks.is_free(tmp_path) is True


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"), locks.locked(tmp_path / "lock", 1):
        pass
    assert not (tmp_path / "elsewhere").exists()
