from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import json
import logging
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, DummyCookieJar, web
from mms.context import Context, RequestProcessor

import inference
from model_directories import write_model_directory as write
from trimodal.servers import front_protocol, mms
from trimodal.servers.front import Front
from trimodal.servers.mms import handle
from trimodal.servers.workers import ANSWERED

LIMIT = 2**20
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


@dataclass(frozen=True)
class Answer:
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    def error(self) -> dict[str, object]:
        content = self.json()
        assert list(content) == ["error"]
        assert sorted(content["error"]) == ["code", "message", "record"]
        return content["error"]


@pytest.fixture
def context_of():
    """Makes multi-model-server's own context for a batch of requests with these headers."""

    def make(directory, headers=()):
        context = Context("model", str(directory), {}, len(headers) or 1, None, "1.1.11")
        context.request_processor = [RequestProcessor(item) for item in headers]
        return context

    return make


@pytest.fixture
def worker(tmp_path, environment, context_of):
    """Loads a model directory as a worker does; returns a function that sends a batch of (body, headers)."""

    def load(code=None, variables=None, **changes):
        environment(**(variables or {}))
        directory = write(tmp_path / "model", **changes)
        if code is not None:
            (directory / "code").mkdir()
            (directory / "code" / "inference.py").write_text(code)
        assert handle(None, context_of(directory)) is None

        def ask(*requests):
            context = context_of(directory, [headers for _, headers in requests])
            bodies = handle([{"body": body} for body, _ in requests], context)
            return [
                Answer(*context.get_response_status(index), context.get_response_headers(index), body)
                for index, body in enumerate(bodies)
            ]

        return ask

    return load


@dataclass
class Upstream:
    """A small model server on this machine, which remembers what it was asked."""

    status: int = 200
    body: bytes = b'{"predictions": []}'
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json", ANSWERED: "1"})
    echo: bool = False
    before: object = None  # called with the request before the answer
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, request):
        self.requests.append((request.method, request.path, request.headers.copy(), await request.read()))
        if self.before is not None:
            await self.before(request)
        body = self.requests[-1][3] if self.echo else self.body
        return web.Response(status=self.status, body=body, headers=self.headers)


@dataclass(frozen=True)
class FrontAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    def error(self):
        assert self.headers["Content-Type"].startswith("application/json")
        content = json.loads(self.body)
        assert sorted(content["error"]) == ["code", "message", "record"]
        assert "Traceback" not in content["error"]["message"]
        return content["error"]


@contextlib.asynccontextmanager
async def listening(app):
    sock = socket.create_server(("127.0.0.1", 0))
    async with front_protocol.serving(app, sock):
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _talk(scenario, upstream=None, *, timeout=30, ready=1):
    """Runs a scenario against a front before a model server; without one, nobody listens there.

    Args:
        scenario: coroutine function of `ask`, the front and, if it takes it, the front's address;
            `ask(method, path, …)` sends one request.
        upstream: the model server.
        timeout: seconds that a request may take.
        ready: workers that can answer.
    """

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            address = free_address()
            if upstream is not None:
                app = web.Application(client_max_size=10 * LIMIT)
                app.router.add_route("*", "/{path:.*}", upstream.answer)
                address = await stack.enter_async_context(listening(app))
            front = Front(address, LIMIT, timeout, lambda: ready)
            base = await stack.enter_async_context(listening(front.application()))
            session = await stack.enter_async_context(ClientSession(cookie_jar=DummyCookieJar()))

            async def ask(method, path, data=None, **options):
                data = io.BytesIO(data) if isinstance(data, bytes) else data
                async with session.request(method, base + path, data=data, **options) as answer:
                    return FrontAnswer(answer.status, answer.headers.copy(), await answer.read())

            known = (ask, front, base)
            return await scenario(*known[: len(inspect.signature(scenario).parameters)])

    return asyncio.run(run())


def _one(method, path, upstream=None, **options):
    """Sends one request; returns its answer."""
    return _talk(lambda ask, _: ask(method, path, **options), upstream)


@pytest.fixture
def talk():
    return _talk


@pytest.fixture
def one():
    return _one


@pytest.fixture
def upstream_of():
    return Upstream
