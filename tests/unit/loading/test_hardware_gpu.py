from __future__ import annotations

from importlib import metadata

import pytest

from trimodal.loading import hardware
from trimodal.loading.hardware import LIBRARIES, MIB, Gpu, detect, find_gpu, libraries


@pytest.fixture
def tool(tmp_path):
    """Writes a program that stands in for the driver's tool; returns its path."""

    def write(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


ANSWER = "NVIDIA A10G, 23028 MiB, 550.163.01, 8.6"


def test_the_gpu_is_the_first_that_the_drivers_tool_names(tool):
    gpu = Gpu("NVIDIA A10G", 23028 * MIB, "550.163.01", "8.6")

    assert find_gpu(tool(f"echo '{ANSWER}'")) == gpu
    assert find_gpu(tool(f"echo '{ANSWER}'; echo 'NVIDIA L4, 1 MiB, 1, 8.9'")) == gpu


def test_the_drivers_tool_is_asked_for_name_memory_driver_and_capability(tool, tmp_path):
    find_gpu(tool(f"echo \"$@\" > '{tmp_path}/asked'"))

    asked = (tmp_path / "asked").read_text()
    assert asked == "--query-gpu=name,memory.total,driver_version,compute_cap --format=csv,noheader\n"


def test_a_gpu_that_shares_the_machines_memory_has_none_of_its_own(tool):
    assert find_gpu(tool("echo 'NVIDIA GB10, [N/A], 580.95, 12.1'")) == Gpu("NVIDIA GB10", 0, "580.95", "12.1")


@pytest.mark.parametrize(
    "script",
    [
        "echo 'No devices were found'",
        "",
        f"echo '{ANSWER}'; exit 9",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
        "printf '\\377, 1 MiB, 1, 1'",
        "kill -9 $$",
    ],
)
def test_a_tool_without_a_usable_answer_means_no_gpu(tool, script):
    assert find_gpu(tool(script)) is None


def test_no_tool_or_one_that_cannot_be_run_means_no_gpu(tmp_path):
    path = tmp_path / "nvidia-smi"
    assert find_gpu(str(path)) is None

    path.write_bytes(b"\x7fELF is cut off")
    path.chmod(0o755)
    assert find_gpu(str(path)) is None


def test_a_tool_that_hangs_is_not_waited_for(tool, monkeypatch):
    monkeypatch.setattr(hardware, "_GPU_SECONDS", 0.2)

    assert find_gpu(tool(f"sleep 5; echo '{ANSWER}'")) is None


def test_what_finds_the_gpu_is_asked_once(tmp_path):
    gpu, asked = Gpu("NVIDIA L4", 24 * 1024 * MIB, "550", "8.9"), []

    assert detect(tmp_path, lambda: asked.append(1) or gpu).gpu is gpu
    assert asked == [1]


def test_versions_of_the_libraries_that_are_installed():
    found = libraries()

    assert set(found) <= set(LIBRARIES)
    assert {"numpy", "onnx", "tokenizers"} <= set(found)
    assert all(found[name] == metadata.version(name) for name in found)


def test_a_library_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(hardware, "LIBRARIES", ("numpy", "no-such-distribution"))

    assert list(libraries()) == ["numpy"]
