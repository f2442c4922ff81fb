"""The GPU's rungs; they need an NVIDIA GPU and requirements/serve-gpu.txt."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime
import pytest

from trimodal.loading.hardware import find_gpu
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import replay_golden
from trimodal.settings import Settings

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_gpu() is None, reason="there is no GPU here"),
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="onnxruntime-gpu is not installed (requirements/serve-gpu.txt)",
    ),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "auto"])
@pytest.mark.parametrize("tensorrt", [False, True])
def test_the_gpu_gives_the_recorded_scores(tmp_path, precision, tensorrt):
    shutil.copytree(DEMO, tmp_path / "model", ignore=shutil.ignore_patterns("optimized"))
    settings = Settings(model_dir=tmp_path / "model", precision=precision, tensorrt=tensorrt, strict=True)

    pipeline = load_pipeline(settings)

    assert pipeline.status["level"] == 1
    assert replay_golden(pipeline, DEMO / "golden.jsonl").refusal is None
