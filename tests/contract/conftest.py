"""Real server processes, started as a user starts them."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "models" / "demo"
TRIMODAL = Path(sys.executable).with_name("trimodal")
READY_SECONDS = 60

OURS = ("SAGEMAKER_", "SM_", "ONNX_", "LOG_", "MODEL_", "SCORE_", "RESPONSE_", "TRIMODAL_", "PYTHON", "MAX_")
LIBRARIES = ("ORT_", "HF_", "CI", "GITHUB_", "GITLAB_", "CODEBUILD_", "TF_BUILD", "JENKINS_", "BUILDKITE")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; the media type must be JSON."""
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert set(error) == {"code", "message", "record"}
        assert "Traceback" not in error["message"]
        return error

    @property
    def scores(self) -> list[float]:
        """The probability of class 1 of each record of a binary JSON answer."""
        assert self.status == 200, self.body
        return [float(row["legacy-score"]) for row in self.json["predictions"]]


class Server:
    """A running `trimodal serve`; `within` is a command that starts it."""

    def __init__(self, model_dir: Path, log: Path, within: Sequence[str] = (), **environ: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        paths = [environ.pop("PYTHONPATH", ""), str(ROOT / "code")]  # this checkout's code, whatever is installed
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*within, TRIMODAL, "serve", model_dir],
                env={**clean_environ(), "SAGEMAKER_BIND_TO_PORT": str(self.port), **environ},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> "Server":
        """Waits for the port to open; from then on `/ping` must be 200."""
        deadline = time.monotonic() + READY_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                answer = self.get("/ping")
            except ConnectionRefusedError:
                time.sleep(0.05)
                continue
            assert answer.status == 200, "the port must not open before the model is ready"
            return self
        raise AssertionError(f"not ready:\n{self.log_text}")

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(
        self, body: bytes | str, content_type: str | None = "application/json", accept: str | None = None
    ) -> Answer:
        headers = {"Content-Type": content_type, "Accept": accept}
        return self.request("POST", "/invocations", body, {k: v for k, v in headers.items() if v is not None})

    def predict(self, *records: Mapping[str, Any]) -> Answer:
        return self.post(json.dumps(records))

    def request(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body.encode() if isinstance(body, str) else body
            connection.request(method, path, data, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    @property
    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """The log's JSON lines, those of metrics left out."""
        lines = [json.loads(line) for line in self.log_text.splitlines() if line.startswith("{")]
        return [line for line in lines if "_aws" not in line]

    def workers(self) -> list[int]:
        """Process ids of the workers: the leaves of the process tree."""
        tree = self.descendants()
        parents = {parent for _, parent in tree}
        return [pid for pid, _ in tree if pid not in parents]

    def descendants(self) -> list[tuple[int, int]]:
        """Pairs of process and parent of all that the server has started."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            for one in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append((one.pid, one.ppid()))
        return found

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)

    def close(self) -> None:
        """Ends the server whatever state a test has left it in."""
        if self.process.poll() is None:
            self.terminate()


def clean_environ() -> dict[str, str]:
    """The environment without anything that the container reads, or that makes a library behave as in CI."""
    return {key: value for key, value in os.environ.items() if not key.startswith((*OURS, *LIBRARIES))}


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    """The demo's golden records."""
    return [json.loads(line) for line in (DEMO / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The demo model's directory."""
    return DEMO


@pytest.fixture(scope="module", params=["mms", "asgi"])
def kind(request: pytest.FixtureRequest) -> str:
    """The `MODEL_SERVER` under test."""
    return str(request.param)


@pytest.fixture(scope="module")
def start(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers: `start(model_dir, wait=True, within=(), **environ)`; they end with the module."""
    servers: list[Server] = []

    def run(model_dir: Path = DEMO, *, wait: bool = True, within: Sequence[str] = (), **environ: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        server = Server(model_dir, log, within, **{"MODEL_SERVER": kind, **environ})
        servers.append(server)
        return server.wait_until_ready() if wait else server

    yield run
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def demo(start: Callable[..., Server]) -> Server:
    """A server of the demo model."""
    return start()
