"""What was made once is used again where it is right, and never where it is damaged, of another host, or unproven."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from trimodal.loading import prepare
from trimodal.loading.bake import bake
from trimodal.loading.hardware import detect
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import replay_golden

CODE = Path(__file__).parents[2] / "code"

FAULT = "import trimodal.loading.build as m\nm._stock = m.rebuild_encoder = fail"


def damage(file, how):
    """Tears a file, flips a byte of it, or removes it."""
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
        return
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content if how == "changed" else content[: len(content) // 2])


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system: `mounted(name, *options)`; skips where that is not allowed."""
    places = []

    def mount(name, *options):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A directory for temporary files of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_second_start_takes_the_cache(settings, inject, served):
    started = inject()
    first = served(settings, 1, "rebuild-fp32")
    inject(FAULT)

    assert served(replace(settings, strict=True), 1, "rebuild-fp32")["entry"] == first["entry"]
    assert started() == 1


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("primary.onnx.data", "head.onnx") for how in ("torn", "changed", "gone")),
        *(("manifest.json", how) for how in ("torn", "gone")),
    ],
)
def test_a_damaged_entry_is_made_again(settings, inject, served, caplog, *, name, how):
    started = inject()
    damage(Path(served(settings, 1, "rebuild-fp32")["entry"]) / name, how)

    assert served(replace(settings, strict=True), 1, "rebuild-fp32")["causes"] == {}

    assert started() == 2
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("an optimized model in the cache is ")]


def test_a_damaged_entry_that_cannot_be_made_again_is_level_2(settings, inject, served, refused):
    inject()
    damage(Path(served(settings, 1, "rebuild-fp32")["entry"]) / "secondary.onnx.data", "changed")
    inject(FAULT)

    assert "ZeroDivisionError in build" in served(settings, 2, "tuned")["causes"]["fusion"]
    refused(replace(settings, strict=True), "fusion: ")


@pytest.mark.parametrize("how", ["torn", "changed"])
def test_a_damaged_prebuilt_model_is_not_served(settings, inject, served, how):
    started = inject()
    selection = bake(settings, None)
    damage(selection.entry / "primary.onnx.data", how)

    entry = served(settings, 1, "rebuild-fp32")["entry"]

    assert Path(entry).parent == settings.optimized_dir
    assert started() == 2


def elsewhere(manifest):
    manifest["built"]["head"] = "../../../head.onnx"


def unlisted(manifest):
    del manifest["files"]["head.onnx"]


def plugin(manifest):
    manifest["built"]["profile"] = {"trt_extra_plugin_lib_paths": "/opt/ml/model/evil.so"}


def absurd(manifest):
    manifest["built"]["layout"]["primary"]["tokens"] = 10**9


def typed(manifest):
    manifest["built"]["layout"]["primary"]["dtype"] = "U1000000"


def formless(manifest):
    manifest["causes"] = "none"


def probed(manifest):
    manifest["probes"] = [[0.5], [0.5, 0.5]]


@pytest.mark.parametrize("change", [elsewhere, unlisted, plugin, absurd, typed, formless, probed])
def test_a_prebuilt_model_of_a_stranger_cannot_lead_elsewhere(settings, inject, change):
    inject()
    entry = bake(settings, None).entry
    shutil.copy(entry / "head.onnx", settings.model_dir.parent / "head.onnx")
    manifest = json.loads((entry / "manifest.json").read_text())
    change(manifest)
    (entry / "manifest.json").write_text(json.dumps(manifest))

    status = load_pipeline(settings).status

    assert (status["level"], status["rung"]) == (2, "tuned")
    assert not [cause for cause in status["causes"].values() if str(settings.model_dir) in cause]


def test_a_report_that_a_manifest_does_not_list_is_not_shown(settings, inject):
    inject()
    entry = bake(settings, None).entry
    manifest = json.loads((entry / "manifest.json").read_text())
    del manifest["files"]["report.md"]
    (entry / "manifest.json").write_text(json.dumps(manifest))

    assert load_pipeline(settings).status["report"] == ""


def test_a_prebuilt_model_is_served_from_a_read_only_directory(settings, inject, served, mounted):
    started = inject()
    selection = bake(settings, None)
    mounted("mounted", "--bind", "-o", "ro", settings.model_dir)
    mount = settings.model_dir.parent / "mounted"

    assert served(replace(settings, model_dir=mount), 1, "rebuild-fp32")["entry"] == str(
        mount / "optimized" / selection.entry.name
    )
    assert started() == 1


def test_a_changed_model_is_optimized_anew(settings, inject):
    started = inject()
    load_pipeline(settings)
    model = onnx.load(settings.model_dir / "model.onnx")
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "final_merge_network.5.bias"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.array([0, 0.5], np.float32), bias.name))
    onnx.save(model, settings.model_dir / "model.onnx")

    pipeline = load_pipeline(settings)  # golden.jsonl is stale now: the default session is the reference

    assert pipeline.status["level"] == 1
    assert started() == 2
    assert "a probability differs" in (replay_golden(pipeline, settings.model_dir / "golden.jsonl").refusal or "")


@pytest.mark.parametrize("content", ["garbage", "another model"])
def test_a_stale_optimized_model_is_never_read(settings, inject, served, content):
    started = inject()
    stale = settings.model_dir / "model_optimized.onnx"
    stale.write_bytes(b"from elsewhere" if content == "garbage" else (settings.model_dir / "model.onnx").read_bytes())
    before = stale.read_bytes()

    first = served(settings, 1, "rebuild-fp32")
    stale.write_bytes(b"changed")

    assert served(settings, 1, "rebuild-fp32")["entry"] == first["entry"]
    assert before != stale.read_bytes() == b"changed"
    assert started() == 1


def test_other_settings_do_not_share_an_entry(settings, inject, served):
    started = inject()
    served(settings, 1, "rebuild-fp32")
    served(replace(settings, fusion=False), 1, "tuned")
    assert started() == 2


def test_another_processor_does_not_share_an_entry(settings, inject, served, tmp_path, monkeypatch):
    started = inject()
    first = served(settings, 1, "rebuild-fp32")
    (tmp_path / "proc").mkdir()
    shutil.copy("/proc/meminfo", tmp_path / "proc" / "meminfo")
    (tmp_path / "proc" / "cpuinfo").write_text("vendor_id : AuthenticAMD\nmodel name : another\nflags : avx2\n")
    monkeypatch.setattr(prepare, "detect", partial(detect, tmp_path))

    assert served(settings, 1, "rebuild-fp32")["entry"] != first["entry"]
    assert started() == 2


def test_another_library_version_does_not_share_an_entry(settings, inject, served, tmp_path, monkeypatch):
    started = inject()
    first = served(settings, 1, "rebuild-fp32")
    info = tmp_path / "site" / "numpy-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(info.parent))

    assert served(settings, 1, "rebuild-fp32")["entry"] != first["entry"]
    assert started() == 2


def test_a_model_directory_that_cannot_be_written_leads_to_the_temporary_files(settings, inject, served, temporary):
    started = inject()
    (settings.model_dir / "optimized").touch()  # in the way of the directory, for root too
    settings = replace(settings, optimized_dir=None)

    assert Path(served(settings, 1, "rebuild-fp32")["entry"]).is_relative_to(temporary)
    served(settings, 1, "rebuild-fp32")
    assert started() == 1


def test_a_read_only_model_directory_leads_to_the_temporary_files(settings, inject, served, temporary, mounted):
    inject()
    mounted("mounted", "--bind", "-o", "ro", settings.model_dir)
    settings = replace(settings, model_dir=settings.model_dir.parent / "mounted", optimized_dir=None)

    assert Path(served(settings, 1, "rebuild-fp32")["entry"]).is_relative_to(temporary)


def test_a_directory_that_cannot_be_written_is_level_2(settings, tmp_path, refused):
    (tmp_path / "file").touch()
    settings = replace(settings, optimized_dir=tmp_path / "file" / "cache")

    status = load_pipeline(settings).status

    assert (status["level"], status["rung"]) == (2, "tuned")
    assert status["causes"]["optimization"].endswith(
        "/cache is not writable; mount it writable or set OPTIMIZED_MODEL_DIR."
    )
    refused(replace(settings, strict=True), "OPTIMIZED_MODEL_DIR")


@pytest.mark.parametrize(
    ("size", "words"), [("64k", "of free space; mount a larger volume"), ("4m", "No space left on device")]
)
def test_a_full_disk_is_level_2(settings, inject, mounted, refused, *, size, words):
    """Too small from the first, or filled by another while the optimizing process works."""
    disk = mounted("disk", "-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    inject(
        "import trimodal.loading.build as m\nright = m.rebuild_encoder\n"
        "def fill(*a, **k):\n"
        f"    with open({str(disk / 'other')!r}, 'wb', buffering=0) as file:\n"
        "        try:\n"
        "            while file.write(bytes(65536)): pass\n"
        "        except OSError: pass\n"
        "    return right(*a, **k)\n"
        "m.rebuild_encoder = fill"
    )
    settings = replace(settings, optimized_dir=disk)

    pipeline = load_pipeline(settings)

    assert (pipeline.status["level"], pipeline.status["rung"]) == (2, "tuned")
    assert words in str(pipeline.status["causes"])
    assert replay_golden(pipeline, settings.model_dir / "golden.jsonl").refusal is None
    (disk / "other").unlink(missing_ok=True)
    assert not [path for path in disk.iterdir() if path.name.startswith(".draft") and path.is_dir()]
    refused(replace(settings, strict=True), words)


LOAD = """
import os
from trimodal.loading.load import load_pipeline
from trimodal.settings import Settings
print(load_pipeline(Settings.from_environment(os.environ)).status["rung"])
"""


def test_two_that_start_together_optimize_once(settings, inject):
    started = inject(
        "import time\nimport trimodal.loading.build as m\nright = m.rebuild_encoder\n"
        "def slow(*a, **k):\n"
        "    time.sleep(0.5)\n"
        "    return right(*a, **k)\n"
        "m.rebuild_encoder = slow"
    )
    environ = {
        **os.environ, "SM_MODEL_DIR": str(settings.model_dir), "OPTIMIZED_MODEL_DIR": str(settings.optimized_dir),
        "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(CODE)]),
    }  # fmt: skip
    both = [
        subprocess.Popen([sys.executable, "-c", LOAD], env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]

    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["rebuild-fp32"] * 2
    assert started() == 1
