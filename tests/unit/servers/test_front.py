from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from trimodal.servers.workers import ANSWERED

LIMIT = 2**20


def test_a_request_and_its_answer_are_passed_on(one, upstream_of):
    upstream = upstream_of(body=b"0.1,0.2\n", headers={"Content-Type": "text/csv", "X-Custom": "kept", ANSWERED: "1"})
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


def test_headers_of_one_connection_are_not_passed_on(one, upstream_of):
    upstream = upstream_of()
    own = {"TE": "trailers", "Proxy-Authorization": "secret", "Upgrade": "h2c", ANSWERED: "forged"}

    one("POST", "/invocations", upstream, data=b"{}", headers=own)

    ((_, _, seen, _),) = upstream.requests
    assert not {name.lower() for name in own} & {name.lower() for name in seen}


def test_nothing_is_added_to_what_the_client_accepts(one, upstream_of):
    upstream = upstream_of()

    one("POST", "/invocations", upstream, data=b"{}", skip_auto_headers=["Accept", "Accept-Encoding", "User-Agent"])

    ((_, _, seen, _),) = upstream.requests
    assert not {"Accept", "Accept-Encoding", "User-Agent"} & set(seen)


def test_without_a_content_type_the_body_is_json(one, upstream_of):
    upstream = upstream_of()

    one("POST", "/invocations", upstream, data=b"{}", skip_auto_headers=["Content-Type"])

    ((_, _, seen, _),) = upstream.requests
    assert seen["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [400, 406, 415, 422, 500])
def test_errors_of_the_handler_are_passed_on_as_they_are(status, one, upstream_of):
    body = b'{"error": {"code": "x", "message": "y", "record": 1}}'

    answer = one("POST", "/invocations", upstream_of(status=status, body=body), data=b"{}")

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
def test_errors_of_the_model_server_itself_become_ours(status, expected, code, one, upstream_of):
    upstream = upstream_of(status=status, body=b'{"code": 500, "type": "java.lang.Secret", "message": "at /opt/ml"}')
    upstream.headers = {"Content-Type": "application/json"}

    answer = one("POST", "/invocations", upstream, data=b"{}")

    assert (answer.status, answer.error()["code"]) == (expected, code)
    assert b"java" not in answer.body
    assert b"/opt" not in answer.body


def test_nobody_behind_is_503(one):
    answer = one("POST", "/invocations", data=b"{}")

    assert (answer.status, answer.error()["code"]) == (503, "unavailable")
    assert "try again later" in answer.error()["message"]


def test_a_model_server_that_hangs_up_is_503(one, upstream_of):
    async def hang_up(request):
        request.transport.abort()

    answer = one("POST", "/invocations", upstream_of(before=hang_up), data=b"{}")

    assert (answer.status, answer.error()["code"]) == (503, "unavailable")


def test_a_model_server_that_does_not_answer_in_time_is_504(talk, upstream_of):
    async def scenario(ask, _front):
        given_up = asyncio.Event()
        upstream.before = lambda _request: given_up.wait()
        answer = await ask("POST", "/invocations", data=b"{}")
        given_up.set()
        return answer

    upstream = upstream_of()
    answer = talk(scenario, upstream, timeout=1)

    assert (answer.status, answer.error()["code"]) == (504, "timeout")
    assert answer.error()["message"] == "No answer within 1 seconds; send fewer records."


async def in_pieces(size):
    for _ in range(size // 2**16):
        yield b"x" * 2**16
    yield b"x" * (size % 2**16)


def test_the_largest_body_is_passed_on(talk, upstream_of):
    upstream = upstream_of()

    async def both(ask, _front):
        return [
            await ask("POST", "/invocations", data=b"x" * LIMIT),
            await ask("POST", "/invocations", data=in_pieces(LIMIT)),
        ]

    assert [answer.status for answer in talk(both, upstream)] == [200, 200]
    assert [len(body) for *_, body in upstream.requests] == [LIMIT, LIMIT]


@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT])
def test_a_body_too_large_by_its_announced_length_is_413(size, one, upstream_of):
    upstream = upstream_of()

    answer = one("POST", "/invocations", upstream, data=b"x" * size)

    assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
    assert answer.error()["message"] == "The body is larger than 1 MB; send fewer records."
    assert upstream.requests == []


@pytest.mark.parametrize("size", [LIMIT + 1, 3 * LIMIT])
def test_a_body_too_large_in_chunks_is_413(size, one, upstream_of):
    upstream = upstream_of()

    answer = one("POST", "/invocations", upstream, data=in_pieces(size))

    assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
    assert upstream.requests == []


def test_a_compressed_body_is_passed_on_plain(one, upstream_of):
    upstream = upstream_of()

    answer = one(
        "POST", "/invocations", upstream, data=gzip.compress(b'{"a": 1}'), headers={"Content-Encoding": "gzip"}
    )

    ((_, _, seen, body),) = upstream.requests
    assert (answer.status, body, "Content-Encoding" in seen) == (200, b'{"a": 1}', False)


def test_a_body_too_large_once_it_is_unpacked_is_413(one, upstream_of):
    upstream = upstream_of()

    answer = one(
        "POST", "/invocations", upstream, data=gzip.compress(b"x" * 8 * LIMIT), headers={"Content-Encoding": "gzip"}
    )

    assert (answer.status, answer.error()["code"]) == (413, "payload_too_large")
    assert upstream.requests == []


def test_a_body_that_cannot_be_unpacked_is_a_client_error(one, upstream_of):
    upstream = upstream_of()

    answer = one("POST", "/invocations", upstream, data=b"no gzip at all", headers={"Content-Encoding": "gzip"})

    assert answer.status == 400
    assert answer.error()["code"] == "malformed_body"
    assert upstream.requests == []


def test_a_body_that_does_not_come_to_its_end_is_408(talk, upstream_of):
    upstream = upstream_of()

    async def never_ending():
        yield b"{"
        await asyncio.Event().wait()

    answer = talk(lambda ask, _front: ask("POST", "/invocations", data=never_ending()), upstream, timeout=1)

    assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
    assert answer.error()["message"] == "The body did not arrive within 1 seconds; send it faster."
    assert upstream.requests == []


def test_more_headers_than_the_model_server_takes_are_a_client_error(one, upstream_of):
    upstream = upstream_of()

    answer = one("POST", "/invocations", upstream, data=b"{}", headers={"X-A": "x" * 4000, "X-B": "x" * 4000})

    assert (answer.status, answer.error()["code"]) == (400, "malformed_body")
    assert "7680 bytes" in answer.error()["message"]
    assert upstream.requests == []


@pytest.mark.parametrize("sent", [b"sesame4711\r\n\r\n", b"POST / HTTP/1.1\r\nsesame4711\r\n\r\n"])
def test_neither_answer_nor_log_quotes_what_is_not_http(sent, talk, caplog):
    async def scenario(_ask, _front, base):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
        writer.write(sent)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    head, _, body = talk(scenario).partition(b"\r\n\r\n")

    assert head.split()[1] == b"400"
    assert json.loads(body)["error"]["code"] == "malformed_body"
    assert b"sesame" not in body
    assert "sesame" not in caplog.text
    assert "a request could not be read" in caplog.text
