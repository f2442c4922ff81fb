from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import pytest

from trimodal.errors import OutOfMemory
from trimodal.loading.hardware import MIB, worker_count
from trimodal.loading.room import free_disk, free_memory, make_room, require_memory
from trimodal.settings import Settings

GIB = 1024 * MIB
GROUP = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8 * GIB),
        ({f"{GROUP}/memory.max": "max", f"{GROUP}/memory.current": str(GIB)}, 8 * GIB),
        ({f"{GROUP}/memory.max": str(3 * GIB), f"{GROUP}/memory.current": str(GIB)}, 2 * GIB),
        ({f"{GROUP}/memory.max": str(30 * GIB), f"{GROUP}/memory.current": str(GIB)}, 8 * GIB),
        (
            {
                f"{GROUP}/memory.max": str(3 * GIB),
                f"{GROUP}/memory.current": str(2 * GIB),
                f"{GROUP}/memory.stat": f"anon 1\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n",
            },
            GIB + GIB // 2 + GIB // 4,
        ),
        ({f"{GROUP}/memory.max": str(GIB), f"{GROUP}/memory.current": str(2 * GIB)}, 0),
        (
            {
                f"{V1}/memory.limit_in_bytes": str(4 * GIB),
                f"{V1}/memory.usage_in_bytes": str(3 * GIB),
                f"{V1}/memory.stat": f"total_inactive_file {GIB}\ntotal_active_file {GIB}\n",
            },
            3 * GIB,
        ),
        (  # the group above is the tighter one
            {
                "proc/self/cgroup": "0::/a\n",
                f"{GROUP}/memory.max": str(2 * GIB),
                f"{GROUP}/memory.current": str(GIB),
                f"{GROUP}/a/memory.max": str(4 * GIB),
                f"{GROUP}/a/memory.current": str(GIB),
            },
            GIB,
        ),
    ],
)
def test_free_memory_is_what_the_tightest_limit_leaves(tmp_path, files, free):
    for name, content in {"proc/meminfo": f"MemTotal: 999999999 kB\nMemAvailable: {8 * MIB} kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert free_memory(tmp_path) == free


@pytest.fixture
def settings(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.onnx").write_bytes(bytes(1000))
    (model / "model.onnx.data").write_bytes(bytes(50 * MIB - 1000))
    (model / "golden.jsonl").write_bytes(bytes(1000))
    return Settings(model_dir=model, multi_model=True)


def test_a_model_takes_twice_its_weights_and_the_libraries(settings):
    require_memory(settings, 300 * MIB)
    with pytest.raises(OutOfMemory, match="needs 314 MB of memory to load and 314 MB are free; unload another model"):
        require_memory(settings, 300 * MIB - 1)


def test_each_worker_takes_as_much(settings):
    assert worker_count(settings) == 1
    with pytest.raises(OutOfMemory):
        require_memory(replace(settings, workers=2), 600 * MIB - 1)
    require_memory(replace(settings, workers=2), 600 * MIB)


def test_without_a_graph_the_state_dict_counts(settings):
    (settings.model_dir / "model.onnx").rename(settings.model_dir / "model.pth")
    with pytest.raises(OutOfMemory):
        require_memory(settings, 300 * MIB - 1)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="model"):
        require_memory(Settings(model_dir=tmp_path / "model"), GIB)


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """A cache of four optimized models in the temporary directory, the last one the oldest."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = tmp_path / f"trimodal-cache-{os.geteuid()}"
    found = [root / name for name in "abcd"]
    for age, path in enumerate(found):
        path.mkdir(parents=True)
        (path / "manifest.json").touch()
        os.utime(path, (10_000 - age, 10_000 - age))
    (root / "d.lock").touch()
    return found


def there(entries):
    return "".join(path.name for path in entries if path.is_dir())


def test_optimized_models_go_until_there_is_room(settings, entries):
    make_room(settings, {entries[2]}, lambda _: 2**62)
    assert there(entries) == "abcd"
    make_room(settings, {entries[2]}, lambda root: 0 if (root / "b").exists() else 2**62)
    assert there(entries) == "ac"  # d and b: c is served, a was used last
    make_room(settings, {entries[2]}, lambda _: 0)
    assert there(entries) == "c"


def test_a_directory_that_somebody_chose_is_left_alone(settings, entries):
    make_room(replace(settings, optimized_dir=entries[0].parent), (), lambda _: 0)
    assert there(entries) == "abcd"


def test_there_may_be_no_cache_yet(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_room(settings, (), free_disk)
    assert 0 < free_disk(tmp_path) < 2**62
