from __future__ import annotations

import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import package
from deploy.errors import DeployError
from deploy.package import digest, pack

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\\x00", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: not name.startswith(".") and name != "__pycache__" and len(name.encode()) <= 120)
FILES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.binary(max_size=200), max_size=5)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "calibration").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "calibration" / "percentile_score.json").write_text("[]")
    return folder


def names(archive):
    with tarfile.open(archive) as tar:
        return tar.getnames()


def lay_out(folder, files):
    """Writes the files whose paths fit together and are told apart by this file system."""
    written = {}
    for path, content in files.items():
        target = folder.joinpath(*path)
        if any(folder.joinpath(*path[:i]).is_file() for i in range(1, len(path))) or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        written["/".join(path)] = content
    return written


@given(files=FILES)
def test_any_names_come_back_with_their_content(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("any")
    (folder / "model").mkdir()
    expected = lay_out(folder / "model", {("model.onnx",): b"graph", **files})
    pack(folder / "model", folder / "model.tar.gz")
    with tarfile.open(folder / "model.tar.gz") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    assert found == expected


def test_same_content_gives_the_same_bytes(model, tmp_path):
    first = pack(model, tmp_path / "one.tar.gz")
    os.utime(model / "model.onnx", (1, 1))
    (model / "model.onnx").chmod(0o600)
    assert pack(model, tmp_path / "two.tar.gz") == first == digest(tmp_path / "one.tar.gz")
    (model / "model.onnx").write_bytes(b"other")
    assert pack(model, tmp_path / "two.tar.gz") != first


def test_files_stand_at_the_top_and_hidden_ones_stay_out(model, tmp_path):
    (model / ".git").mkdir()
    (model / ".git" / "config").touch()
    (model / ".env").symlink_to("/etc/hostname")
    (model / "code" / "__pycache__").mkdir(parents=True)
    (model / "code" / "__pycache__" / "inference.pyc").touch()
    (model / "code" / "inference.py").touch()
    pack(model, tmp_path / "out" / "model.tar.gz")
    assert names(tmp_path / "out" / "model.tar.gz") == [
        "calibration/percentile_score.json",
        "code/inference.py",
        "model.onnx",
    ]


def test_a_link_inside_the_directory_becomes_a_file(model, tmp_path):
    (model / "copy.onnx").symlink_to("model.onnx")
    pack(model, tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        assert tar.getmember("copy.onnx").isreg()
        assert tar.extractfile("copy.onnx").read() == b"graph"


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "nothing", "calibration", ".."])
def test_other_links_are_refused(model, tmp_path, target):
    (tmp_path / "secret").write_text("secret")
    (model / "link").symlink_to(target)
    with pytest.raises(DeployError, match=r"^link is a link"):
        pack(model, tmp_path / "model.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "secret"]


def test_a_pipe_is_refused(model, tmp_path):
    os.mkfifo(model / "pipe")
    with pytest.raises(DeployError, match="pipe is not a file"):
        pack(model, tmp_path / "model.tar.gz")


def test_what_is_no_model_directory_is_refused(tmp_path):
    with pytest.raises(DeployError, match="neither model"):
        pack(tmp_path / "nothing", tmp_path / "model.tar.gz")


def test_a_place_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeployError, match="cannot be written"):
        pack(model, tmp_path / "file" / "model.tar.gz")


def test_an_archive_is_not_packed_into_itself(model):
    with pytest.raises(DeployError, match="would lie in what it packs"):
        pack(model, model / "model.tar.gz")


def test_a_model_that_cannot_be_prepared_is_not_packed(model, tmp_path):
    with pytest.raises(DeployError, match="trimodal prepare"):
        package.build(model, tmp_path / "model.tar.gz", prepared=True)
    assert not (tmp_path / "model.tar.gz").exists()
