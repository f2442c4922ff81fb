"""What HTTP allows on a connection beside one tidy request: every case leaves the others unharmed."""

import json
import socket
import threading
import time

import pytest

SECRET = "sesame4711"


@pytest.fixture(scope="module")
def records(golden):
    return [item["record"] for item in golden]


@pytest.fixture(scope="module")
def hasty(start):
    """A server that waits two seconds for a request."""
    return start(REQUEST_TIMEOUT_SECONDS="2")


@pytest.fixture(autouse=True)
def _still_right(demo, golden):
    """After each case a request is answered as ever."""
    yield
    assert demo.predict(golden[0]["record"]).scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)


def request(body=None, *headers, method="POST", path="/invocations", version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", *headers]
    if version == "1.1":
        lines.append("Host: container")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def answer(stream, *, bodiless=False):
    """Reads an answer; interim ones are passed over. Returns status, headers, body."""
    status = 100
    while status < 200:
        status = int(stream.readline().split()[1])
        lines = iter(lambda: stream.readline().strip().decode(), "")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return status, headers, b"" if bodiless else stream.read(int(headers["content-length"]))


def ask(server, data, *, half_close=False, answers=1):
    """Sends bytes on a connection of their own; returns the answers, and whether the connection is then closed."""
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        found = [answer(stream) for _ in range(answers)]
        connection.settimeout(1)
        try:
            closed = stream.read(1) == b""
        except TimeoutError:
            closed = False
    return found, closed


def score(found):
    status, _, body = found
    assert status == 200, body
    return float(json.loads(body)["predictions"][0]["legacy-score"])


def bodies(records):
    return [json.dumps(record).encode() for record in records]


def statuses(server):
    return [line["status"] for line in server.log_lines if line["message"] == "invocation"]


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_many_requests_on_one_connection(demo, records):
    parts = bodies(records[:3])
    with connect(demo) as connection, connection.makefile("rb") as stream:
        for body, expected in ((parts[0], 200), (b"{", 400), (parts[1], 200), (b"[]", 400), (parts[2], 200)):
            connection.sendall(request(body))
            status, _, _ = answer(stream)
            assert status == expected
        connection.sendall(request(method="GET", path="/ping"))
        assert answer(stream)[0] == 200


def test_pipelined_requests_are_answered_in_their_order(demo, records, golden):
    together = b"".join(map(request, bodies(records[:8])))
    found, closed = ask(demo, together, answers=8)
    assert [score(item) for item in found] == pytest.approx([item["probs"][1] for item in golden[:8]], abs=1e-5)
    assert not closed


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_closes_its_sending_side_is_answered(demo, records, golden, version):
    many = json.dumps(records * 4).encode()  # takes longer than one needs to see that the client sends no more
    found, closed = ask(demo, request(many, version=version), half_close=True)
    assert score(found[0]) == pytest.approx(golden[0]["probs"][1], abs=1e-5)
    assert found[0][1]["connection"] == "close" or version == "1.0"
    assert closed

    found, closed = ask(demo, request(method="GET", path="/ping", version=version), half_close=True)
    assert (found[0][0], closed) == (200, True)


def test_pipelined_requests_of_a_client_that_closes_its_sending_side(demo, records, golden):
    found, closed = ask(demo, b"".join(map(request, bodies(records[:3]))), half_close=True, answers=3)
    assert [score(item) for item in found] == pytest.approx([item["probs"][1] for item in golden[:3]], abs=1e-5)
    assert closed


def test_half_a_request_of_a_client_that_closes_its_sending_side(demo, records):
    before = statuses(demo).count(499)
    with connect(demo) as connection:
        connection.sendall(request(bodies(records)[0])[:-10])
        time.sleep(0.1)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    wait_for(lambda: statuses(demo).count(499) == before + 1)
    assert not [line for line in demo.log_lines if line["level"] == "ERROR"]


def test_http_1_0(demo, records, golden):
    for headers in ((), ("Host: container",)):
        found, closed = ask(demo, request(bodies(records)[0], *headers, version="1.0"))
        assert score(found[0]) == pytest.approx(golden[0]["probs"][1], abs=1e-5)
        assert closed
    found, closed = ask(demo, request(method="GET", path="/ping", version="1.0"))
    assert (found[0][0], closed) == (200, True)


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("HEAD", "/ping", 200, None),
        ("HEAD", "/invocations", 405, "POST"),
        ("HEAD", "/nothing", 404, None),
        ("OPTIONS", "/ping", 405, "GET, HEAD"),
        ("OPTIONS", "/invocations", 405, "POST"),
        ("OPTIONS", "/nothing", 404, None),
        ("OPTIONS", "*", 404, None),
        ("PUT", "/invocations", 405, "POST"),
        ("DELETE", "/ping", 405, "GET, HEAD"),
    ],
)
def test_other_methods(demo, method, path, status, allowed):
    with connect(demo) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(method=method, path=path))
        got, headers, body = answer(stream, bodiless=method == "HEAD")
        assert (got, headers.get("allow")) == (status, allowed)
        assert headers["content-type"].startswith("application/json")
        assert method == "HEAD" or "code" in json.loads(body)["error"]
        connection.sendall(request(method="GET", path="/ping"))  # what follows is no body of a HEAD
        assert answer(stream)[0] == 200


def test_a_request_that_comes_byte_by_byte(demo, records, golden):
    with connect(demo) as connection, connection.makefile("rb") as stream:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, byte in enumerate(request(bodies(records)[0])):
            connection.sendall(bytes([byte]))
            if number % 300 == 0:
                assert demo.predict(records[1]).status == 200
        assert score(answer(stream)) == pytest.approx(golden[0]["probs"][1], abs=1e-5)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_stops_half_way(hasty, records, chunked):
    body = bodies(records)[0]
    head = (
        request(None, "Transfer-Encoding: chunked") + b"%x\r\n" % len(body) if chunked else request(body)[: -len(body)]
    )
    outcomes = []

    def stall():
        outcomes.append(ask(hasty, head + body[:-10]))

    threads = [threading.Thread(target=stall) for _ in range(12)]
    for thread in threads:
        thread.start()
    while not outcomes:
        assert hasty.predict(records[0]).status == 200
    for thread in threads:
        thread.join()
    assert len(outcomes) == len(threads)
    for [(status, headers, content)], _ in outcomes:
        error = json.loads(content)["error"]
        assert (status, error["code"], headers["connection"]) == (408, "request_timeout", "close")
        assert "2 seconds" in error["message"]
    assert statuses(hasty).count(408) >= len(threads)


def test_a_body_that_stops_does_not_hold_up_the_end(start, records):
    server = start(REQUEST_TIMEOUT_SECONDS="2")
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(bodies(records)[0])[:-10])
        wait_for(lambda: server.predict(records[0]).status == 200)
        assert server.terminate() == 0
        assert answer(stream)[0] in (408, 503)


@pytest.mark.parametrize(
    "data",
    [
        f"{SECRET}\r\n\r\n".encode(),
        f"POST /invocations HTTP/1.1\r\nHost: x\r\nX-Name: {SECRET}\x00\r\n\r\n".encode(),
        f"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n".encode(),
        f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: {SECRET}\r\n\r\n1".encode(),
        request(b"[" + b" " * 20) + f'"{SECRET}"]'.encode(),
    ],
    ids=["no http", "header", "chunk", "two lengths", "length too short"],
)
def test_what_is_no_http_is_refused_and_never_quoted(demo, data):
    with connect(demo) as connection:
        connection.sendall(data)
        got = b""
        while part := connection.recv(65536):
            got += part
    last = got[got.rindex(b"HTTP/1.") :]
    head, _, body = last.partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert b"application/json" in head
    assert json.loads(body)["error"]["code"] == "malformed_body"
    assert SECRET.encode() not in got
    assert SECRET not in demo.log_text
