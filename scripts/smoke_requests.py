"""Sends one request of each kind to a running container and checks the answers against the model's golden records.

Runs inside the container (`scripts/smoke` feeds it to the image's own Python), because a container without a network
cannot be reached from outside. Prints a line per request; the exit status says whether all were as expected.
"""

import csv
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

MODEL_DIR = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
SEVERAL = os.environ.get("SAGEMAKER_MULTI_MODEL") == "true"
"""The container serves several models: load this one first."""

SERVER = f"http://127.0.0.1:{os.environ.get('SAGEMAKER_BIND_TO_PORT', '8080')}"
URL = f"{SERVER}/models/smoke/invoke" if SEVERAL else f"{SERVER}/invocations"
RECORDS = 3
MANY = 200
TOLERANCE = 1e-5
CSV_TOLERANCE = 6e-5  # CSV answers have four decimals


class Request(NamedTuple):
    """One request and what its answer must be; `scores` is None where only the status counts."""

    name: str
    content_type: str
    body: bytes
    accept: str = "application/json"
    status: int = 200
    scores: int | None = RECORDS


def csv_body(rows: Sequence[Sequence[object]]) -> bytes:
    """Writes CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def parquet_body(records: list[dict[str, Any]]) -> bytes:
    """Writes a parquet file, one row a record."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(records), buffer)
    return buffer.getvalue()


def column_order() -> list[str]:
    """Reads the order of headerless CSV from the model directory."""
    lines = (MODEL_DIR / "feature_columns.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(",", 1)[1].strip() for line in lines if line.strip() and line[0] != "#"]


def envelope() -> str | None:
    """Reads which key may wrap a list of records, where the model directory allows one."""
    config = json.loads((MODEL_DIR / "hyperparameters.json").read_text(encoding="utf-8"))
    key: str | None = config.get("request_envelope")
    return key


def requests(records: list[dict[str, Any]]) -> Iterator[Request]:
    """Yields every content type that the container takes, and two requests that it must refuse."""
    json_type, columns = "application/json", column_order()
    rows = [[record.get(name) for name in columns] for record in records]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    pretty = json.dumps(records, indent=2).encode()
    yield Request("JSON object", json_type, json.dumps(records[0]).encode(), scores=1)
    yield Request("JSON list", json_type, json.dumps(records).encode())
    if (key := envelope()) is not None:
        yield Request(f"JSON {key}", json_type, json.dumps({key: records}).encode())
    yield Request("JSON, indented", "Application/JSON; charset=utf-8", pretty, accept="*/*")
    yield Request("JSON lines", "application/jsonlines", lines)
    yield Request("JSON lines, both ways", "application/jsonlines", lines, "application/jsonlines")
    yield Request("CSV", "text/csv", csv_body(rows))
    yield Request("CSV with header", "text/csv", csv_body([columns, *rows]))
    yield Request("CSV, both ways", "text/csv", csv_body(rows), accept="text/csv")
    yield Request("parquet", "application/x-parquet", parquet_body(records))
    yield Request("unknown content type", "application/xml", b"<a/>", status=415, scores=None)
    yield Request("broken JSON", json_type, b'{"a": ', status=400, scores=None)


def send(request: Request, url: str = URL) -> tuple[int, str]:
    """Posts a request; returns the status and the body."""
    headers = {"Content-Type": request.content_type, "Accept": request.accept}
    try:
        asked = urllib.request.Request(url, request.body, headers)  # noqa: S310  an address of our own
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode()


def _of_json(text: str) -> list[float]:
    return [float(item["legacy-score"]) for item in json.loads(text)["predictions"]]


def _of_json_lines(text: str) -> list[float]:
    return [float(json.loads(line)["legacy-score"]) for line in text.splitlines()]


def _of_csv(text: str) -> list[float]:
    return [float(line.split(",")[0]) for line in text.splitlines()]


SCORES: dict[str, Callable[[str], list[float]]] = {
    "application/jsonlines": _of_json_lines,
    "text/csv": _of_csv,
}
"""How the raw scores of an answer are read, by its media type; JSON otherwise."""


def fault(request: Request, status: int, text: str, golden: list[float]) -> str | None:
    """Says what is wrong with an answer, or None."""
    if status != request.status:
        return f"status {status} instead of {request.status}"
    if request.scores is None:
        error = json.loads(text)["error"]
        return None if error["code"] and error["message"] else "an error without code or message"
    scores = SCORES.get(request.accept, _of_json)(text)
    expected = golden[: request.scores]
    if len(scores) != len(expected):
        return f"{len(scores)} scores instead of {len(expected)}"
    tolerance = CSV_TOLERANCE if request.accept == "text/csv" else TOLERANCE
    difference = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
    return None if difference <= tolerance else f"scores differ from the golden ones by {difference:.2g}"


def main() -> int:
    """Sends all requests; returns the number of bad answers."""
    lines = (MODEL_DIR / "golden.jsonl").read_text(encoding="utf-8").splitlines()[:RECORDS]
    golden = [json.loads(line) for line in lines]
    probabilities = [float(line["probs"][1]) for line in golden]
    bad = 0
    if SEVERAL:
        wanted = {"model_name": "smoke", "url": str(MODEL_DIR)}
        print("  loaded:", *send(Request("load", "application/json", json.dumps(wanted).encode()), f"{SERVER}/models"))
    for request in requests([line["record"] for line in golden]):
        status, text = send(request)
        try:
            problem = fault(request, status, text, probabilities)
        except (ValueError, LookupError, TypeError) as err:
            problem = f"an answer that cannot be read: {err!r}"
        bad += problem is not None
        shown = text if len(text) <= 120 else text[:117] + "..."
        print(f"  {request.name:<22} {status} {shown!r}{f'  BAD: {problem}' if problem else ''}")
    return bad + many(golden)


def many(golden: list[dict[str, Any]]) -> int:
    """Sends `MANY` records, one at a time; returns the number of bad answers."""
    bad = 0
    for place in range(MANY):
        line = golden[place % len(golden)]
        request = Request("one of many", "application/json", json.dumps(line["record"]).encode(), scores=1)
        bad += fault(request, *send(request), [float(line["probs"][1])]) is not None
    print(f"  {MANY} more: {bad} bad")
    return bad


if __name__ == "__main__":
    sys.exit(main())
