from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from model_directories import Graph, write_graph
from trimodal.errors import OptimizationError
from trimodal.loading.sessions import Tuning, open_graph
from trimodal.settings import Settings


@pytest.fixture
def graph(tmp_path):
    write_graph(tmp_path / "model.onnx", Graph())
    return tmp_path / "model.onnx"


def test_the_options_that_serve_best():
    options = Tuning.of(Settings(inter_op_threads=1), 3).options("model")

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert not options.enable_profiling


def test_several_operators_at_once_are_run_in_parallel():
    options = Tuning.of(Settings(inter_op_threads=2), 1).options("model")

    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL


@pytest.mark.parametrize(
    ("server", "workers", "threads", "crowded"),
    [
        ("asgi", None, 2, True), ("asgi", 4, 2, True), ("asgi", 1, 2, False), ("asgi", 4, 1, False),
        ("mms", None, 2, False), ("mms", 4, 2, False),
    ],
)  # fmt: skip
def test_encoders_are_opened_twice_where_one_process_works_on_several_requests(server, workers, threads, crowded):
    assert Tuning.of(Settings(server=server, workers=workers), threads).crowded == crowded


def test_a_graph_with_packed_weights_is_not_optimized_again():
    level = Tuning(1).options("model", packed=True).graph_optimization_level

    assert level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_a_graph_is_opened_on_the_cpu(graph):
    assert open_graph(graph, Tuning(1).options("model")).get_providers() == ["CPUExecutionProvider"]


def test_a_provider_that_is_not_there_is_an_error_and_not_the_cpu(graph):
    with pytest.raises(OptimizationError, match="CUDAExecutionProvider is not available"):
        open_graph(graph, Tuning(1).options("model"), ("CUDAExecutionProvider", "CPUExecutionProvider"))


def test_a_graph_that_cannot_be_opened_is_an_error(graph):
    graph.write_bytes(graph.read_bytes()[:100])

    with pytest.raises(OptimizationError, match=r"^model\.onnx cannot be opened by onnxruntime"):
        open_graph(graph, Tuning(1).options("model"))


def test_profiling_writes_a_named_file(graph, tmp_path):
    program = f"""
import tempfile
from pathlib import Path
tempfile.tempdir = {str(tmp_path)!r}
from trimodal.loading.sessions import Tuning, open_graph
open_graph(Path({str(graph)!r}), Tuning(1, profile=True).options("primary"))
"""
    subprocess.run([sys.executable, "-c", program], check=True)

    (profile,) = Path(tmp_path).glob("onnx-profile-primary-*.json")
    assert any(event["name"] == "session_initialization" for event in json.loads(profile.read_text()))
