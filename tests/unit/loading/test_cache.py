"""Entries, whole and damaged; keys, places and other processes have their own files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimodal.errors import OptimizationError
from trimodal.loading.cache import CacheError, Store, cache_key, hash_files

KEY = cache_key({"model": "a"})
OTHER = cache_key({"model": "b"})
FILES = {"model.onnx": b"graph" * 100, "model.onnx.data": bytes(range(256)) * 5000, "empty": b""}


def publish(store, key=KEY, files=FILES, manifest=None):
    with store.draft(key) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
        return store.publish(key, draft, {"level": 1} if manifest is None else manifest)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def entries(store):
    """Everything in the store but its lock files."""
    return sorted(path.name for path in store.root.iterdir() if path.suffix != ".lock")


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def change(entry, **changes):
    path = entry / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_entry_that_was_published_is_found(store):
    entry = publish(store, manifest={"level": 1, "rung": "int8"})

    assert store.find(KEY) == entry == store.root / KEY
    assert {path.name: path.read_bytes() for path in entry.iterdir() if path.name != "manifest.json"} == FILES
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["level"] == 1
    assert manifest["rung"] == "int8"
    assert manifest["key"] == KEY
    assert manifest["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    assert entries(store) == [KEY]


def test_another_key_finds_nothing(store, caplog):
    publish(store)

    assert store.find(OTHER) is None
    assert warnings(caplog) == []


def test_a_store_that_does_not_exist_finds_nothing_and_is_not_made(store, caplog):
    assert store.find(KEY) is None
    assert not store.root.exists()
    assert warnings(caplog) == []


def test_a_store_below_a_file_finds_nothing(tmp_path, caplog):
    (tmp_path / "optimized").write_text("")

    assert Store(tmp_path / "optimized").find(KEY) is None
    assert warnings(caplog) == ["an optimized model in the cache cannot be read: ENOTDIR"]


def test_an_entry_without_files_is_an_entry(store):
    assert store.find(KEY) is None
    publish(store, files={})

    assert store.find(KEY) == store.root / KEY


@pytest.mark.parametrize("key", ["", ".", "..", "../a", "a/b", "A", "a.lock", ".a", "a" * 129, "ä", "a\n"])
def test_a_key_that_is_no_plain_name_is_a_programming_error(store, key):
    for use in (store.find, store.draft(key).__enter__, store.lock(key, 1).__enter__):
        with pytest.raises(ValueError, match="not a key"):
            use(key) if use == store.find else use()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace(path, make):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def link(path):
    """Puts a link to the same content in the place of a file or folder."""
    path.symlink_to(path.rename(path.parent.parent / "elsewhere"))


DAMAGE = {
    "a torn file": (lambda entry: os.truncate(entry / "model.onnx.data", 1000), "'model.onnx.data' has changed"),
    "a longer file": (lambda entry: (entry / "empty").write_bytes(b"x"), "'empty' has changed"),
    "a changed byte": (lambda entry: flip(entry / "model.onnx.data"), "'model.onnx.data' has changed"),
    "a missing file": (lambda entry: (entry / "model.onnx").unlink(), "'model.onnx' is missing or not a file"),
    "a folder": (lambda entry: replace(entry / "model.onnx", Path.mkdir), "'model.onnx' is not a file"),
    "a pipe": (lambda entry: replace(entry / "model.onnx", os.mkfifo), "'model.onnx' is not a file"),
    "a link": (lambda entry: link(entry / "model.onnx"), "'model.onnx' is missing or not a file"),
    "no manifest": (lambda entry: (entry / "manifest.json").unlink(), "'manifest.json' is missing or not a file"),
    "a linked manifest": (lambda entry: link(entry / "manifest.json"), "'manifest.json' is missing or not a file"),
    "a torn manifest": (lambda entry: os.truncate(entry / "manifest.json", 50), "manifest.json is not valid JSON"),
    "a deep manifest": (
        lambda entry: (entry / "manifest.json").write_text("[" * 100_000),
        "manifest.json is not valid JSON",
    ),
    "no object": (lambda entry: (entry / "manifest.json").write_text("[]"), "manifest.json is another key's"),
    "another key": (lambda entry: change(entry, key=OTHER), "manifest.json is another key's"),
    "no list of files": (lambda entry: change(entry, files=None), "manifest.json lists no files"),
    "no sizes": (lambda entry: change(entry, files={"model.onnx": None}), "'model.onnx' has changed"),
    "no hash": (lambda entry: change(entry, files={"model.onnx": {"size": 500}}), "'model.onnx' has changed"),
    "no folder": (lambda entry: replace(entry, Path.touch), "it is not a folder"),
    "a linked folder": (link, "it is not a folder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_not_used_and_makes_room_for_a_new_one(store, caplog, name):
    damage, cause = DAMAGE[name]
    damage(publish(store))

    assert store.find(KEY) is None

    assert warnings(caplog) == [f"an optimized model in the cache is damaged and not used: {cause}"]
    assert not os.path.lexists(store.root / KEY)
    assert set(entries(store)) <= {"elsewhere"}  # where a file was linked to
    assert store.find(publish(store).name) is not None


@pytest.mark.parametrize(
    "name",
    ["../cache/secret", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "manifest.json", "a\0b", "\ud800", "a\nb"],
)
def test_a_manifest_names_files_of_its_own_entry_only(store, caplog, name):
    entry = publish(store)
    (store.root / "secret").write_bytes(b"graph")
    change(entry, files={name: {"size": 5, "sha256": hashlib.sha256(b"graph").hexdigest()}})

    assert store.find(KEY) is None

    assert len(warnings(caplog)) == 1
    assert "which is not a plain name" in warnings(caplog)[0]
    assert (store.root / "secret").read_bytes() == b"graph"


def test_a_name_that_is_too_long_for_a_file_is_damage(store, caplog):
    change(publish(store), files={"a" * 5000: {"size": 0, "sha256": ""}})

    assert store.find(KEY) is None
    assert len(warnings(caplog)[0]) < 300


def test_what_stood_behind_a_link_is_left_alone(store):
    entry = publish(store)
    link(entry)

    assert store.find(KEY) is None
    assert (store.root.parent / "elsewhere" / "model.onnx").read_bytes() == FILES["model.onnx"]


def find_with(manifest):
    """Looks for an entry with this manifest and one file."""
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root))
        entry = store.root / KEY
        entry.mkdir()
        (entry / "model.onnx").write_bytes(b"graph")
        (entry / "manifest.json").write_bytes(manifest)
        return store.find(KEY), entry


@given(st.binary(max_size=200))
def test_no_manifest_makes_find_raise(manifest):
    assert find_with(manifest)[0] is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=300) | st.just("model.onnx"), VALUES, min_size=1, max_size=4) | VALUES)
def test_no_list_of_files_makes_find_raise(files):
    found, entry = find_with(json.dumps({"key": KEY, "files": files}).encode())

    assert found == (entry if files == {} else None)


def test_a_draft_that_is_not_published_leaves_nothing(store):
    with store.draft(KEY) as draft:
        assert draft.parent == store.root
        assert draft.name.startswith(f".draft-{socket.gethostname()}-{os.getpid()}-")
        assert list(draft.iterdir()) == []
        (draft / "model.onnx").write_bytes(b"x")
        (draft / "folder").mkdir()
    assert entries(store) == []


def test_an_error_leaves_nothing_of_a_draft(store):
    draft = store.draft(KEY)
    (draft.__enter__() / "model.onnx").write_bytes(b"x")
    error = RuntimeError("a pass failed")

    assert not draft.__exit__(RuntimeError, error, None)

    assert entries(store) == []


def test_every_draft_is_another_folder(store):
    with store.draft(KEY) as first, store.draft(KEY) as second:
        assert first != second


@pytest.mark.parametrize(
    "make",
    [
        lambda draft: (draft / "folder").mkdir(),
        lambda draft: (draft / "link").symlink_to("/etc/passwd"),
        lambda draft: os.mkfifo(draft / "pipe"),
        lambda draft: (draft / "manifest.json").write_text("{}"),
        lambda draft: (draft / "two\nlines").write_text(""),
    ],
)
def test_only_plain_files_are_published(store, make):
    with store.draft(KEY) as draft:
        make(draft)
        with pytest.raises(CacheError, match=r"cannot be kept: '.+' is not a plain file\."):
            store.publish(KEY, draft, {})
    assert entries(store) == []


def test_a_draft_that_has_gone_is_not_published(store):
    with store.draft(KEY) as draft:
        draft.rmdir()
        with pytest.raises(CacheError, match="cannot be written \\(ENOENT\\)"):
            store.publish(KEY, draft, {})
    assert entries(store) == []


def test_who_publishes_second_gets_the_first_ones_entry(store):
    first = publish(store, files={"model.onnx": b"first"})
    second = publish(store, files={"model.onnx": b"second"})

    assert second == first
    assert (first / "model.onnx").read_bytes() == b"first"
    assert entries(store) == [KEY]


def test_a_damaged_entry_is_replaced_by_publishing(store, caplog):
    flip(publish(store) / "model.onnx")

    assert publish(store) == store.find(KEY)
    assert len(warnings(caplog)) == 1


def test_a_good_entry_that_took_a_damaged_ones_place_stays(store):
    entry = publish(store)
    damaged = publish(store, OTHER)

    store._discard(entry, damaged.lstat())

    assert store.find(KEY) == entry


def test_a_cache_error_is_an_optimization_that_was_lost():
    assert issubclass(CacheError, OptimizationError)


def test_a_large_file_is_hashed_in_segments_and_every_byte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("trimodal.loading.entries.SEGMENT", 2 * 1024 * 1024)
    path = tmp_path / "weights"
    content = bytearray(os.urandom(5 * 1024 * 1024 + 7))
    path.write_bytes(content)
    whole = hash_files([path])

    assert whole == hash_files([path])
    for place in (0, 2 * 1024 * 1024 - 1, 2 * 1024 * 1024, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert hash_files([path]) != whole
    path.write_bytes(content + b"\0")
    assert hash_files([path]) != whole
