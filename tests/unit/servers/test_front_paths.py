from __future__ import annotations

import asyncio
import json

import pytest

LIMIT = 2**20


def test_another_path_is_404(talk):
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
def test_another_method_is_405_and_says_what_is_allowed(method, path, allowed, one):
    answer = one(method, path)

    assert (answer.status, answer.error()["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


def test_an_expectation_that_is_not_known_is_ignored(one, upstream_of):
    upstream = upstream_of()

    answer = one("POST", "/invocations", upstream, data=b"{}", headers={"Expect": "a-miracle"})

    ((_, _, seen, body),) = upstream.requests
    assert (answer.status, body, "Expect" in seen) == (200, b"{}", False)


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
def test_a_client_that_waits_with_its_body_is_asked_for_it(expect, one, upstream_of):
    upstream = upstream_of(echo=True)

    answer = one("POST", "/invocations", upstream, data=b'{"a": 1}', headers={"Expect": expect}, expect100=True)

    ((_, _, seen, _),) = upstream.requests
    assert (answer.status, answer.body, "Expect" in seen) == (200, b'{"a": 1}', False)


def test_an_unexpected_exception_is_an_error_like_the_others(talk, caplog):
    def broken():
        raise RuntimeError("a-very-private-dialogue")

    async def ping(ask, front):
        front.ready = broken
        return await ask("GET", "/ping")

    answer = talk(ping)

    assert (answer.status, answer.error()["code"]) == (500, "inference_failed")
    assert answer.error()["message"] == "The request could not be answered."
    assert caplog.messages == ["the front failed: RuntimeError"]
    assert b"private" not in answer.body


@pytest.mark.parametrize(("workers", "status", "state"), [(2, 200, "ready"), (0, 503, "no worker")])
def test_ping_tells_whether_a_worker_can_answer(workers, status, state, talk):
    async def ping(ask, _front):
        return await ask("GET", "/ping"), await ask("HEAD", "/ping")

    answer, head = talk(ping, ready=workers)

    assert (answer.status, json.loads(answer.body)) == (status, {"status": state, "workers": workers})
    assert (head.status, head.body) == (status, b"")


def test_ping_tells_that_the_container_drains(talk):
    async def drain(ask, front):
        front.draining = True
        return await ask("GET", "/ping")

    answer = talk(drain, ready=2)

    assert (answer.status, json.loads(answer.body)["status"]) == (503, "draining")
    assert answer.headers["Connection"] == "close"


def test_requests_are_answered_while_draining_and_end_their_connection(talk, upstream_of):
    async def scenario(ask, front):
        before = await ask("POST", "/invocations", data=b"{}")
        front.draining = True
        return before, await ask("POST", "/invocations", data=b"{}"), await ask("GET", "/nowhere")

    before, after, error = talk(scenario, upstream_of())

    assert (before.status, after.status, error.status) == (200, 200, 404)
    assert before.headers.get("Connection") != "close"
    assert (after.headers["Connection"], error.headers["Connection"]) == ("close", "close")


def test_a_request_in_flight_when_draining_starts_is_answered(talk, upstream_of):
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

    upstream = upstream_of()
    during, answer, after = talk(scenario, upstream)

    assert (during, answer.status, after) == (1, 200, 0)
    assert answer.headers["Connection"] == "close"


def test_failed_requests_are_no_longer_in_flight(talk):
    async def scenario(ask, front):
        answers = [
            await ask("POST", "/invocations", data=b"{}"),
            await ask("POST", "/invocations", data=b"x" * (LIMIT + 1)),
        ]
        return [answer.status for answer in answers], front.in_flight

    assert talk(scenario) == ([503, 413], 0)


def test_many_requests_at_once_are_not_mixed_up(talk, upstream_of):
    async def scenario(ask, _front):
        bodies = [str(number).encode() * 1000 for number in range(50)]
        answers = await asyncio.gather(*(ask("POST", "/invocations", data=body) for body in bodies))
        return bodies, [answer.body for answer in answers]

    sent, received = talk(scenario, upstream_of(echo=True))

    assert received == sent
