"""Every media type in and out, on the demo model."""

import csv
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

TOLERANCE = 1e-5
CSV_TOLERANCE = 6e-5  # four decimals


@pytest.fixture(scope="module")
def records(golden):
    return [item["record"] for item in golden[:3]]


@pytest.fixture(scope="module")
def expected(golden):
    return pytest.approx([item["probs"][1] for item in golden[:3]], abs=TOLERANCE)


@pytest.fixture(scope="module")
def columns(model_dir):
    lines = (model_dir / "feature_columns.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition(",")[2] for line in lines if line and not line.startswith("#")]


def as_csv(records, names, *, header=False):
    out = io.StringIO()
    writer = csv.writer(out)
    if header:
        writer.writerow(names)
    writer.writerows([record.get(name) for name in names] for record in records)
    return out.getvalue()


def as_lines(records):
    return "\n".join(json.dumps(record) for record in records)


def as_parquet(records):
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(records), out)
    return out.getvalue()


def test_one_object(demo, records, golden):
    answer = demo.post(json.dumps(records[0]))
    assert answer.scores == pytest.approx([golden[0]["probs"][1]], abs=TOLERANCE)
    (row,) = answer.json["predictions"]
    assert list(row) == ["legacy-score", "calibrated-score", "score-percentile"]
    assert all(isinstance(score, str) for score in row.values())
    assert row["calibrated-score"] == row["score-percentile"] != row["legacy-score"]


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda records: json.dumps(records, indent=2),
        lambda records: json.dumps(records) + "\n",
        lambda records: json.dumps({"instances": records}),
        as_lines,
        lambda records: as_lines(records) + "\r\n\r\n",
    ],
    ids=["list", "pretty", "final line feed", "instances", "lines", "lines and blank lines"],
)
def test_json(demo, records, expected, write):
    assert demo.post(write(records)).scores == expected


@pytest.mark.parametrize(
    "content_type", ["application/jsonlines", "application/x-ndjson", "Application/JSONLines; charset=UTF-8"]
)
def test_json_lines(demo, records, expected, content_type):
    assert demo.post(as_lines(records), content_type).scores == expected


@pytest.mark.parametrize("header", [False, True])
def test_csv(demo, records, expected, columns, header):
    assert demo.post(as_csv(records, columns, header=header), "text/csv").scores == expected


def test_csv_header_in_another_order(demo, records, expected, columns):
    names = ["note", *reversed(columns), "order_id"]
    assert demo.post(as_csv(records, names, header=True), "text/csv; charset=utf-8").scores == expected


def test_parquet(demo, records, expected):
    assert demo.post(as_parquet(records), "application/x-parquet").scores == expected


def test_content_type_is_json_when_absent(demo, records, expected):
    assert demo.post(json.dumps(records), None).scores == expected


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json;q=0.9", "application/json"),
        ("TEXT/CSV", "text/csv"),
        ("text/*", "text/csv"),
        ("application/jsonlines", "application/jsonlines"),
        ("image/png, text/csv;q=0.5, application/json;q=0.4", "text/csv"),
    ],
)
def test_accept(demo, records, accept, media):
    answer = demo.post(json.dumps(records), accept=accept)
    assert (answer.status, answer.headers["content-type"]) == (200, media)


def test_csv_answer(demo, records):
    answer = demo.post(json.dumps(records), accept="text/csv")
    rows = list(csv.reader(io.StringIO(answer.body.decode())))
    scores = demo.predict(*records).json["predictions"]
    assert answer.body.endswith(b"\n")
    for row, score in zip(rows, scores, strict=True):
        assert all(len(cell.partition(".")[2]) == 4 for cell in row)
        assert [float(cell) for cell in row] == pytest.approx([float(s) for s in score.values()], abs=CSV_TOLERANCE)


def test_json_lines_answer(demo, records):
    lines = demo.post(json.dumps(records), accept="application/jsonlines").body.decode().splitlines()
    assert [json.loads(line) for line in lines] == demo.predict(*records).json["predictions"]


def test_golden_records(demo, golden):
    answer = demo.predict(*(item["record"] for item in golden))
    assert answer.scores == pytest.approx([item["probs"][1] for item in golden], abs=TOLERANCE)


def test_a_score_does_not_depend_on_its_neighbours(demo, golden):
    records = [item["record"] for item in golden]
    together = demo.predict(*records[:51]).scores
    assert len(together) == 51
    for place in (0, 7, 50):
        alone = demo.predict(records[place]).scores[0]
        doubled = demo.predict(records[place], records[place]).scores
        assert [*doubled, together[place]] == pytest.approx([alone] * 3, abs=TOLERANCE)


def test_more_fields_and_numbers_on_request(start, golden):
    server = start(SCORE_FORMAT="number", RESPONSE_FIELDS="output-label,id")
    record = {**golden[0]["record"], "order_id": "402-1"}
    (row,) = server.predict(record).json["predictions"]
    assert row.pop("order_id") == "402-1"
    assert row.pop("output-label") == f"class-{golden[0]['probs'][1] > 0.5:d}"
    assert row["legacy-score"] == pytest.approx(golden[0]["probs"][1], abs=TOLERANCE)
    assert server.terminate() == 0
