"""Checks the log of a container that has ended: JSON throughout, and metrics that add up to the requests.

`scripts/smoke` feeds it the log. Prints one line; the exit status says whether all was as expected.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

MIN_REQUESTS = 200


class BadLog(Exception):
    """The log is not what it should be."""


def parse(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Reads every line.

    Raises:
        BadLog: one is not a JSON object.
    """
    documents = []
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError as err:
            raise BadLog(f"a line is not JSON: {line[:120]!r}") from err
        if not isinstance(document, dict):
            raise BadLog(f"a line is no object: {line[:120]!r}")
        documents.append(document)
    return documents


def counted(document: dict[str, Any], size: int) -> int:
    """Checks a line of the embedded metric format; returns the requests that its `Latency` counts.

    Raises:
        BadLog: it is over a limit of the format.
    """
    count = 0
    for directive in document["_aws"]["CloudWatchMetrics"]:
        names = [metric["Name"] for metric in directive["Metrics"]]
        values = [document[name] for name in names]
        longest = max((len(value["Values"]) for value in values if isinstance(value, dict)), default=0)
        if size > 1_000_000 or len(names) > 100 or longest > 100 or any(len(d) > 30 for d in directive["Dimensions"]):
            raise BadLog(f"a line of metrics is over a limit: {size} bytes, {len(names)} metrics, {longest} values")
        if "Latency" in names:
            count += sum(document["Latency"]["Counts"])
    return count


def main() -> int:
    """Checks standard input."""
    lines = sys.stdin.read().splitlines()
    try:
        documents = parse(lines)
        metrics = [(one, len(line)) for one, line in zip(documents, lines, strict=True) if "_aws" in one]
        latencies = sum(counted(document, size) for document, size in metrics)
    except BadLog as err:
        print(f"  log  BAD: {err}")
        return 1
    requests = sum(document.get("message") == "invocation" for document in documents)
    good = latencies == requests >= MIN_REQUESTS
    print(f"  log: {len(lines)} lines of JSON, {len(metrics)} of metrics, {latencies} latencies of {requests} requests"
          + ("" if good else "  BAD"))  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
