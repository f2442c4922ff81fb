"""A failure in the optimizing process costs one level and never the service; with STRICT_OPTIMIZATION, the start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model_directories import write_model_directory
from trimodal.loading.load import load_pipeline
from trimodal.settings import Settings

NO_STOCK = "import trimodal.loading.build as m\nm._stock = refuse\nright = m.rebuild_encoder\n"
"""Takes away what comes after the encoders written anew, so that their failure is the end of level 1."""

FULL = """
import os
def full(view, encoder, positions, path, *a, **k):
    os.symlink('/dev/full', f'{path}.data')
    return right(view, encoder, positions, path, *a, **k)
m.rebuild_encoder = full
"""

TAMPERED = """
import numpy
import trimodal.loading.build as m
right = m.int8_product
def tampered(*a, **k):
    product = right(*a, **k)
    return lambda w, i, n, matrix, shift: product(w, i, n, numpy.roll(matrix, 1, 0) * 3, shift)
m.int8_product = tampered
"""

FAULTS = {
    "fusion raises": ("m._stock = m.rebuild_encoder = fail", "rebuild-fp32: ZeroDivisionError in build"),
    "fusion matches nothing": (
        "import trimodal.loading.passes.encoders as e\ne.find_encoder = refuse",
        "stock-fp32: nothing was found",
    ),
    "fusion matches a part": (
        "import dataclasses\nm.rebuild_encoder = lambda *a, **k: dataclasses.replace(right(*a, **k), attention=1)",
        "rebuild-fp32: 2 of 4 layers were rebuilt",
    ),
    "wrong numbers": (
        "import trimodal.loading.passes.rebuild as r\nweight = r.weight\nr.weight = lambda *a: weight(*a) * 1.01",
        "rebuild-fp32: a probability differs by",
    ),
    "no numbers": (
        "import trimodal.loading.passes.rebuild as r\nw = r.weight\nr.weight = lambda *a: w(*a) * float('nan')",
        "rebuild-fp32: The model gave no finite score",
    ),
    "disk full": (
        FULL,
        "rebuild-fp32: No space left on device",
    ),
    "out of memory": (
        "import numpy\nm.rebuild_encoder = lambda *a, **k: numpy.empty(1 << 60, numpy.uint8)",
        "rebuild-fp32: out of memory",
    ),
    "killed": (
        "import os\nm.rebuild_encoder = lambda *a, **k: os.kill(os.getpid(), 9)",
        "rebuild-fp32: killed by signal 9, probably for memory",
    ),
    "crash": (
        "import os\nm.rebuild_encoder = lambda *a, **k: os.kill(os.getpid(), 11)",
        "rebuild-fp32: killed by signal 11",
    ),
    "session creation fails": (
        "import trimodal.loading.passes.rebuild as r\nr.MICROSOFT = 'com.nobody'",
        "rebuild-fp32: primary.onnx cannot be opened by onnxruntime",
    ),
    "the process does not start": ("import os\nos._exit(3)", "the optimizing process ended with status 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_fusion_is_level_2(settings, inject, served, refused, fault):
    lines, expected = FAULTS[fault]
    started = inject(NO_STOCK + lines)

    status = served(settings, 2, "tuned")

    (cause,) = status["causes"].values()
    assert expected in cause
    once = started()
    assert served(settings, 2, "tuned")["causes"] == status["causes"]
    assert started() == 2 * once  # a failure is never cached
    refused(replace(settings, strict=True), "something that was asked for is lost", expected)

    inject()
    assert served(settings, 1, "rebuild-fp32")["causes"] == {}


def test_encoders_that_cannot_be_written_anew_are_left_to_the_stock_fusion(settings, inject, served):
    inject("import trimodal.loading.build as m\nm.rebuild_encoder = fail")

    status = served(settings, 1, "tuned" if _stock_declined(settings) else "stock-fp32")

    assert status["causes"] == {}
    assert "- rebuild-fp32: ZeroDivisionError in build" in status["report"]


def _stock_declined(settings):
    """Tells whether this host runs the stock fusion slower than the graph as it is."""
    return "stock-fp32" in load_pipeline(settings).status["declined"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "import trimodal.loading.build as m\nm.int8_product = fail",
            "rebuild-int8-static: ZeroDivisionError in build",
        ),
        (TAMPERED, "rebuild-int8-static: "),
    ],
    ids=["raises", "wrong numbers"],
)
def test_a_fault_of_the_quantization_keeps_the_fusion(settings, inject, served, refused, *, lines, expected):
    inject(lines)
    settings = replace(settings, precision="int8")

    status = served(settings, 1, "rebuild-fp32")

    assert status["precision"] == "fp32"
    assert list(status["causes"]) == ["quantization"]
    assert expected in status["causes"]["quantization"]
    assert served(settings, 1, "rebuild-fp32")["causes"] == status["causes"]  # told again from the cache
    refused(replace(settings, strict=True), "quantization: ", expected)


def test_a_slower_candidate_is_declined_and_nothing_is_lost(settings, inject, served):
    inject(
        "import time\nimport trimodal.loading.opening as m\nright = m.open_built\n"
        "class Slow:\n"
        "    def __init__(self, runner): self.runner = runner\n"
        "    def run(self, features):\n"
        "        time.sleep(0.02)\n"
        "        return self.runner.run(features)\n"
        "m.open_built = lambda *a, **k: Slow(right(*a, **k))"
    )

    status = served(replace(settings, strict=True), 1, "tuned")

    assert status["declined"] == ("rebuild-fp32",)
    assert status["causes"] == {}
    assert "| rebuild-fp32 | declined | 4/4 |" in status["report"]


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ("import trimodal.loading.build as m\nm.rebuild_encoder = slow", "over OPTIMIZATION_BUDGET_SECONDS"),
        ("import trimodal.loading.load as m\nm.open_model = slow", "over OPTIMIZATION_BUDGET_SECONDS"),
    ],
    ids=["in a pass", "in the reference"],
)
def test_the_budget_ends_the_optimizing_process(settings, inject, served, refused, *, place, cause):
    inject(f"import time\nslow = lambda *a, **k: time.sleep(60)\n{place}")
    settings = replace(settings, budget=2)

    status = served(settings, 2, "tuned")

    assert cause in str(status["causes"])
    refused(replace(settings, strict=True), cause)


@pytest.mark.parametrize("signal", [9, 11])
def test_a_crash_keeps_what_had_passed(settings, inject, served, signal):
    started = inject(
        "import os\nimport trimodal.loading.opening as m\nright = m.open_built\n"
        "def open_built(built, *a, **k):\n"
        f"    if built.precision == 'int8': os.kill(os.getpid(), {signal})\n"
        "    return right(built, *a, **k)\n"
        "m.open_built = open_built"
    )

    status = served(replace(settings, precision="auto"), 1, "rebuild-fp32")

    assert status["causes"] == {}
    assert f"- rebuild-int8-static: killed by signal {signal}" in status["report"]
    assert started() >= 2


def test_an_unknown_graph_is_level_2(tmp_path, served, refused):
    """A bag of words: there is no BERT in it."""
    directory = write_model_directory(tmp_path / "unknown")
    settings = Settings(model_dir=directory, optimized_dir=tmp_path / "cache", workers=1)

    status = served(settings, 2, "tuned")

    cause = "the token ids are not looked up in a table of embeddings"
    assert cause in status["causes"]["fusion"]
    refused(replace(settings, strict=True), "fusion: ", cause)
