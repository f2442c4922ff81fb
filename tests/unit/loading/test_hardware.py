from __future__ import annotations

import json
import os

import pytest

from trimodal.loading.hardware import (
    FEATURES,
    MIB,
    Hardware,
    choose_threads,
    choose_workers,
    detect,
    no_gpu,
    thread_count,
    worker_count,
)
from trimodal.settings import Settings

GIB = 1024 * MIB
V2_CPU, V2_MEMORY = "sys/fs/cgroup/cpu.max", "sys/fs/cgroup/memory.max"
V1_QUOTA, V1_PERIOD = "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us"
V1_MEMORY = "sys/fs/cgroup/memory/memory.limit_in_bytes"
GROUP = "proc/self/cgroup"
MEMINFO = "proc/meminfo"
CPUINFO = "proc/cpuinfo"
MACHINE = {MEMINFO: "MemFree:         111 kB\nMemTotal:       16777216 kB\n"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Detects the hardware of a machine of eight cores with the given files."""
    # the one fact that no file holds; a process cannot give itself cores that it does not have
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def found(files):
        for name, content in (MACHINE | files).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return detect(tmp_path, no_gpu)

    return found


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 8, 16 * GIB),
        ({V2_CPU: "max 100000\n", V2_MEMORY: "max\n"}, 8, 16 * GIB),
        ({V2_CPU: "200000 100000\n", V2_MEMORY: f"{2 * GIB}\n"}, 2, 2 * GIB),
        ({V2_CPU: "50000 100000\n"}, 1, 16 * GIB),
        ({V2_CPU: "150000 100000\n"}, 2, 16 * GIB),
        ({V2_CPU: "6400000 100000\n"}, 8, 16 * GIB),
        ({V2_MEMORY: f"{64 * GIB}\n"}, 8, 16 * GIB),
        ({V1_QUOTA: "-1\n", V1_PERIOD: "100000\n", V1_MEMORY: "9223372036854771712\n"}, 8, 16 * GIB),
        ({V1_QUOTA: "300000\n", V1_PERIOD: "100000\n", V1_MEMORY: f"{GIB}\n"}, 3, GIB),
        ({V1_QUOTA: "25000\n", V1_PERIOD: "100000\n"}, 1, 16 * GIB),
        ({V1_QUOTA: "300000\n", V1_PERIOD: "0\n"}, 8, 16 * GIB),
        ({V1_QUOTA: "300000\n"}, 8, 16 * GIB),
        ({V2_CPU: "garbage\n", V2_MEMORY: "\n"}, 8, 16 * GIB),
        ({V2_CPU: "100000 100000\n", V1_QUOTA: "400000\n", V1_PERIOD: "100000\n"}, 1, 16 * GIB),
    ],
)
def test_limits_of_the_control_group(machine, files, cores, memory):
    assert machine(files) == Hardware(cores, memory)


def test_without_any_file_the_operating_system_is_asked(tmp_path):
    found = detect(tmp_path, no_gpu)

    assert found == Hardware(len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def below(group, *limits):
    """Files that limit a control group and those above it; each limit is (cores, bytes), from the top down."""
    files, names = {}, ["", *group.strip("/").split("/")]
    for depth, (cores, memory) in enumerate(limits):
        folder = "/".join(["sys/fs/cgroup", *names[1 : depth + 1]])
        files |= {f"{folder}/cpu.max": f"{cores * 100000} 100000\n", f"{folder}/memory.max": f"{memory}\n"}
    return files


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        # version 2: the group of the process, one above it, the top
        ({GROUP: "0::/a/b\n"} | below("/a/b", (7, 9 * GIB), (6, 8 * GIB), (2, GIB)), 2, GIB),
        ({GROUP: "0::/a/b\n"} | below("/a/b", (7, 9 * GIB), (3, 2 * GIB), (6, 8 * GIB)), 3, 2 * GIB),
        ({GROUP: "0::/a/b\n"} | below("/a/b", (4, 3 * GIB), (5, 5 * GIB), (6, 8 * GIB)), 4, 3 * GIB),
        ({GROUP: "0::/a/b\n"} | below("/a/c", (7, 9 * GIB), (6, 8 * GIB), (2, GIB)), 6, 8 * GIB),
        ({GROUP: "0::/\n"} | below("/a", (7, 9 * GIB), (2, GIB)), 7, 9 * GIB),
        ({GROUP: "0::/../../a\n"} | below("/a", (7, 9 * GIB), (2, GIB)), 7, 9 * GIB),
        ({GROUP: "0::/a\n", "sys/fs/cgroup/unified/a/memory.max": f"{GIB}\n"}, 8, GIB),
        # version 1: a path for each controller
        (
            {
                GROUP: "5:memory:/docker/x\n4:cpu,cpuacct:/docker/y\n1:name=systemd:/docker/z\n0::/\n",
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/docker/y/memory.limit_in_bytes": "1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_period_us": "100000\n",
            },
            2,
            GIB,
        ),
        # version 1 without a namespace, as containers mount it: the container's own group is the top
        ({GROUP: "5:memory:/docker/x\n", V1_MEMORY: f"{GIB}\n"}, 8, GIB),
        ({GROUP: "garbage\n\n:\n5:memory\n0::relative\n"}, 8, 16 * GIB),
    ],
)
def test_the_tightest_limit_up_the_hierarchy_of_control_groups_counts(machine, files, cores, memory):
    assert machine(files) == Hardware(cores, memory)


XEON = "model name\t: Intel(R) Xeon(R) Platinum 8488C\nvendor_id\t: GenuineIntel\nflags\t\t: fpu {}\n\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "vendor", "features"),
    [
        (XEON.format("avx2 avx512f avx512_vnni"), "Intel(R) Xeon(R) Platinum 8488C", "GenuineIntel",
         ("avx2", "avx512_vnni", "avx512f")),
        (XEON.format("avx2 amx_tile amx_int8") + XEON.format("avx2 amx_tile"), "Intel(R) Xeon(R) Platinum 8488C",
         "GenuineIntel", ("amx_tile", "avx2")),
        (GRAVITON.format("i8mm bf16 sve") * 2, "ARM 0xd40", "ARM", ("asimd", "bf16", "i8mm")),
        ("Features : asimd\nCPU implementer : 0x51\n", "0x51", "0x51", ("asimd",)),
        ("no colon\n: \nflags\n", "", "", ()),
        ("", "", "", ()),
    ],
)  # fmt: skip
def test_processor_vendor_and_the_features_of_every_core(machine, cpuinfo, processor, vendor, features):
    found = machine({CPUINFO: cpuinfo})

    assert (found.processor, found.vendor, found.features) == (processor, vendor, features)


@pytest.mark.parametrize(
    ("features", "vnni", "bf16", "amx"),
    [
        ((), False, False, False),
        (("avx2", "avx512f", "asimd"), False, False, False),
        (("avx512_vnni",), True, False, False),
        (("avx_vnni",), True, False, False),
        (("avx512_bf16",), False, True, False),
        (("amx_bf16", "amx_int8", "amx_tile"), True, True, True),
        (("i8mm",), True, False, False),
        (("bf16",), False, True, False),
    ],
)
def test_what_the_features_allow(features, vnni, bf16, amx):
    found = Hardware(1, GIB, features=features)

    assert (found.has_vnni, found.has_bf16, found.has_amx) == (vnni, bf16, amx)


def test_this_machine():
    found = detect()

    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.vendor
    assert FEATURES.issuperset(found.features)
    assert json.loads(json.dumps(found.to_json()))["features"] == list(found.features)


@pytest.mark.parametrize(
    ("cores", "memory", "model", "workers"),
    [
        (1, 16 * GIB, 10 * MIB, 1),
        (2, 16 * GIB, 10 * MIB, 1),
        (3, 16 * GIB, 10 * MIB, 1),
        (4, 16 * GIB, 10 * MIB, 2),
        (16, 64 * GIB, 10 * MIB, 8),
        (16, 8 * GIB, 900 * MIB, 3),  # (8192 - 400) / (2 × 900 + 200)
        (16, 1 * GIB, 900 * MIB, 1),
        (16, 100 * MIB, 10 * MIB, 1),
        (8, 400 * MIB + 2 * 220 * MIB, 10 * MIB, 2),
        (8, 400 * MIB + 2 * 220 * MIB - 1, 10 * MIB, 1),
    ],
)
def test_workers_by_cores_and_memory(cores, memory, model, workers):
    assert choose_workers(Hardware(cores, memory), model) == workers


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [(1, 1, 1), (2, 1, 2), (4, 1, 4), (8, 1, 4), (64, 1, 4), (8, 4, 2), (8, 3, 2), (4, 3, 1), (2, 8, 1)],
)
def test_threads_are_the_share_of_a_worker_and_at_most_four(cores, workers, threads):
    assert choose_threads(Hardware(cores, GIB), workers) == threads


@pytest.fixture
def model(tmp_path):
    """A model directory: a graph that says nothing, with its weights beside it."""
    (tmp_path / "model.onnx").write_bytes(b"\0" * 1000)
    (tmp_path / "model.onnx.data").write_bytes(b"\0" * 2000)
    return tmp_path


def test_workers_and_threads_are_as_told(model):
    settings = Settings(model_dir=model, workers=7, intra_op_threads=3)

    assert (worker_count(settings), thread_count(settings)) == (7, 3)


def test_else_they_follow_from_the_machine(model):
    settings = Settings(model_dir=model, workers=None, intra_op_threads=None)
    workers = choose_workers(detect(), 3000)

    assert worker_count(settings) == workers
    assert thread_count(settings) == choose_threads(detect(), workers)


def test_one_of_several_models_has_one_worker_unless_told_otherwise(model):
    assert worker_count(Settings(model_dir=model, multi_model=True)) == 1
    assert worker_count(Settings(model_dir=model, multi_model=True, workers=3)) == 3


def test_threads_are_the_share_of_as_many_workers_as_told(model):
    assert thread_count(Settings(model_dir=model, workers=10_000, intra_op_threads=None)) == 1
