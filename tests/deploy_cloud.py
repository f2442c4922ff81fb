"""A cloud of one process for the tests of scripts/deploy: moto over HTTP, and a real container for the scores.

Moto takes the template as it is. It knows its model, endpoint config, endpoint, role and dashboard, and leaves out
alarms and scaling. It has no model behind an endpoint, so a small front sends `/endpoints/NAME/invocations` to a real
server, and everything else to moto.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import boto3
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[1]
REGION = "eu-west-1"
IMAGE = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/trimodal-inference"
FAST = ("--poll", "0.05")
SIZE = ("--instance-type", "ml.c5.xlarge")  # moto knows no newer ones
HOP = ("connection", "content-length", "transfer-encoding", "server", "date")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}


@dataclass
class Cloud:
    """The running cloud.

    Attributes:
        url: where the command finds it.
        container: port of the server that answers invocations, or None.
        forms: the calls of CloudFormation, as they came in.
        rewrite: changes moto's answers to them; gets the action and the answer.
    """

    url: str
    container: int | None = None
    forms: list[dict[str, str]] = field(default_factory=list)
    rewrite: Callable[[str, str], str] = lambda _action, body: body

    def client(self, service):
        """boto3's client of a service."""
        return boto3.client(
            service, endpoint_url=self.url, region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
        )

    def run(self, *arguments, status=0, **environ):
        """Runs the command as an operator does and returns what it printed; expects an exit status."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SAGEMAKER_"))}
        env |= {"AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true", **CREDENTIALS}
        env |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT / "code")]), **environ}
        command = [*program(), *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    def up(self, *more, **environ):
        """Makes the endpoint `demo`."""
        model = ("--image", f"{IMAGE}:one", "--model", "s3://models/demo/one/model.tar.gz")
        return self.run("up", "demo", *model, *SIZE, *FAST, *more, **environ)

    def parameters(self, action):
        """The stack's parameters in the last call of an action; None where the value before was kept."""
        form = [form for form in self.forms if form["Action"] == action][-1]
        names = [key for key in form if key.endswith(".ParameterKey")]
        return {form[key]: form.get(key.replace("ParameterKey", "ParameterValue")) for key in names}


def program():
    """The script itself where it finds its environment made, else the module that it runs."""
    if Path(sys.prefix) == ROOT / ".venv":
        return [ROOT / "scripts" / "deploy" / "deploy"]
    return [sys.executable, "-m", "deploy.cli"]


@contextmanager
def running() -> Iterator[Cloud]:
    """Starts moto and the front before it."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    cloud = Cloud("")
    front = ThreadingHTTPServer(("127.0.0.1", 0), _front(cloud, moto.get_host_and_port()[1]))
    front.daemon_threads = True  # connections that clients keep open need not end first
    front.block_on_close = False
    cloud.url = f"http://127.0.0.1:{front.server_port}"
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    try:
        urllib.request.urlopen(
            urllib.request.Request(f"{cloud.url}/moto-api/reset", b"")
        ).close()  # it outlives servers
        bucket = {"LocationConstraint": REGION}
        cloud.client("s3").create_bucket(Bucket="models", CreateBucketConfiguration=bucket)
        yield cloud
    finally:
        front.shutdown()
        front.server_close()
        thread.join()
        moto.stop()


def _front(cloud: Cloud, moto_port: int) -> type[BaseHTTPRequestHandler]:
    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            form = {}
            if "x-www-form-urlencoded" in self.headers.get("Content-Type", ""):
                form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
                cloud.forms += [form] if "Action" in form else []
            invoked = self.path.endswith("/invocations") and cloud.container is not None
            port, path = (cloud.container, "/invocations") if invoked else (moto_port, self.path)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request(self.command, path, body, dict(self.headers))
                answer = connection.getresponse()
                body = answer.read()
                if "Version" in form:
                    body = cloud.rewrite(form["Action"], body.decode()).encode()
                self._relay(answer.status, answer.getheaders(), body, invoked=invoked)
            finally:
                connection.close()

        def _relay(self, status, headers, body, *, invoked):
            if invoked and status >= 400:  # what SageMaker makes of a container's error
                headers = [("x-amzn-errortype", "ModelError"), ("Content-Type", "application/json")]
                body = _model_error(status, body)
                status = 424
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815 - http.server's names

        def log_message(self, *_arguments):
            pass

    return Front


def _model_error(status: int, body: bytes) -> bytes:
    import json

    return json.dumps({"OriginalStatusCode": status, "OriginalMessage": body.decode(), "Message": "failed"}).encode()
