"""Each failure of the cold start costs one level and never the service; with STRICT_OPTIMIZATION it fails the start.

The optimizing process is a real one; faults get into it by a `sitecustomize.py` on its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_directories import write_model_directory
from trimodal.errors import ArtifactError
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import replay_golden
from trimodal.settings import Settings

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"

PASS = "trimodal.loading.build"
FAULTS = {
    "fusion raises": "import trimodal.loading.build as m\nm.rebuild_encoder = fail\nm._stock = fail",
    "fusion matches nothing": "import trimodal.loading.facts as m\nimport trimodal.loading.passes.encoders as e\n"
    "e.find_encoder = refuse\nimport trimodal.loading.passes.stock as s\ns.fuse_stock = refuse",
    "wrong numbers": "import trimodal.loading.passes.rebuild as m\nright = m.weight\n"
    "m.weight = lambda *a: right(*a) * 1.01\nimport trimodal.loading.build as b\nb._stock = refuse",
    "disk full": "import trimodal.loading.passes.writer as m\nimport errno\n"
    "def full(*a): raise OSError(errno.ENOSPC, 'No space left on device')\nm.GraphWriter.constant = full\n"
    "import trimodal.loading.build as b\nb._stock = full",
    "killed": "import trimodal.loading.build as m\nimport os\ndef die(*a, **k): os.kill(os.getpid(), 9)\n"
    "m.rebuild_encoder = m._stock = die",
    "session creation fails": "import trimodal.loading.opening as m\nm.open_graph = refuse",
}
CAUSES = {
    "fusion raises": "ZeroDivisionError in build",
    "fusion matches nothing": "nothing was found",
    "wrong numbers": "a probability differs by",
    "disk full": "No space left on device",
    "killed": "killed by signal 9, probably for memory",
    "session creation fails": "nothing was found",
}
PRELUDE = """
import sys

def fail(*arguments, **options):
    return 1 / 0

def refuse(*arguments, **options):
    from trimodal.errors import OptimizationError
    raise OptimizationError("nothing was found")

if "trimodal.loading.optimize" in " ".join(sys.orig_argv):
    open({count!r}, "a").write("x")
"""


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "model"
    shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("optimized"))
    return path


@pytest.fixture
def settings(directory, tmp_path):
    return Settings(model_dir=directory, optimized_dir=tmp_path / "cache", workers=1, intra_op_threads=1)


@pytest.fixture
def inject(tmp_path, monkeypatch):
    """Runs lines in the optimizing process before it starts; returns how often one was started."""
    folder = tmp_path / "injected"
    folder.mkdir()
    count = folder / "count"
    count.touch()

    def install(lines=""):
        program = PRELUDE.format(count=str(count)) + textwrap.indent(lines, "    ")
        (folder / "sitecustomize.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return lambda: count.stat().st_size

    return install


def assert_served(settings, level, rung):
    pipeline = load_pipeline(settings)
    assert (pipeline.status["level"], pipeline.status["rung"]) == (level, rung), pipeline.status
    golden = replay_golden(pipeline, settings.model_dir / "golden.jsonl")
    assert golden.refusal is None
    return pipeline.status


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_fusion_is_level_2(settings, inject, fault, caplog):
    started = inject(FAULTS[fault])

    status = assert_served(settings, 2, "tuned")

    cause = status["causes"]["fusion"]
    assert CAUSES[fault] in cause
    assert "Traceback" not in cause
    assert str(settings.model_dir) not in cause
    (record,) = [record for record in caplog.records if record.getMessage() == "lost: fusion"]
    assert (record.fallback_level, record.cause) == (2, cause)
    once = started()
    assert_served(settings, 2, "tuned")
    assert started() == 2 * once  # a failure is never cached

    with pytest.raises(
        ArtifactError, match="STRICT_OPTIMIZATION=true, and something that was asked for is lost: fusion"
    ):
        load_pipeline(replace(settings, strict=True))


def test_a_fault_of_the_quantization_keeps_the_fusion(settings, inject):
    inject("import trimodal.loading.build as m\nm.int8_product = fail")

    status = assert_served(replace(settings, precision="int8"), 1, "rebuild-fp32")

    assert "rebuild-int8-static: ZeroDivisionError in build" in status["causes"]["quantization"]
    with pytest.raises(ArtifactError, match="quantization"):
        load_pipeline(replace(settings, precision="int8", strict=True, optimized_dir=settings.optimized_dir / "other"))


def test_a_slower_candidate_is_declined_and_the_level_stays(settings, inject):
    inject(
        "import time\nimport trimodal.loading.opening as m\nright = m.open_built\n"
        "class Slow:\n"
        "    def __init__(self, runner): self.runner = runner\n"
        "    def run(self, features):\n"
        "        time.sleep(0.02)\n"
        "        return self.runner.run(features)\n"
        "m.open_built = lambda *a, **k: Slow(right(*a, **k))"
    )

    status = assert_served(settings, 1, "tuned")

    assert status["declined"] == ("rebuild-fp32",)
    assert status["causes"] == {}


def test_the_budget_ends_the_optimizing_process(settings, inject):
    inject("import time\nimport trimodal.loading.build as m\nm.rebuild_encoder = lambda *a, **k: time.sleep(60)")

    status = assert_served(replace(settings, budget=2), 2, "tuned")

    assert "over OPTIMIZATION_BUDGET_SECONDS" in str(status["causes"])


def test_a_crash_keeps_what_had_passed(settings, inject):
    started = inject(
        "import os\nimport trimodal.loading.opening as m\nright = m.open_built\n"
        "def open_built(built, *a, **k):\n"
        "    if built.precision == 'int8': os.kill(os.getpid(), 9)\n"
        "    return right(built, *a, **k)\n"
        "m.open_built = open_built"
    )

    status = assert_served(replace(settings, precision="auto"), 1, "rebuild-fp32")

    assert status["causes"] == {}
    assert started() >= 2


def test_the_second_start_takes_the_cache(settings, inject):
    started = inject()
    first = assert_served(settings, 1, "rebuild-fp32")
    inject(FAULTS["fusion raises"])

    assert assert_served(settings, 1, "rebuild-fp32")["entry"] == first["entry"]
    assert started() == 1


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("primary.onnx.data", "head.onnx") for damage in ("torn", "changed", "gone")),
        *(("manifest.json", damage) for damage in ("torn", "gone")),
    ],
)
def test_a_damaged_entry_is_made_again(settings, inject, name, damage):
    started = inject()
    file = Path(assert_served(settings, 1, "rebuild-fp32")["entry"]) / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 0x55
        file.write_bytes(content if damage == "changed" else content[: len(content) // 2])

    assert_served(settings, 1, "rebuild-fp32")

    assert started() == 2


def test_an_entry_that_cannot_be_opened_by_a_worker_is_level_2(settings, tmp_path, inject):
    """Between the main process's check and the worker's start."""
    from trimodal.loading.prepare import prepare

    inject()
    selection = prepare(settings, 1)
    (selection.entry / "primary.onnx").write_bytes(b"")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    selection.write(run_dir)

    status = assert_served(replace(settings, run_dir=run_dir), 2, "tuned")

    assert "primary.onnx cannot be opened" in status["causes"]["level 1"]
    with pytest.raises(ArtifactError, match="level 1 is lost"):
        load_pipeline(replace(settings, run_dir=run_dir, strict=True))


def test_a_prebuilt_model_with_other_weights_is_not_served(settings, inject):
    started = inject()
    baked = replace(settings, optimized_dir=settings.model_dir / "optimized")
    entry = Path(assert_served(baked, 1, "rebuild-fp32")["entry"])
    (entry / "primary.onnx.data").write_bytes(bytes((entry / "primary.onnx.data").stat().st_size))

    assert_served(settings, 1, "rebuild-fp32")

    assert started() == 2


def test_a_changed_model_is_optimized_anew(settings, inject):
    started = inject()
    assert_served(settings, 1, "rebuild-fp32")
    model = onnx.load(settings.model_dir / "model.onnx")
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "final_merge_network.5.bias"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.array([0, 0.5], np.float32), bias.name))
    onnx.save(model, settings.model_dir / "model.onnx")

    pipeline = load_pipeline(settings)  # golden.jsonl is stale now: the default session is the reference

    assert pipeline.status["level"] == 1
    assert started() == 2
    assert "a probability differs" in (replay_golden(pipeline, settings.model_dir / "golden.jsonl").refusal or "")


def test_a_stale_optimized_model_is_never_read(settings):
    (settings.model_dir / "model_optimized.onnx").write_bytes(b"from elsewhere")

    assert_served(settings, 1, "rebuild-fp32")


def test_other_settings_do_not_share_an_entry(settings, inject):
    started = inject()
    assert_served(settings, 1, "rebuild-fp32")
    assert_served(replace(settings, fusion=False), 1, "tuned")
    assert started() == 2


def test_a_provider_that_is_missing_is_level_2(settings):
    status = assert_served(replace(settings, fusion=False, providers=("CUDAExecutionProvider",)), 2, "tuned")

    assert "there is no GPU" in status["causes"]["providers"]


def test_a_directory_that_cannot_be_written_is_level_2(settings, tmp_path):
    (tmp_path / "file").touch()

    status = assert_served(replace(settings, optimized_dir=tmp_path / "file" / "cache"), 2, "tuned")

    assert "OPTIMIZED_MODEL_DIR" in status["causes"]["optimization"]


def test_an_unknown_graph_is_level_2(tmp_path):
    directory = write_model_directory(tmp_path / "model")
    settings = Settings(model_dir=directory, optimized_dir=tmp_path / "cache", workers=1)

    status = load_pipeline(settings).status

    assert (status["level"], status["rung"]) == (2, "tuned")
    assert "the token ids are not looked up in a table of embeddings" in status["causes"]["fusion"]


def test_tuned_options_that_change_the_scores_are_level_3(settings, inject):
    (settings.model_dir / "golden.jsonl").unlink()
    inject(
        "import trimodal.loading.load as m\nright = m.open_model\n"
        "class Off:\n"
        "    def __init__(self, runner): self.runner = runner\n"
        "    def run(self, features): return self.runner.run(features) + 0.1\n"
        "m.open_model = lambda a, p, t=None: Off(right(a, p, t)) if t is not None else right(a, p)"
    )

    pipeline = load_pipeline(settings)

    assert (pipeline.status["level"], pipeline.status["rung"]) == (3, "baseline")
    assert "tuned options change the scores" in pipeline.status["causes"]["optimization"]


def test_a_torn_graph_is_served_by_pytorch(settings):
    graph = settings.model_dir / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:50_000])

    status = assert_served(settings, 4, "pytorch")

    assert "model.onnx cannot be loaded" in status["causes"]["level 3"]
    with pytest.raises(ArtifactError):
        load_pipeline(replace(settings, strict=True))


def test_nothing_usable_is_one_clear_message(settings):
    for name in ("model.onnx", "model.pth"):
        (settings.model_dir / name).write_bytes(b"nothing")

    with pytest.raises(ArtifactError, match=r"^model\.onnx cannot be loaded: it is damaged") as caught:
        load_pipeline(settings)

    assert "\n" not in str(caught.value)


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
    code = str(Path(__file__).parents[2] / "code")
    environ = {
        **os.environ, "SM_MODEL_DIR": str(settings.model_dir), "OPTIMIZED_MODEL_DIR": str(settings.optimized_dir),
        "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], code]),
    }  # fmt: skip
    both = [
        subprocess.Popen([sys.executable, "-c", LOAD], env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]

    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["rebuild-fp32"] * 2
    assert started() == 1
