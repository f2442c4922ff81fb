"""Exports of one tiny network by every exporter, each made once."""

from __future__ import annotations

import functools
import importlib.util

import pytest

EXPORTERS = [f"{attention}-{opset}" for attention in ("eager", "sdpa") for opset in (14, 17, 20)]


@pytest.fixture(scope="session")
def make_export(tmp_path_factory):
    """Returns an exported network by its exporter's name."""
    pytest.importorskip("torch", reason="torch is not installed: the PyTorch level is optional")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tiny_networks import export_network

    @functools.cache
    def make(exporter):
        if exporter == "dynamo" and importlib.util.find_spec("onnxscript") is None:
            pytest.skip("onnxscript is not installed, and torch.onnx.export(dynamo=True) needs it")
        return export_network(exporter, tmp_path_factory.mktemp(exporter) / "model.onnx")

    return make


@pytest.fixture(scope="session", params=[*EXPORTERS, "dynamo"])
def export(request, make_export):
    """The network, by each exporter."""
    return make_export(request.param)


@pytest.fixture(scope="session")
def plain(make_export):
    """The network, as the product exports it."""
    return make_export("eager-17")
