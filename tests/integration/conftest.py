"""The cold start with a real optimizing process; faults get into it by a `sitecustomize.py` on its path."""

from __future__ import annotations

import logging
import shutil
import textwrap
from pathlib import Path

import pytest

from trimodal.errors import ArtifactError
from trimodal.loading.load import load_pipeline
from trimodal.loading.verify import replay_golden
from trimodal.settings import Settings

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"

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
    """A copy of the demo model."""
    path = tmp_path / "model"
    shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("optimized"))
    return path


@pytest.fixture
def settings(directory, tmp_path):
    return Settings(model_dir=directory, optimized_dir=tmp_path / "cache", workers=1, intra_op_threads=1)


@pytest.fixture
def inject(tmp_path, monkeypatch):
    """Runs lines in the optimizing process before it starts; returns what counts how often one was started."""
    folder = tmp_path / "injected"
    folder.mkdir()
    count = folder / "count"
    count.touch()

    def install(lines=""):
        program = PRELUDE.format(count=str(count)) + textwrap.indent(lines, "    ")
        (folder / "sitecustomize.py").write_text(program)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # its check of times sees whole seconds only
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return lambda: count.stat().st_size

    return install


@pytest.fixture
def served(caplog, tmp_path):
    """Loads a model directory as a worker does: `served(settings, level, rung)` returns the status.

    Whatever the level: the recorded scores come out, and each cause is one readable line that was logged as a warning.
    """

    def load(settings, level, rung):
        caplog.clear()
        pipeline = load_pipeline(settings)
        status = pipeline.status
        assert (status["level"], status["rung"]) == (level, rung), status
        assert (status["entry"] is None) == (rung in ("tuned", "baseline", "pytorch"))
        golden = settings.model_dir / "golden.jsonl"
        if golden.is_file():
            comparison = replay_golden(pipeline, golden)
            assert (comparison.refusal, comparison.records) == (None, 64)
        warned = [record for record in caplog.records if record.levelno == logging.WARNING]
        for cause in status["causes"].values():
            assert cause.strip()
            assert not [part for part in ("\n", "Traceback", str(tmp_path)) if part in cause], cause
            assert cause in [getattr(record, "cause", None) for record in warned]
        assert all(getattr(record, "fallback_level", level) <= level for record in warned)
        assert not any(record.exc_info for record in caplog.records)
        return status

    return load


@pytest.fixture
def refused():
    """Expects a start to fail for STRICT_OPTIMIZATION, with one line that holds the words."""

    def load(settings, *words):
        with pytest.raises(ArtifactError) as caught:
            load_pipeline(settings)
        message = str(caught.value)
        assert message.startswith("STRICT_OPTIMIZATION=true, and ")
        assert [word for word in words if word not in message] == [], message
        assert "\n" not in message

    return load
