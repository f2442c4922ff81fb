"""The same request gets the same bytes of each worker and server, after a restart, with a cold and a warm cache."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

pytestmark = pytest.mark.parametrize("kind", ["mms"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def copy(model_dir, tmp_path_factory):
    """A copy of the demo model without an optimized one."""
    place = tmp_path_factory.mktemp("copy") / "model"
    return shutil.copytree(model_dir, place, ignore=shutil.ignore_patterns("optimized"))


def answers(server, records):
    """Bytes for each record alone, several at once and again and again; each must be one and the same."""
    bodies = [json.dumps(record) for record in records]
    with ThreadPoolExecutor(4) as clients:
        rounds = [list(clients.map(lambda body: server.post(body).body, bodies)) for _ in range(3)]
    assert rounds[0] == rounds[1] == rounds[2]
    return rounds[0]


def used(pid):
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_workers_restarts_caches_and_servers_give_the_same_bytes(start, copy, golden):
    records = [item["record"] for item in golden]
    cold = start(copy, SAGEMAKER_MODEL_SERVER_WORKERS="2", ONNX_INTRA_OP_THREADS="1")
    workers = cold.get("/ping").json["workers"]
    before = {pid: used(pid) for pid in cold.workers()}

    first = answers(cold, records)

    assert workers == 2
    assert len([pid for pid, time in before.items() if used(pid) > time]) >= 2, "one worker has answered everything"
    assert all(b'"predictions"' in body for body in first)
    together = json.loads(cold.post(json.dumps(records)).body)["predictions"]
    assert [{"predictions": [row]} for row in together] == [json.loads(body) for body in first]
    assert cold.terminate() == 0

    for environ in (
        {"SAGEMAKER_MODEL_SERVER_WORKERS": "2", "ONNX_INTRA_OP_THREADS": "1"},
        {"MODEL_SERVER": "asgi", "ONNX_INTRA_OP_THREADS": "1", "ENCODER_CACHE_ENTRIES": "0"},
    ):
        again = start(copy, **environ)
        assert answers(again, records) == first
        assert "optimized model found in the cache" in again.log_text
        assert again.terminate() == 0
