from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

import inference
from trimodal.servers import mms

OURS = ("SAGEMAKER_", "SM_", "ONNX_", "TRIMODAL_", "SCORE_", "RESPONSE_", "LOG_", "MODEL_")


@pytest.fixture
def environment(monkeypatch):
    """An environment in which none of our variables is set; returns a function that sets some."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ONNX_INTRA_OP_THREADS", "1")
    inference._settings.cache_clear()

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        inference._settings.cache_clear()

    yield change
    inference._settings.cache_clear()


@pytest.fixture
def fresh_process(monkeypatch, tmp_path):
    """Undoes what a worker does to its process: its path, modules, models and log."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(mms, "_services", {})
    root = logging.getLogger()
    handlers, level, modules = list(root.handlers), root.level, set(sys.modules)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and tmp_path in Path(file).parents:
            del sys.modules[name]
