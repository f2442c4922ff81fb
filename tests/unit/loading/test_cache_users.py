"""Several users with one store; permission bits do not bind root, so a test that root runs becomes another user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from trimodal.loading.cache import CacheError, Store

KEY = "a" * 64


def cache_error(text):
    return pytest.raises(CacheError, match=text)


def publish(store):
    with store.draft(KEY) as draft:
        (draft / "model.onnx").write_bytes(b"graph")
        return store.publish(KEY, draft, {})


@pytest.fixture
def nobody(tmp_path_factory):
    """Makes this process a user whom permission bits bind, where it is not; gives a folder of that user."""
    folder = tmp_path_factory.mktemp("nobody")
    if os.geteuid() != 0:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:  # root's own temporary directories are closed to others
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_an_entry_that_may_not_be_read_is_left_to_others(nobody, caplog):
    store = Store(nobody / "cache")
    (publish(store) / "model.onnx").chmod(0)

    assert store.find(KEY) is None

    assert [record.getMessage() for record in caplog.records] == [
        "an optimized model in the cache cannot be read: EACCES"
    ]
    assert (store.root / KEY / "model.onnx").exists()
    with store.draft(KEY) as draft, cache_error("A bad entry of the cache cannot be replaced"):
        store.publish(KEY, draft, {})


def test_permission_bits_are_obeyed(nobody):
    store = Store(nobody / "cache")
    entry = publish(store)
    store.root.chmod(0o555)

    try:
        assert store.find(KEY) == entry
        with cache_error(r"cannot be written \(EACCES\)"):
            store.lock(KEY, 1).__enter__()
        (entry / "model.onnx").write_bytes(b"Graph")
        assert store.find(KEY) is None
        assert entry.exists()
    finally:
        store.root.chmod(0o755)


def test_the_lock_of_another_user_is_taken(nobody):
    store = Store(nobody / "cache")
    store.root.mkdir()
    path = store.root / f"{KEY}.lock"
    path.touch()
    path.chmod(0o444)

    with store.lock(KEY, 1):
        pass
