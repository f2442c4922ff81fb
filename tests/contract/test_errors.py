"""Bad input gets its own status and a message that says what to fix; nothing else is lost."""

import json
import socket
import threading

import pytest


@pytest.fixture(scope="module")
def record(golden):
    return golden[0]["record"]


def change(record, **changes):
    return json.dumps([record, {**record, **changes}])


def without(record, field):
    return json.dumps({name: value for name, value in record.items() if name != field})


@pytest.fixture(autouse=True)
def _still_right(demo, golden):
    """After each bad request a good one is answered as ever."""
    yield
    assert demo.predict(golden[0]["record"]).scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)


@pytest.mark.parametrize("content_type", ["text/plain", "image/png", "nonsense", "application/x-www-form-urlencoded"])
def test_unknown_content_type(demo, content_type):
    answer = demo.post("{}", content_type)
    assert answer.status == 415
    assert "application/json" in answer.error["message"]


@pytest.mark.parametrize("accept", ["image/png", "application/xml, text/html"])
def test_unsupported_accept(demo, record, accept):
    answer = demo.post(json.dumps(record), accept=accept)
    assert answer.status == 406
    assert "text/csv" in answer.error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"  \n", b'{"a": ', b"3", b'"x"', b"null", b"[]", b"\xff\xfe\x00", b'["a"]', b"[" * 100_000, b"1" * 5000],
    ids=["empty", "blank", "broken", "number", "string", "null", "no record", "not utf-8", "strings", "deep", "digits"],
)
def test_malformed_json(demo, body):
    answer = demo.post(body)
    assert answer.status == 400
    assert answer.error["message"]


def test_malformed_csv_and_parquet(demo):
    assert demo.post(b'1,"open', "text/csv").status == 400
    assert demo.post(b"PAR1 no PAR1", "application/x-parquet").status == 400


def test_missing_field(demo, record):
    answer = demo.post(json.dumps([record, json.loads(without(record, "concsi"))]))
    assert answer.status == 422
    assert answer.error["record"] == 1
    assert "concsi" in answer.error["message"]


@pytest.mark.parametrize(
    "value",
    ['"nan"', "Infinity", "-Infinity", "1e400", "1e39", '"abc"', '""', "[1]", '{"a": 1}', '"1,000"'],
)
def test_a_value_that_is_no_finite_number(demo, record, value):
    body = change(record, concsi="MARK").replace('"MARK"', value)
    answer = demo.post(body)
    assert answer.status == 422
    assert answer.error["record"] == 1
    assert "concsi" in answer.error["message"]


def test_a_text_that_is_none(demo, record):
    answer = demo.post(change(record, dialogue=["[bom] hi [eom]"]))
    assert answer.status == 422
    assert "dialogue" in answer.error["message"]


def test_messages_never_quote_the_record(demo, record):
    secret = "sesame4711"
    for body in (
        change(record, concsi=secret),
        json.dumps({secret: 1}),
        f'{{"dialogue": "{secret}"',
        change(record, dialogue=f"[bom] <![{secret}]> [eom]"),
    ):
        answer = demo.post(body)
        assert answer.status in (400, 422)
        assert secret not in answer.body.decode()
    assert secret not in demo.log_text


def test_wrong_number_of_columns(demo):
    answer = demo.post("1,2,3\n", "text/csv")
    assert answer.status == 422
    assert answer.error["record"] == 0
    assert "3 columns" in answer.error["message"]


def test_too_large(start, golden):
    server = start(SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    body = json.dumps({**golden[0]["record"], "padding": "x" * 1_100_000})
    answer = server.post(body)
    assert answer.status == 413
    assert "1 MB" in answer.error["message"]
    chunked = server.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    assert chunked.status == 413
    allowed = json.dumps({**golden[0]["record"], "padding": "x" * 900_000})
    assert server.post(allowed).status == 200
    assert server.terminate() == 0


def test_a_large_body_under_the_default_limit(demo, golden):
    body = json.dumps({**golden[0]["record"], "padding": "x" * 20_000_000})
    assert demo.post(body).scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)


def test_unknown_path_and_method(demo):
    assert demo.get("/nothing").status == 404
    assert demo.get("/nothing").error["code"] == "not_found"
    answer = demo.get("/invocations")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["code"] == "method_not_allowed"


def test_neighbours_of_bad_requests_are_answered(demo, golden):
    statuses, scores = [], []

    def bad():
        statuses.append(demo.post(b"{").status)

    def good():
        scores.extend(demo.predict(golden[1]["record"]).scores)

    threads = [threading.Thread(target=target) for target in [bad, good] * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [400] * 10
    assert scores == pytest.approx([golden[1]["probs"][1]] * 10, abs=1e-5)


def test_a_half_sent_request_is_dropped(demo):
    with socket.create_connection(("127.0.0.1", demo.port)) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    with socket.create_connection(("127.0.0.1", demo.port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b" 400 " in connection.recv(4096).splitlines()[0]


def test_a_refused_request_is_logged_with_its_status(start):
    server = start(SAGEMAKER_MAX_PAYLOAD_IN_MB="1")
    server.post("x" * 1_100_000)
    assert server.terminate() == 0
    assert [line["status"] for line in server.log_lines if line["message"] == "invocation"] == [413]
