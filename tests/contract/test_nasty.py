"""Hostile requests get a prediction or our own 4xx, quote nothing, and cost the next request nothing."""

import json
import socket
from pathlib import Path

import pytest

import nasty

CASES = nasty.corpus("dialogue", "shiptrack_event_history_by_order", "concsi")


@pytest.fixture(scope="module")
def record(golden):
    """A good record with the canary in its texts."""
    good = golden[0]["record"]
    texts = {name: f"{value} [bom]{nasty.CANARY}[eom]" for name, value in good.items() if "[bom]" in str(value)}
    assert len(texts) == 2
    return {**good, **texts}


def peak(server):
    """The most memory that any process of a server has held, in MB."""
    found = []
    for pid in [server.process.pid, *(pid for pid, _ in server.descendants())]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found += [int(line.split()[1]) // 1000 for line in lines if line.startswith("VmHWM")]
    return max(found)


@pytest.fixture(scope="module", autouse=True)
def _bounded(demo):
    """Whatever is sent, no process grows by much more than 25 times the largest body."""
    before = peak(demo)
    yield
    assert peak(demo) - before < 700


@pytest.fixture(autouse=True)
def _still_right(demo, golden):
    """After each bad request a good one is answered as ever."""
    yield
    assert demo.predict(golden[0]["record"]).scores == pytest.approx([golden[0]["probs"][1]], abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_or_our_own_4xx(demo, record, name):
    case = CASES[name](record)
    headers = {"Content-Type": case.content_type, **case.headers}
    answer = demo.request("POST", "/invocations", case.body, headers)
    if answer.status == 200:
        assert answer.scores
    else:
        assert 400 <= answer.status < 700, answer.body[:500]
        assert answer.error["message"]
        assert len(answer.body) < 2000
        assert nasty.CANARY not in answer.body.decode()
        assert "/" not in answer.error["message"].replace("application/", "").replace("text/csv", "").replace(
            "HTTP/", ""
        )
    assert answer.status in (case.statuses or range(200, 500))


FRAMINGS = dict(nasty.framings(json.dumps({"dialogue": nasty.CANARY}).encode()))


@pytest.mark.parametrize("name", FRAMINGS)
def test_what_is_not_http_is_answered_in_our_form_or_not_at_all(demo, name):
    received = b""
    with socket.create_connection(("127.0.0.1", demo.port), timeout=30) as connection:
        try:
            connection.sendall(FRAMINGS[name])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it closes the connection before it has read all
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionError:
            pass  # and then the answer may be lost
    assert nasty.CANARY.encode() not in received
    if received:
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.split()[1].startswith(b"4"), received[:500]
        assert json.loads(body)["error"]["message"]


def test_nothing_of_a_request_is_in_the_log(demo):
    assert nasty.CANARY not in demo.log_text
    assert "Traceback" not in demo.log_text
