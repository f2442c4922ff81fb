from __future__ import annotations

from pathlib import Path

import pytest

from trimodal.loading.cache import CacheError, cache_key, hash_files


def test_a_key_depends_on_every_part_and_not_on_their_order():
    parts = {"model": "a", "settings": {"precision": "int8", "threads": 2}, "libraries": ["1.31", None]}

    assert cache_key(parts) == cache_key(dict(reversed(parts.items())))
    assert len(cache_key(parts)) == 64
    others = [{"settings": {"precision": "int8", "threads": 3}}, {"libraries": ["1.31", ""]}, {"more": None}]
    assert len({cache_key(parts | other) for other in ({}, *others)}) == 4


def test_a_key_is_made_of_plain_values():
    with pytest.raises(TypeError):
        cache_key({"path": Path("/")})
    with pytest.raises(ValueError, match="JSON"):
        cache_key({"number": float("nan")})


@pytest.fixture
def model(tmp_path):
    """Two model files in a folder of the given name."""

    def write(folder="one", graph=b"graph", data=b"data"):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        (path / "model.onnx").write_bytes(graph)
        (path / "model.onnx.data").write_bytes(data)
        return [path / "model.onnx", path / "model.onnx.data"]

    return write


def test_a_hash_of_files_depends_on_names_and_contents_only(model):
    paths = model()
    expected = hash_files(paths)

    assert hash_files(paths[::-1]) == expected
    assert hash_files(model("two")) == expected
    assert hash_files(model(graph=b"Graph")) != expected
    assert hash_files(model(graph=b"graphd", data=b"ata")) != expected
    assert hash_files(model(data=b"")) != expected
    assert hash_files(model()[:1]) != expected
    assert hash_files(model()) == expected
    renamed = [paths[0], paths[1].rename(paths[1].with_name("weights.data"))]
    assert hash_files(renamed) != expected
    assert hash_files([]) != expected


def test_a_hash_of_files_tells_folders_apart(model):
    one, two = model("one", graph=b"1"), model("two", graph=b"2")
    swapped = [*model("one", graph=b"2"), *model("two", graph=b"1")]

    before = hash_files([*swapped])
    model("one", graph=b"1"), model("two", graph=b"2")

    assert hash_files([*one, *two]) != before


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"^model\.onnx cannot be read\.$"):
        hash_files([tmp_path / "model.onnx"])
