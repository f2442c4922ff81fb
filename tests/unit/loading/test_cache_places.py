"""Where the store is, and disks that are full or read-only: real ones, which only root may mount."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import tempfile

import pytest

from trimodal.loading.cache import CacheError, Store
from trimodal.loading.places import choose_root
from trimodal.settings import MIB, Settings

KEY = "a" * 64
TOO_MUCH = 2**60


@pytest.fixture
def mount():
    """Mounts a file system; skips the test where that is not allowed."""
    mounted = []

    def run(*arguments):
        command = shutil.which("mount")
        result = command and subprocess.run([command, *map(str, arguments)], capture_output=True, check=False)
        if not result or result.returncode != 0:
            pytest.skip("this user may not mount file systems")
        mounted.append(arguments[-1])
        return arguments[-1]

    yield run
    for folder in reversed(mounted):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(mount, tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    return mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)


@pytest.fixture
def read_only(request):
    """Makes a folder read-only; permission bits do not bind root, so for root it is mounted so."""
    restored = []

    def make(folder):
        if os.geteuid() == 0:
            request.getfixturevalue("mount")("--bind", "-o", "ro", folder, folder)
        else:
            folder.chmod(0o555)
            restored.append(folder)

    yield make
    for folder in restored:
        folder.chmod(0o755)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The directory for temporary files of the test."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def cache_error(text):
    return pytest.raises(CacheError, match=text)


def own(temporary):
    return temporary / f"trimodal-cache-{os.geteuid()}"


def publish(store):
    with store.draft(KEY) as draft:
        (draft / "model.onnx").write_bytes(b"graph")
        return store.publish(KEY, draft, {})


def test_the_directory_that_is_set_is_made_and_used(tmp_path, model):
    folder = tmp_path / "a" / "b"

    assert choose_root(Settings(model_dir=model, optimized_dir=folder), MIB) == folder
    assert list(folder.iterdir()) == []
    assert choose_root(Settings(model_dir=model, optimized_dir=folder), MIB) == folder


def test_else_it_is_beside_the_model(model, temporary):
    assert choose_root(Settings(model_dir=model), MIB) == model / "optimized"
    assert list((model / "optimized").iterdir()) == list(temporary.iterdir()) == []


def test_beside_a_read_only_model_it_is_this_users_own_temporary_directory(model, temporary, read_only, caplog):
    caplog.set_level(logging.INFO)
    read_only(model)

    root = choose_root(Settings(model_dir=model), MIB)

    assert root == own(temporary)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage() == (
        "optimized models are not kept beside the model: The model directory is not writable; mount it writable or "
        "set OPTIMIZED_MODEL_DIR."
    )
    assert choose_root(Settings(model_dir=model), MIB) == root


def test_a_model_directory_that_is_too_small_is_passed_over(small_disk, temporary):
    assert choose_root(Settings(model_dir=small_disk), MIB) == own(temporary)
    assert list(small_disk.iterdir()) == []
    assert choose_root(Settings(model_dir=small_disk), 1024) == small_disk / "optimized"


def test_a_model_directory_that_does_not_exist_is_not_made(tmp_path, temporary):
    assert choose_root(Settings(model_dir=tmp_path / "none"), MIB) == own(temporary)
    assert not (tmp_path / "none").exists()


def test_a_file_in_the_way_is_passed_over(model, temporary):
    (model / "optimized").write_text("")

    assert choose_root(Settings(model_dir=model), MIB) == own(temporary)


def test_no_directory_for_temporary_files_says_what_to_do(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)  # it looks in the working directory too, which is everybody's

    with cache_error(r"^There is no directory for temporary files; set OPTIMIZED_MODEL_DIR\.$"):
        choose_root(Settings(model_dir=tmp_path / "none"), MIB)


def test_too_little_space_everywhere_says_what_to_do(model, temporary):
    with cache_error(
        r"^The directory for temporary files needs 1152921504607 MB of free space; mount a larger volume or set "
        r"OPTIMIZED_MODEL_DIR\.$"
    ):
        choose_root(Settings(model_dir=model), TOO_MUCH)
    assert list(model.iterdir()) == list(temporary.iterdir()) == []


def test_the_directory_that_is_set_is_not_passed_over(tmp_path, model, temporary, read_only):
    with cache_error(r"^OPTIMIZED_MODEL_DIR=\S+/x needs 1152921504607 MB of free space; mount a larger volume"):
        choose_root(Settings(model_dir=model, optimized_dir=tmp_path / "x"), TOO_MUCH)
    assert not (tmp_path / "x").exists()

    (tmp_path / "file").write_text("")
    with cache_error(r"^OPTIMIZED_MODEL_DIR=\S+/file is not writable; mount it writable"):
        choose_root(Settings(model_dir=model, optimized_dir=tmp_path / "file"), MIB)

    read_only(model)
    for folder in (model, model / "below"):
        with cache_error("is not writable"):
            choose_root(Settings(model_dir=model, optimized_dir=folder), MIB)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["a link", "others may write", "another user"])
def test_a_temporary_directory_that_others_could_have_filled_is_refused(temporary, tmp_path, name):
    folder = own(temporary)
    if name == "a link":
        folder.symlink_to(temporary)
    elif name == "others may write":
        folder.mkdir()
        folder.chmod(0o777)
    elif os.geteuid() == 0:
        folder.mkdir()
        os.chown(folder, 65534, 65534)
    else:
        pytest.skip("only root can give a directory to another user")

    with cache_error("holds another user's trimodal-cache-"):
        choose_root(Settings(model_dir=tmp_path / "none"), MIB)


def test_an_entry_is_found_in_a_read_only_directory(tmp_path, read_only):
    store = Store(tmp_path / "cache")
    entry = publish(store)
    read_only(store.root)

    assert store.find(KEY) == entry


def test_a_damaged_entry_in_a_read_only_directory_stays_unused(tmp_path, read_only, caplog):
    store = Store(tmp_path / "cache")
    (publish(store) / "model.onnx").write_bytes(b"Graph")
    read_only(store.root)

    assert store.find(KEY) is None
    assert store.find(KEY) is None
    assert len(caplog.records) == 2
    assert (store.root / KEY / "model.onnx").exists()


def test_a_read_only_directory_takes_neither_lock_nor_draft(tmp_path, read_only):
    store = Store(tmp_path / "cache")
    store.root.mkdir()
    read_only(store.root)

    for use in (store.lock(KEY, 1), store.draft(KEY), Store(store.root / "below").draft(KEY)):
        with cache_error(r"^The optimized models cannot be written \((EROFS|EACCES)\); set OPTIMIZED_MODEL_DIR\.$"):
            use.__enter__()


def test_a_full_disk_leaves_nothing_of_a_draft(small_disk):
    store = Store(small_disk / "cache")

    with store.draft(KEY) as draft:
        fill(draft / "model.onnx")
        with cache_error(
            r"^The disk of the optimized models is full; mount a larger volume or set OPTIMIZED_MODEL_DIR"
        ):
            store.publish(KEY, draft, {})

    assert [path.name for path in store.root.iterdir()] == [".drafts.lock"]
    assert publish(store) == store.find(KEY)


def test_a_draft_on_another_disk_cannot_be_published(small_disk, tmp_path):
    with Store(small_disk).draft(KEY) as draft, cache_error(r"cannot be written \(EXDEV\)"):
        Store(tmp_path).publish(KEY, draft, {})
    assert not (tmp_path / KEY).exists()


def fill(path):
    """Writes until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for _ in range(1000):
            try:
                file.write(bytes(4096))
            except OSError:
                return
    pytest.fail("the disk is larger than thought")
