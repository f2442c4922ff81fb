"""Batch Transform: how it is told to send records, and a bad record that costs itself and not the file."""

import csv
import io
import json

import pytest


@pytest.fixture(scope="module")
def transform(start):
    """A server as Batch Transform starts it."""
    return start(SAGEMAKER_BATCH="true", SAGEMAKER_MAX_PAYLOAD_IN_MB="6")


@pytest.fixture(scope="module")
def records(golden):
    return [item["record"] for item in golden[:3]]


def test_how_to_send_records(transform):
    told = transform.get("/execution-parameters").json
    assert set(told) == {"MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"}
    assert told["MaxConcurrentTransforms"] >= 1
    assert told["BatchStrategy"] == "MULTI_RECORD"
    assert told["MaxPayloadInMB"] == 6


def test_json_lines(transform, records, golden):
    lines = [
        json.dumps(records[0]),
        '{"broken',
        json.dumps(records[1] | {"concsi": "abc"}),
        "[1]",
        json.dumps({"dialogue": "alone"}),
        json.dumps(records[2]),
    ]
    answer = transform.post("\n".join(lines), "application/jsonlines", "application/jsonlines")
    assert answer.status == 200
    rows = [json.loads(line) for line in answer.body.decode().splitlines()]
    assert len(rows) == len(lines)
    codes = [row.get("error", {}).get("code") for row in rows]
    assert codes == [None, "malformed_body", "invalid_record", "malformed_body", "invalid_record", None]
    assert [row["error"]["record"] for row in rows if "error" in row] == [1, 2, 3, 4]
    scores = [float(rows[place]["legacy-score"]) for place in (0, 5)]
    assert scores == pytest.approx([golden[0]["probs"][1], golden[2]["probs"][1]], abs=1e-5)


def test_csv(transform, records, golden):
    names = list(records[0])
    out = io.StringIO()
    csv.writer(out).writerows([names, *([row.get(name) for name in names] for row in records)])
    body = out.getvalue().replace(f",{records[1]['ttm_conc_amt']},", ",oops,")
    assert "oops" in body
    answer = transform.post(body, "text/csv", "text/csv")
    rows = list(csv.reader(io.StringIO(answer.body.decode())))
    assert [len(row) for row in rows] == [3, 3, 3]
    assert rows[1] == ["error: Record 1: the field ttm_conc_amt is not a number.", "", ""]
    assert float(rows[2][0]) == pytest.approx(golden[2]["probs"][1], abs=6e-5)


def test_nothing_but_errors(transform, records):
    answer = transform.post(json.dumps([records[0] | {"concsi": "abc"}]))
    assert answer.status == 200
    (row,) = answer.json["predictions"]
    assert row["error"]["code"] == "invalid_record"


def test_elsewhere_a_bad_record_fails_its_request(demo, records):
    assert demo.post(json.dumps([records[0], records[1] | {"concsi": "abc"}])).status == 422
    assert demo.post(f"{json.dumps(records[0])}\n[1]\n", "application/jsonlines").status == 400
    assert demo.get("/execution-parameters").json["MaxConcurrentTransforms"] >= 1
