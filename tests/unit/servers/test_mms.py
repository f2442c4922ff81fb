from __future__ import annotations

import json
import time

import pytest

from model_directories import PRIMARY, RECORD, SECONDARY
from trimodal.servers.mms import handle
from trimodal.servers.workers import ANSWERED, SENT

pytestmark = pytest.mark.usefixtures("fresh_process")

BODY = json.dumps(RECORD).encode()
JSON = {"Content-Type": "application/json"}
SECRET = "a-very-private-dialogue"


def test_one_request(worker):
    (answer,) = worker()((BODY, JSON))

    assert (answer.status, answer.phrase) == (200, "OK")
    assert answer.headers == {"content-type": "application/json", ANSWERED: "1"}
    (prediction,) = answer.json()["predictions"]
    assert list(prediction) == ["legacy-score", "calibrated-score", "score-percentile"]
    assert 0 < float(prediction["legacy-score"]) < 1


def test_each_request_of_a_batch_has_its_own_answer(worker):
    csv = f'x,1.5,2,"{RECORD[PRIMARY]}","{RECORD[SECONDARY]}"\n'.encode()

    good, broken, unknown, table, missing, refused, again = worker()(
        (BODY, JSON),
        (b"{", JSON),
        (BODY, {"Content-Type": "image/png"}),
        (csv, {"Content-Type": "text/csv", "Accept": "text/csv"}),
        (json.dumps([RECORD, {**RECORD, "amount": "x"}]).encode(), JSON),
        (BODY, JSON | {"Accept": "image/png"}),
        (BODY, JSON),
    )

    assert [good.status, broken.status, unknown.status, table.status] == [200, 400, 415, 200]
    assert [missing.status, refused.status, again.status] == [422, 406, 200]
    assert (broken.error()["code"], broken.phrase) == ("malformed_body", "Bad Request")
    assert unknown.error()["code"] == "unsupported_content_type"
    assert missing.error() == {
        "code": "invalid_record",
        "message": "Record 1: the field amount is not a number.",
        "record": 1,
    }
    assert refused.error()["code"] == "not_acceptable"
    assert table.headers["content-type"] == "text/csv"
    assert len(table.body.decode().strip().split(",")) == 3
    assert good == again
    assert {answer.headers[ANSWERED] for answer in (good, broken, unknown, table, missing, refused)} == {"1"}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, bytes.decode])
def test_a_body_may_come_as_bytes_or_text(worker, kind):
    ask = worker()

    assert ask((kind(BODY), JSON)) == ask((BODY, JSON))


@pytest.mark.parametrize("request_without_body", [{}, {"body": None}, {"body": b""}, {"data": BODY}])
def test_a_request_without_body_is_an_error(worker, tmp_path, context_of, request_without_body):
    worker()
    context = context_of(tmp_path / "model", [JSON])

    (body,) = handle([request_without_body], context)

    assert context.get_response_status(0) == (400, "Bad Request")
    assert json.loads(body)["error"]["code"] == "malformed_body"


def test_a_body_that_is_none_does_not_fail_its_neighbours(worker):
    good, empty = worker()((BODY, JSON), (None, JSON))

    assert (good.status, empty.status) == (200, 400)
    assert empty.error()["code"] == "malformed_body"


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
@pytest.mark.parametrize("value", ["application/jsonlines", "Application/JSONLines; charset=UTF-8"])
def test_headers_and_media_types_may_be_written_in_any_case(worker, name, value):
    (answer,) = worker()((BODY + b"\n" + BODY, {name: value, "ACCEPT": "Text/CSV; q=0.5"}))

    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv")
    assert len(answer.body.splitlines()) == 2


def test_without_headers_json_is_read_and_the_default_written(worker):
    ask = worker(variables={"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"})

    plain, any_type, wanted = ask((BODY, {}), (BODY, {"Accept": "*/*"}), (BODY, {"Accept": "application/json"}))

    assert [a.headers["content-type"] for a in (plain, any_type, wanted)] == [
        "text/csv",
        "text/csv",
        "application/json",
    ]


def test_an_error_holds_no_path_no_trace_and_nothing_of_the_record(worker, capsys):
    private = {**RECORD, PRIMARY: f"[bom]{SECRET}[eom]"}
    ask = worker()
    capsys.readouterr()

    answers = ask(
        (json.dumps({**private, "amount": SECRET}).encode(), JSON),
        (json.dumps({**private, "amount": [SECRET]}).encode(), JSON),
        (json.dumps(private).encode()[:-1], JSON),
        (json.dumps([private, 5]).encode(), JSON),
        (SECRET.encode(), {"Content-Type": "text/csv"}),
        (SECRET.encode(), {"Content-Type": f"text/{SECRET}"}),
        (json.dumps(private).encode(), JSON | {"Accept": SECRET}),
        (json.dumps({PRIMARY: SECRET}).encode(), JSON),
    )

    assert [answer.status for answer in answers] == [422, 422, 400, 400, 422, 415, 406, 422]
    for answer in answers:
        text = json.dumps(answer.error())
        assert SECRET not in text
        assert "Traceback" not in text
        assert "/" not in text.replace("application/", "").replace("text/", "")
    assert SECRET not in capsys.readouterr().out


def test_a_request_that_nobody_waits_for_any_more_is_not_worked_on(worker):
    ask = worker(variables={"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": 60})
    late, fresh = ask(*((BODY, JSON | {SENT: str(time.monotonic() - age)}) for age in (61, 1)))
    assert (late.status, late.error()["code"]) == (504, "timeout")
    assert fresh.status == 200
