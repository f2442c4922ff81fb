"""What `torch.save` writes, read without torch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from model_directories import Harmful, artifact_error
from trimodal.loading.pickles import load_torch_config

CONFIG = {"max_sen_len": 32, "steps": ["a", "b"], "rate": 0.5, "flag": True, "none": None}


def write_torch_zip(path, content, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.fixture
def saved(tmp_path):
    return tmp_path / "model_artifacts.pth"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: the file under test is written by it")


def artifacts_of(torch):
    return {
        "config": CONFIG,
        "vocab": {"[PAD]": 0, "the": 1},
        "embedding_mat": torch.ones(3, 2),
        "half": torch.zeros(2, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "version": torch.torch_version.TorchVersion("2.1.0"),
        "state": torch.nn.Linear(2, 2).state_dict(),
        "model_class": "bimodal",
    }


def test_the_config_of_a_file_written_by_torch(torch, saved):
    torch.save(artifacts_of(torch), saved)

    assert load_torch_config(saved) == CONFIG


def test_the_config_is_read_without_torch(torch, saved):
    torch.save(artifacts_of(torch), saved)
    program = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None\n"
        "from trimodal.loading.pickles import load_torch_config\n"
        f"print(load_torch_config(Path({str(saved)!r}))['max_sen_len'])"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, "32\n"), result.stderr


def test_the_config_may_hold_a_torch_version(torch, saved):
    torch.save({"config": {**CONFIG, "torch": torch.torch_version.TorchVersion("2.1.0")}}, saved)

    assert load_torch_config(saved) == {**CONFIG, "torch": "2.1.0"}


def test_the_config_may_hold_numpy_scalars(torch, saved):
    torch.save({"config": {**CONFIG, "max_sen_len": np.int64(32), "rate": np.float64(0.5)}}, saved)

    read_config = load_torch_config(saved)

    assert read_config == CONFIG
    assert (type(read_config["max_sen_len"]), type(read_config["rate"])) == (int, float)


@pytest.mark.parametrize("kind", ["dtype", "size", "device"])
def test_what_describes_a_tensor_is_passed_over(torch, saved, kind):
    value = {"dtype": torch.float32, "size": torch.Size([1, 2]), "device": torch.device("cpu")}[kind]
    torch.save({"config": CONFIG, "embedding": value}, saved)

    assert load_torch_config(saved) == CONFIG


@pytest.mark.parametrize("name", ["torch._tensor\n_rebuild_from_type_v2", "torch.hub\n_rebuild_anything"])
def test_what_builds_a_tensor_is_neither_looked_up_nor_called(saved, name):
    config = pickle.dumps(CONFIG, 0)[:-1]
    write_torch_zip(saved, b"(dS'config'\n" + config + b"sS'weights'\nc" + name.encode() + b"\n(S'x'\ntRs.")

    assert load_torch_config(saved) == CONFIG


def test_the_old_format_of_torch_is_an_error_with_a_remedy(torch, saved):
    torch.save({"config": CONFIG}, saved, _use_new_zipfile_serialization=False)

    with artifact_error("model_artifacts.pth is not a file written by torch.save; save it again"):
        load_torch_config(saved)


@pytest.mark.parametrize("function", [os.system, eval, subprocess.Popen])
def test_a_torch_file_that_would_run_something_is_refused(tmp_path, saved, function):
    marker = tmp_path / "ran"
    command = f"__import__('pathlib').Path({str(marker)!r}).touch()" if function is eval else f"touch {marker}"
    arguments = (command.split(),) if function is subprocess.Popen else (command,)
    write_torch_zip(saved, pickle.dumps({"config": CONFIG, "vocab": Harmful(function, *arguments)}, 2))

    with artifact_error("model_artifacts.pth cannot be read: it would build"):
        load_torch_config(saved)

    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch", "Tensor"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.nn", "Linear"),
        ("torch.utils._pytree", "tree_map"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.hub", "load"),
        ("os", "_rebuild_anything"),
        ("numpy", "device"),
    ],
)
def test_what_torch_could_build_besides_tensors_is_refused(saved, module, name):
    write_torch_zip(saved, f"c{module}\n{name}\n.".encode())

    with artifact_error(f"it would build {module}.{name}, and only plain values are allowed"):
        load_torch_config(saved)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04", b"PK\x05\x06" + b"\x00" * 18, b"\x80\x02}."])
def test_what_is_no_zip_is_an_error(saved, content):
    saved.write_bytes(content)

    with artifact_error("model_artifacts.pth is not a file written by torch.save"):
        load_torch_config(saved)


def test_a_zip_without_a_pickle_is_an_error(saved):
    write_torch_zip(saved, b"", name="archive/other")

    with artifact_error("model_artifacts.pth is not a file written by torch.save"):
        load_torch_config(saved)


@pytest.mark.parametrize("content", [{}, [], {"config": None}, {"config": [1]}, {"hyperparameters": {}}])
def test_a_torch_file_without_config_is_an_error(saved, content):
    write_torch_zip(saved, pickle.dumps(content, 2))

    with artifact_error("model_artifacts.pth holds no “config” dict; save it with"):
        load_torch_config(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"garbage", b"\x80\x02}q\x00."[:-1]])
def test_a_damaged_pickle_in_the_zip_is_an_error(saved, content):
    write_torch_zip(saved, content)

    with artifact_error("model_artifacts.pth"):
        load_torch_config(saved)


def test_a_truncated_zip_is_an_error(saved):
    write_torch_zip(saved, pickle.dumps({"config": CONFIG}, 2))
    content = saved.read_bytes()

    for end in range(0, len(content), 7):
        saved.write_bytes(content[:end])
        with artifact_error("model_artifacts.pth"):
            load_torch_config(saved)


def test_an_encrypted_zip_is_an_error(saved):
    write_torch_zip(saved, pickle.dumps({"config": CONFIG}, 2))
    content = bytearray(saved.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    saved.write_bytes(content)

    with artifact_error("model_artifacts.pth"):
        load_torch_config(saved)


def test_a_zip_whose_names_are_no_text_is_an_error(saved):
    write_torch_zip(saved, pickle.dumps({"config": CONFIG}, 2), name="archivé/data.pkl")
    content = saved.read_bytes()
    saved.write_bytes(content.replace("é".encode(), b"\xff\xff"))

    with artifact_error("model_artifacts.pth"):
        load_torch_config(saved)


def test_a_packed_pickle_that_unpacks_to_gigabytes_is_refused(saved):
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as file:
        for _ in range(65):
            file.write(b"N0" * 512 * 1024)
    assert saved.stat().st_size < 100_000

    with artifact_error("model_artifacts.pth holds more than 67108864 bytes beside its tensors"):
        load_torch_config(saved)
