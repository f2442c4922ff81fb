"""Several models in one container: what SageMaker asks of it when `SAGEMAKER_MULTI_MODEL=true`."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_directories import RECORD, edit_graph, write_model_directory
from trimodal.loading.load import load_pipeline
from trimodal.serving.decode import decode
from trimodal.settings import Settings

pytestmark = pytest.mark.parametrize("kind", ["mms"], indirect=True, scope="module")

NAMES = ("demo", "one", "other")
SLOW = """
import time
def predict_fn(data, model):
    time.sleep(1.5)
    return model.predict(data)
"""
GREEDY = """
import resource
def model_fn(model_dir):
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    return bytearray(2**31)
"""
ENDLESS = """
import time
def model_fn(model_dir):
    time.sleep(100)
"""


def negate(model):
    """Makes a model that prefers the other class."""
    (weight,) = (item for item in model.graph.initializer if item.name == "weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), "weight"))


@pytest.fixture(scope="module")
def folders(model_dir, tmp_path_factory):
    """Three model directories by name, and a record with the probability of class 1 that each gives."""
    root = tmp_path_factory.mktemp("models")
    one, other = write_model_directory(root / "one"), write_model_directory(root / "other")
    edit_graph(other / "model.onnx", negate)
    golden = json.loads((model_dir / "golden.jsonl").read_text().splitlines()[0])
    found = {"demo": SimpleNamespace(path=model_dir, record=golden["record"], score=golden["probs"][1])}
    for path in (one, other):  # the graph as it is, in this process, says what is right
        scores = load_pipeline(Settings(model_dir=path, fusion=False)).predict(decode(body(RECORD), "application/json"))
        shutil.rmtree(path / "optimized", ignore_errors=True)
        found[path.name] = SimpleNamespace(path=path, record=RECORD, score=float(scores.raw[0, 0]))
    assert abs(found["one"].score - found["other"].score) > 0.01
    return found


@pytest.fixture(scope="module")
def begin(start, tmp_path_factory):
    """Starts servers without a model, whose models share one cache."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def run(**environ):
        return start(Path("/not-read"), SAGEMAKER_MULTI_MODEL="true", OPTIMIZED_MODEL_DIR=cache, **environ)

    return run


@pytest.fixture(scope="module")
def server(begin, folders):
    """A server with three models."""
    server = begin(METRICS_SINKS="emf,prometheus", METRICS_INTERVAL_SECONDS="1")
    assert server.get("/ping").json == {"status": "ready", "models": 0, "loading": 0}
    for name in NAMES:
        assert load(server, name, folders[name].path).status == 200
    return server


@pytest.fixture(autouse=True)
def the_others_are_not_disturbed(server, folders):
    """After each test the three models answer as before, each with its own scores, and nothing else is there."""
    yield
    assert [model["modelName"] for model in server.get("/models").json["models"]] == list(NAMES)
    for name, model in folders.items():
        assert invoke(server, name, model.record).scores == pytest.approx([model.score], abs=1e-5)
    wait_for(lambda: len(server.workers()) == len(NAMES))


def body(value):
    return json.dumps(value).encode()


def load(server, name, path):
    return server.request("POST", "/models", body({"model_name": name, "url": str(path)}))


def unload(server, name):
    return server.request("DELETE", f"/models/{name}")


def invoke(server, name, record, **headers):
    return server.request("POST", f"/models/{name}/invoke", body(record), headers)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def in_background(function, *arguments):
    """Calls a function on a thread; what it returns goes to the list."""
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(function(*arguments)))
    thread.start()
    return thread, outcomes


def with_code(source, path, code):
    """A model directory of the same files and handlers of its own."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("code", "optimized"))
    (path / "code").mkdir()
    (path / "code" / "inference.py").write_text(code)
    return path


def held(pids):
    """Bytes that processes hold, shared ones in equal parts."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def test_models_are_listed(server, folders):
    assert server.get("/models").json == {
        "models": [{"modelName": name, "modelUrl": str(folders[name].path)} for name in NAMES]
    }


def test_the_list_comes_in_pages(server):
    found, token = [], ""
    while token is not None:
        page = server.get(f"/models?limit=2&next_page_token={token}").json
        assert len(page["models"]) <= 2
        found += [model["modelName"] for model in page["models"]]
        token = page.get("nextPageToken")
    assert found == list(NAMES)
    for limit in ("0", "-1", "101", "two", "", "9" * 5000):
        answer = server.get(f"/models?limit={limit}")
        assert (answer.status, answer.error["code"]) == (400, "malformed_body")


def test_a_model_is_described(server, folders):
    described = server.get("/models/demo").json
    assert described.items() >= {
        "modelName": "demo", "modelUrl": str(folders["demo"].path), "workers": 1, "level": 1, "precision": "fp32",
        "engine": "onnxruntime", "causes": {},
    }.items()  # fmt: skip
    assert server.get("/models/one").json["level"] == 2  # nothing in it can be fused
    assert server.get("/models/one").json["causes"]


def test_model_directories_stay_as_they_are(folders):
    assert not (folders["one"].path / "optimized").exists()


def test_a_model_answers_as_one_alone_would(server, folders):
    answer = invoke(server, "demo", folders["demo"].record, Accept="text/csv")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv")
    assert answer.body.startswith(f"{folders['demo'].score:.4f},".encode())
    lacking = {key: value for key, value in folders["demo"].record.items() if key != "concsi"}
    for error, status in ((b"{", 400), (body(lacking), 422)):
        answer = server.request("POST", "/models/demo/invoke", error, {"Content-Type": "application/json"})
        assert (answer.status, bool(answer.error["message"])) == (status, True)
    assert server.request("POST", "/models/demo/invoke", b"x", {"Content-Type": "text/plain"}).status == 415
    assert server.request("POST", "/models/demo/invoke", b" " * 27_000_000).status == 413


def test_a_name_is_taken_once(server, folders):
    answer = load(server, "one", folders["other"].path)
    assert (answer.status, answer.error["code"]) == (409, "already_loaded")


def test_what_is_not_there_is_404(server):
    for method, path in (
        ("GET", "/models/none"), ("DELETE", "/models/none"), ("POST", "/models/none/invoke"), ("POST", "/invocations"),
        ("GET", "/execution-parameters"), ("GET", "/models/demo/invoke/x"),
    ):  # fmt: skip
        answer = server.request(method, path, b"{}" if method == "POST" else None)
        assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert "/models/{model_name}/invoke" in server.request("POST", "/invocations", b"{}").error["message"]
    answer = server.request("GET", "/models/demo/invoke")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b'{"model_name": "x"}', b'{"model_name": "", "url": "/opt"}'])
def test_a_bad_request_to_load_is_400(server, sent):
    answer = server.request("POST", "/models", sent, {"Content-Type": "application/json"})
    assert (answer.status, answer.error["code"]) == (400, "malformed_body")


def test_any_name_will_do(server, folders):
    name = "s3://b/k%2F..?#é".replace("é", "e")
    assert load(server, name, folders["one"].path).status == 200
    quoted = "s3:%2F%2Fb%2Fk%252F..%3F%23e"
    assert server.get(f"/models/{quoted}").json["modelName"] == name
    assert invoke(server, quoted, folders["one"].record).scores == pytest.approx([folders["one"].score], abs=1e-5)
    assert unload(server, quoted).json == {"modelName": name}


def test_a_model_larger_than_memory_is_507(server, tmp_path):
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2**42)  # it takes no space on the disk
    answer = load(server, "huge", tmp_path)
    assert (answer.status, answer.error["code"]) == (507, "out_of_memory")
    assert "unload another model" in answer.error["message"]


def test_a_load_that_runs_out_of_memory_is_507(server, folders, tmp_path):
    answer = load(server, "greedy", with_code(folders["one"].path, tmp_path / "greedy", GREEDY))
    assert (answer.status, answer.error["code"]) == (507, "out_of_memory")


def test_a_worker_that_dies_while_it_loads_is_told(server, folders, tmp_path):
    code = "import os\ndef model_fn(model_dir):\n    os.kill(os.getpid(), 9)\n"
    answer = load(server, "dies", with_code(folders["one"].path, tmp_path / "dies", code))
    assert (answer.status, answer.error["code"]) == (422, "model_unusable")
    assert "A worker ended while it loaded this model" in answer.error["message"]


def test_a_directory_that_cannot_be_served_is_refused_with_its_reason(server, folders, tmp_path):
    assert load(server, "none", tmp_path / "none").error["code"] == "model_unusable"
    broken = shutil.copytree(folders["one"].path, tmp_path / "broken")
    (broken / "hyperparameters.json").write_text("{")
    answer = load(server, "broken", broken)
    assert (answer.status, answer.error["code"]) == (422, "model_unusable")
    assert answer.error["message"] == "hyperparameters.json is not valid JSON; write it again."
    assert server.get("/models/broken").status == 404
    shutil.copy(folders["one"].path / "hyperparameters.json", broken)
    assert load(server, "broken", broken).status == 200  # mended, it loads
    assert unload(server, "broken").status == 200


def test_unloading_returns_the_memory(server, folders):
    before = server.workers()
    assert load(server, "again", folders["one"].path).status == 200
    added = set(server.workers()) - set(before)
    pids = [pid for pid, _ in server.descendants()]
    full = held(pids)
    assert len(added) == 1
    assert held(added) > 20_000_000
    assert unload(server, "again").status == 200
    left = [pid for pid in pids if Path(f"/proc/{pid}/smaps_rollup").exists() and not is_dead(pid)]
    assert added.isdisjoint(left)
    assert held(left) < full - 20_000_000
    assert server.get("/models/again").status == 404
    assert invoke(server, "again", folders["one"].record).status == 404
    assert load(server, "again", folders["other"].path).status == 200  # the name is free for another model
    assert invoke(server, "again", RECORD).scores == pytest.approx([folders["other"].score], abs=1e-5)
    assert unload(server, "again").status == 200
    assert unload(server, "again").status == 404
    wait_for(lambda: not any(is_dead(pid) for pid, _ in server.descendants()))  # no zombie stays either


def is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_handlers_stay_with_their_model(server, folders, tmp_path):
    code = "import json\nfrom helper import WORD\ndef output_fn(predictions, accept):\n    return json.dumps(WORD)\n"
    for word in ("red", "blue"):
        path = with_code(folders["one"].path, tmp_path / word, code)
        (path / "code" / "helper.py").write_text(f"WORD = {word!r}\n")
        assert load(server, word, path).status == 200
    assert [invoke(server, word, RECORD).json for word in ("red", "blue")] == ["red", "blue"]
    assert invoke(server, "one", RECORD).scores == pytest.approx([folders["one"].score], abs=1e-5)
    for word in ("red", "blue"):
        assert unload(server, word).status == 200


def test_of_two_loads_of_one_name_one_wins(server, folders):
    loads = [in_background(load, server, "twice", folders[name].path) for name in ("one", "other")]
    for thread, _ in loads:
        thread.join()
    assert sorted(outcomes[0].status for _, outcomes in loads) == [200, 409]
    assert unload(server, "twice").status == 200


def test_a_request_in_flight_is_answered_before_its_model_goes(server, folders, tmp_path):
    assert load(server, "slow", with_code(folders["one"].path, tmp_path / "slow", SLOW)).status == 200
    asked, answers = in_background(invoke, server, "slow", RECORD)
    time.sleep(0.3)
    leaving, outcomes = in_background(unload, server, "slow")
    wait_for(lambda: server.get("/models/slow").status == 404)
    assert (answers, outcomes) == ([], [])
    assert invoke(server, "slow", RECORD).status == 404
    for thread in (asked, leaving):
        thread.join()
    assert answers[0].scores == pytest.approx([folders["one"].score], abs=1e-5)
    assert outcomes[0].status == 200


def test_a_load_can_be_ended(server, folders, tmp_path):
    endless = with_code(folders["one"].path, tmp_path / "endless", ENDLESS)
    loading, outcomes = in_background(load, server, "endless", endless)
    wait_for(lambda: len(server.workers()) > len(NAMES) and server.get("/ping").json["loading"] == 1)
    answer = invoke(server, "endless", RECORD)
    assert (answer.status, "being loaded" in answer.error["message"]) == (503, True)
    assert unload(server, "endless").status == 200
    loading.join()
    assert (outcomes[0].status, outcomes[0].error["code"]) == (503, "unavailable")


def test_a_killed_worker_is_replaced(server, folders):
    pids = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in server.workers()}
    worker = next(pid for pid, command in pids.items() if f"\0{folders['one'].path}\0" in command)
    os.kill(worker, 9)
    wait_for(lambda: server.get("/models/one").json["workers"] == 0)
    assert invoke(server, "other", RECORD).scores == pytest.approx([folders["other"].score], abs=1e-5)
    wait_for(lambda: server.get("/models/one").json["workers"] == 1)


def test_measurements_bear_the_models_name(server, folders):
    for name in NAMES:
        assert invoke(server, name, folders[name].record).status == 200

    def measured(name):
        families = list(text_string_to_metric_families(server.get("/metrics").body.decode()))
        assert len({family.name for family in families}) == len(families)
        samples = [sample for family in families for sample in family.samples]
        return {sample.labels["model"]: sample.value for sample in samples if sample.name == f"trimodal_{name}"}

    wait_for(lambda: set(NAMES) <= measured("records_total").keys())
    wait_for(lambda: measured("memory_used_bytes").keys() == {"all"})  # of the container; models are not told apart
    assert measured("fallback_level")["demo"] == 1
    assert all(count >= 1 for count in measured("records_total").values())


def test_the_end_answers_what_is_in_flight(begin, folders, tmp_path):
    server = begin()
    endless = with_code(folders["one"].path, tmp_path / "endless", ENDLESS)
    assert load(server, "slow", with_code(folders["one"].path, tmp_path / "slow", SLOW)).status == 200
    asked, answers = in_background(invoke, server, "slow", RECORD)
    loading, outcomes = in_background(load, server, "endless", endless)
    wait_for(lambda: server.get("/ping").json["loading"] == 1)
    time.sleep(0.3)
    pids = [pid for pid, _ in server.descendants()]
    assert server.terminate() == 0
    for thread in (asked, loading):
        thread.join()
    assert answers[0].scores == pytest.approx([folders["one"].score], abs=1e-5)
    assert (outcomes[0].status, outcomes[0].error["code"]) == (503, "unavailable")
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=5)
    lines = [line for line in map(json.loads, server.log_text.splitlines()) if "_aws" in line]
    assert {line["Model"] for line in lines} == {"all", "slow"}
    assert sum(line.get("Requests", 0) for line in lines if line["Model"] == "slow") == 1
