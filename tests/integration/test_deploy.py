"""The deploy command from `up` to `down`, as an operator runs it, against moto over HTTP.

Moto's CloudFormation knows no alarms and no scaling, and does not carry a changed model on to the endpoint config: what
it leaves out of the template is asserted on the template itself, in tests/unit/deploy/test_template.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

import deploy_cloud
from deploy_cloud import FAST, IMAGE, ROOT, SIZE

DEMO = ROOT / "scripts" / "models" / "demo"

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning")


@pytest.fixture
def cloud():
    with deploy_cloud.running() as cloud:
        yield cloud


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """A real server of the demo model; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("container") / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "trimodal.cli", "serve", str(DEMO)]
        environ = {"SAGEMAKER_BIND_TO_PORT": str(port), "OPTIMIZED_MODEL_DIR": str(log.parent / "cache")}
        environ |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "code")}
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    else:
        process.kill()
        pytest.fail(log.read_text())
    yield port
    process.terminate()
    process.wait(timeout=40)


def model_of(cloud):
    sagemaker = cloud.client("sagemaker")
    (model,) = sagemaker.list_models()["Models"]
    return sagemaker.describe_model(ModelName=model["ModelName"])["PrimaryContainer"]


def test_from_up_to_down(cloud, container, tmp_path):
    archive = tmp_path / "model.tar.gz"
    printed = cloud.run("package", DEMO, "--out", archive, "--upload", "s3://models/demo/")
    url = printed.splitlines()[-1]
    key = url.removeprefix("s3://models/")
    assert cloud.client("s3").get_object(Bucket="models", Key=key)["Body"].read() == archive.read_bytes()

    first = ("--image", f"{IMAGE}:one", "--model", url, "--set", "MODEL_PRECISION=fp32")
    assert "demo is up" in cloud.run("up", "demo", *first, *SIZE, "--data", "s3://models/data", *FAST)
    served = model_of(cloud)
    assert (served["Image"], served["ModelDataUrl"]) == (f"{IMAGE}:one", url)
    assert served["Environment"] == {
        "ENDPOINT_NAME": "demo",
        "VARIANT_NAME": "AllTraffic",
        "METRICS_NAMESPACE": "TrimodalInference",
        "MODEL_PRECISION": "fp32",
    }
    status = cloud.run("status", "demo")
    assert "InService" in status
    assert "trial     no" in status

    cloud.container = container
    golden = json.loads((DEMO / "golden.jsonl").read_text().splitlines()[0])
    request = tmp_path / "request.json"
    request.write_text(json.dumps(golden["record"]))
    answer = json.loads(cloud.run("invoke", "demo", request))
    assert float(answer["predictions"][0]["legacy-score"]) == pytest.approx(golden["probs"][1], abs=1e-4)
    request.write_text("{")
    assert 'The container answered 400: {"error"' in cloud.run("invoke", "demo", request, status=1)

    printed = cloud.run("canary", "demo", "--image", f"{IMAGE}:two", "--set", "MODEL_PRECISION=auto", *FAST)
    assert "promote demo" in printed
    assert model_of(cloud)["Image"] == f"{IMAGE}:two"
    assert model_of(cloud)["Environment"]["MODEL_PRECISION"] == "auto"
    assert "trial     yes" in cloud.run("status", "demo")
    assert "on trial already" in cloud.run("canary", "demo", "--image", f"{IMAGE}:three", status=1)

    cloud.run("rollback", "demo", *FAST)
    assert model_of(cloud) == served
    assert "Nothing is on trial" in cloud.run("promote", "demo", status=1)

    cloud.run("canary", "demo", "--linear", "--unset", "MODEL_PRECISION", *FAST)
    cloud.run("promote", "demo", *FAST)
    assert "MODEL_PRECISION" not in model_of(cloud)["Environment"]
    assert "Nothing is on trial" in cloud.run("rollback", "demo", status=1)

    places = ("--input", "s3://models/data/in.jsonl", "--output", "s3://models/data/out/")
    assert cloud.run("batch", "demo", *places, *FAST).splitlines()[-1] == "s3://models/data/out/"
    sagemaker = cloud.client("sagemaker")
    (job,) = sagemaker.list_transform_jobs()["TransformJobSummaries"]
    job = sagemaker.describe_transform_job(TransformJobName=job["TransformJobName"])
    assert job["ModelName"] == sagemaker.list_models()["Models"][0]["ModelName"]
    assert job["TransformInput"]["SplitType"] == "Line"
    assert job["Environment"] == {"ENDPOINT_NAME": "demo-batch"}, "a batch must not set the endpoint's alarms off"

    assert "--yes" in cloud.run("down", "demo", status=1)
    assert "demo is deleted" in cloud.run("down", "demo", "--yes", *FAST)
    assert sagemaker.list_endpoints()["Endpoints"] == []
    assert "nothing to do" in cloud.run("down", "demo", "--yes")
