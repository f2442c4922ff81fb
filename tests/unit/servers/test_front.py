from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import socket
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientSession, DummyCookieJar, web

from trimodal.servers.front import Front
from trimodal.servers.workers import ANSWERED

LIMIT = 2**20
JSON = {"Content-Type": "application/json"}


@dataclass
class Upstream:
    """A small model server on this machine, which remembers what it was asked."""

    status: int = 200
    body: bytes = b'{"predictions": []}'
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json", ANSWERED: "1"})
    before: object = None  # called with the request before the answer
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, request):
        self.requests.append((request.method, request.path, request.headers.copy(), await request.read()))
        if self.before is not None:
            await self.before(request)
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@dataclass(frozen=True)
class Answer:
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
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def talk(scenario, upstream=None, *, timeout=30, ready=1):
    """Runs a scenario against a front before a model server; without one, nobody listens there.

    Args:
        scenario: coroutine function of `ask` and the front; `ask(method, path, …)` sends one request.
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
                    return Answer(answer.status, answer.headers.copy(), await answer.read())

            return await scenario(ask, front)

    return asyncio.run(run())


def one(method, path, upstream=None, **options):
    """Sends one request; returns its answer."""
    return talk(lambda ask, _: ask(method, path, **options), upstream)


def test_a_request_and_its_answer_are_passed_on():
    upstream = Upstream(body=b"0.1,0.2\n", headers={"Content-Type": "text/csv", "X-Custom": "kept", ANSWERED: "1"})
    headers = {
        "Content-Type": "text/csv; charset=utf-8",
        "Accept": "text/csv",
        "X-Amzn-SageMaker-Custom-Attributes": "trace=7",
        "X-Request-Id": "a",
    }

    answer = one("POST", "/invocations", upstream, data=b"\x00raw,bytes\xff\n", headers=headers)

    ((method, path, seen, body),) = upstream.requests
    assert (method, path, body) == ("POST", "/invocations", b"\x00raw,bytes\xff\n")
    assert {name: seen[name] for name in headers} == headers
    assert int(seen["Content-Length"]) == len(body)
    assert (answer.status, answer.body) == (200, b"0.1,0.2\n")
    assert (answer.headers["Content-Type"], answer.headers["X-Custom"]) == ("text/csv", "kept")
    assert ANSWERED not in answer.headers


def test_headers_of_one_connection_are_not_passed_on():
    upstream = Upstream()
    own = {"TE": "trailers", "Proxy-Authorization": "secret", "Upgrade": "h2c", ANSWERED: "forged"}

    one("POST", "/invocations", upstream, data=b"{}", headers=own)

    ((_, _, seen, _),) = upstream.requests
    assert not {name.lower() for name in own} & {name.lower() for name in seen}


def test_nothing_is_added_to_what_the_client_accepts():
    upstream = Upstream()

    one("POST", "/invocations", upstream, data=b"{}", skip_auto_headers=["Accept", "Accept-Encoding", "User-Agent"])

    ((_, _, seen, _),) = upstream.requests
    assert not {"Accept", "Accept-Encoding", "User-Agent"} & set(seen)


def test_without_a_content_type_the_body_is_json():
    upstream = Upstream()

    one("POST", "/invocations", upstream, data=b"{}", skip_auto_headers=["Content-Type"])

    ((_, _, seen, _),) = upstream.requests
    assert seen["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [400, 406, 415, 422, 500])
def test_errors_of_the_handler_are_passed_on_as_they_are(status):
    body = b'{"error": {"code": "x", "message": "y", "record": 1}}'

    answer = one("POST", "/invocations", Upstream(status=status, body=body), data=b"{}")

    assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (503, 503, "unavailable"),
        (507, 503, "unavailable"),
        (413, 413, "payload_too_large"),
        (500, 500, "inference_failed"),
        (400, 500, "inference_failed"),
        (404, 500, "inference_failed"),
        (200, 500, "inference_failed"),
    ],
)
def test_errors_of_the_model_server_itself_become_ours(status, expected, code):
    upstream = Upstream(status=status, body=b'{"code": 500, "type": "java.lang.Secret", "message": "at /opt/ml"}')
    upstream.headers = {"Content-Type": "application/json"}

    answer = one("POST", "/invocations", upstream, data=b"{}")

    assert (answer.status, answer.error()["code"]) == (expected, code)
    assert b"java" not in answer.body
    assert b"/opt" not in answer.body


def test_nobody_behind_is_503():
    answer = one("POST", "/invocations", data=b"{}")

    assert (answer.status, answer.error()["code"]) == (503, "unavailable")
    assert "try again later" in answer.error()["message"]


def test_a_model_server_that_hangs_up_is_503():
    async def hang_up(request):
        request.transport.abort()

    answer = one("POST", "/invocations", Upstream(before=hang_up), data=b"{}")

    assert (answer.status, answer.error()["code"]) == (503, "unavailable")


def test_a_model_server_that_does_not_answer_in_time_is_504():
    async def scenario(ask, _front):
        given_up = asyncio.Event()
        upstream.before = lambda _request: given_up.wait()
        answer = await ask("POST", "/invocations", data=b"{}")
        given_up.set()
        return answer

    upstream = Upstream()
    answer = talk(scenario, upstream, timeout=1)

    assert (answer.status, answer.error()["code"]) == (504, "timeout")
    assert answer.error()["message"] == "No answer within 1 seconds; send fewer records."


async def in_pieces(size):
    for _ in range(size // 2**16):
        yield b"x" * 2**16
    yield b"x" * (size % 2**16)


def test_the_largest_body_is_passed_on():
    upstream = Upstream()

    async def both(ask, _front):
        return [
            await ask("POST", "/invocations", data=b"x" * LIMIT),
            await ask("POST", "/invocations", data=in_pieces(LIMIT)),
        ]

    assert [answer.status for answer in talk(both, upstream)] == [200, 200]
    assert [len(body) for *_, body in upstream.requests] == [LIMIT, LIMIT]


@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT])
def test_a_body_too_large_by_its_announced_length_is_413(size):
    upstream = Upstream()

    answer = one("POST", "/invocations", upstream, data=b"x" * size)

    assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
    assert answer.error()["message"] == "The body is larger than 1 MB; send fewer records."
    assert upstream.requests == []


@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT])
def test_a_body_too_large_in_chunks_is_413(size):
    upstream = Upstream()

    answer = one("POST", "/invocations", upstream, data=in_pieces(size))

    assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
    assert upstream.requests == []


def test_a_compressed_body_is_passed_on_plain():
    upstream = Upstream()

    answer = one(
        "POST", "/invocations", upstream, data=gzip.compress(b'{"a": 1}'), headers={"Content-Encoding": "gzip"}
    )

    ((_, _, seen, body),) = upstream.requests
    assert (answer.status, body, "Content-Encoding" in seen) == (200, b'{"a": 1}', False)


def test_a_body_too_large_once_it_is_unpacked_is_413():
    upstream = Upstream()

    answer = one(
        "POST", "/invocations", upstream, data=gzip.compress(b"x" * 8 * LIMIT), headers={"Content-Encoding": "gzip"}
    )

    assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
    assert upstream.requests == []


@pytest.mark.xfail(strict=True, reason="RequestPayloadError is not caught: 500 in plain text")
def test_a_body_that_cannot_be_unpacked_is_a_client_error():
    answer = one("POST", "/invocations", Upstream(), data=b"no gzip at all", headers={"Content-Encoding": "gzip"})

    assert answer.status == 400
    assert answer.error()["code"] == "malformed_body"


def test_another_path_is_404():
    async def each(ask, _front):
        return [await ask("GET", path) for path in ("/", "/invocations/", "/models", "/ping/x", "/%2e%2e/etc/passwd")]

    for answer in talk(each):
        assert (answer.status, answer.error()["code"]) == (404, "not_found")
        assert answer.error()["message"] == "There is only GET /ping and POST /invocations."


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/invocations", "POST"),
        ("PUT", "/invocations", "POST"),
        ("DELETE", "/invocations", "POST"),
        ("POST", "/ping", "GET, HEAD"),
        ("OPTIONS", "/ping", "GET, HEAD"),
    ],
)
def test_another_method_is_405_and_says_what_is_allowed(method, path, allowed):
    answer = one(method, path)

    assert (answer.status, answer.error()["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


@pytest.mark.xfail(strict=True, reason="aiohttp answers 417 in plain text, quoting the header")
def test_an_expectation_that_cannot_be_met_is_an_error_like_the_others():
    answer = one("POST", "/invocations", Upstream(), data=b"{}", headers={"Expect": "a-miracle"})

    assert answer.status == 417
    assert answer.error()


@pytest.mark.parametrize(("workers", "status", "state"), [(2, 200, "ready"), (0, 503, "no worker")])
def test_ping_tells_whether_a_worker_can_answer(workers, status, state):
    async def ping(ask, _front):
        return await ask("GET", "/ping"), await ask("HEAD", "/ping")

    answer, head = talk(ping, ready=workers)

    assert (answer.status, json.loads(answer.body)) == (status, {"status": state, "workers": workers})
    assert (head.status, head.body) == (status, b"")


def test_ping_tells_that_the_container_drains():
    async def drain(ask, front):
        front.draining = True
        return await ask("GET", "/ping")

    answer = talk(drain, ready=2)

    assert (answer.status, json.loads(answer.body)["status"]) == (503, "draining")
    assert answer.headers["Connection"] == "close"


def test_requests_are_answered_while_draining_and_end_their_connection():
    async def scenario(ask, front):
        before = await ask("POST", "/invocations", data=b"{}")
        front.draining = True
        return before, await ask("POST", "/invocations", data=b"{}"), await ask("GET", "/nowhere")

    before, after, error = talk(scenario, Upstream())

    assert (before.status, after.status, error.status) == (200, 200, 404)
    assert before.headers.get("Connection") != "close"
    assert (after.headers["Connection"], error.headers["Connection"]) == ("close", "close")


def test_a_request_in_flight_when_draining_starts_is_answered():
    async def scenario(ask, front):
        arrived, leave = asyncio.Event(), asyncio.Event()

        async def wait(_request):
            arrived.set()
            await leave.wait()

        upstream.before = wait
        request = asyncio.create_task(ask("POST", "/invocations", data=b"{}"))
        await arrived.wait()
        during, front.draining = front.in_flight, True
        leave.set()
        return during, await request, front.in_flight

    upstream = Upstream()
    during, answer, after = talk(scenario, upstream)

    assert (during, answer.status, after) == (1, 200, 0)
    assert answer.headers["Connection"] == "close"


def test_failed_requests_are_no_longer_in_flight():
    async def scenario(ask, front):
        answers = [
            await ask("POST", "/invocations", data=b"{}"),
            await ask("POST", "/invocations", data=b"x" * (LIMIT + 1)),
        ]
        return [answer.status for answer in answers], front.in_flight

    assert talk(scenario) == ([503, 413], 0)


def test_many_requests_at_once_are_not_mixed_up():
    class Echo(Upstream):
        async def answer(self, request):
            return web.Response(body=await request.read(), headers={ANSWERED: "1"})

    async def scenario(ask, _front):
        bodies = [str(number).encode() * 1000 for number in range(50)]
        answers = await asyncio.gather(*(ask("POST", "/invocations", data=body) for body in bodies))
        return bodies, [answer.body for answer in answers]

    sent, received = talk(scenario, Echo())

    assert received == sent
