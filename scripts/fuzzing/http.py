"""Sends a running server what its OpenAPI document allows, and what it forbids; no answer may be a 5xx."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

DEMO = Path(__file__).parents[2] / "scripts" / "models" / "demo"
KINDS = {"http-asgi": "asgi", "http-mms": "mms"}
"""Name of the target to `MODEL_SERVER`."""

READY_SECONDS = 120


def fuzz_http(name: str, cases: int, out: Path) -> tuple[int, float, str | None]:
    """Fuzzes one server, the demo model loaded.

    Args:
        name: a key of `KINDS`.
        cases: requests of the operation that scores.
        out: where the logs go.

    Returns:
        How many requests were sent, the seconds that took, and what was found.
    """
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with _server(KINDS[name], out / "server.log") as port:
        schema = out / "openapi.json"
        status, document = _get(port, "/openapi.json")
        schema.write_bytes(document if status == 200 else _openapi())
        command: list[str | Path] = [
            Path(sys.executable).with_name("schemathesis"), "run", schema, "--url", f"http://127.0.0.1:{port}",
            "--max-examples", str(cases), "--checks", "not_a_server_error", "--phases", "fuzzing",
            "--no-color", "--generation-database", "none", "--continue-on-failure", "--workers", "2",
            "--suppress-health-check", "all", "--report", "ndjson", "--report-ndjson-path", out / "events.ndjson",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
        alive = _get(port, "/ping")[0] == 200
    (out / "log").write_text(done.stdout + done.stderr, encoding="utf-8")
    sent = re.search(r"(\d[\d,]*) generated", done.stdout)
    finding = None if done.returncode == 0 and alive else f"status {done.returncode}, /ping {alive}; see {out / 'log'}"
    return int(sent[1].replace(",", "")) if sent else 0, round(time.perf_counter() - begun, 1), finding


def _openapi() -> bytes:
    """Returns the OpenAPI document of the demo model, for servers that have none of their own."""
    from trimodal.loading.load import load_pipeline
    from trimodal.servers.openapi import describe
    from trimodal.settings import Settings

    settings = Settings(model_dir=DEMO)
    return json.dumps(describe(load_pipeline(settings), settings)).encode()


@contextlib.contextmanager
def _server(kind: str, log: Path) -> Iterator[int]:
    """Serves the demo model; yields the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command: list[str | Path] = [Path(sys.executable).with_name("trimodal"), "serve", DEMO]
    environ = {**os.environ, "MODEL_SERVER": kind, "SAGEMAKER_BIND_TO_PORT": str(port)}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if _get(port, "/ping")[0] == 200:
                    yield port
                    return
            time.sleep(0.1)
        raise SystemExit(f"scripts/fuzz: the server did not start; see {log}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
