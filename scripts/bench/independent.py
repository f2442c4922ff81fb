"""Times a graph without the toolkit, and holds the toolkit's figures against it.

    .venv/bin/python scripts/bench/independent.py MODEL.onnx RESULTS.json [--calls 30]

Each fixed length of the results, one record a call: a bare loop over `InferenceSession.run`, and what ONNX Runtime's
own profile says of the same calls (`model_run`). Nothing of the package is imported. A figure agrees where the
toolkit's fastest and slowest round, widened by the loop's own spread, enclose the loop's median.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

VARIANT = "onnx-fp32"


def open_session(graph: Path, threads: int, profile: str | None) -> Any:
    """Opens a graph with default options, but for threads that do not spin, as the toolkit's reference has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def make_feed(session: Any, tokens: int) -> dict[str, Any]:
    """Makes up one record whose every text has so many tokens."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        text = value.type == "tensor(int64)"
        shape = [1] * (len(value.shape) - text) + ([tokens] if text else [])
        if not text:
            feed[value.name] = rng.normal(size=shape).astype(np.float32)
        elif value.name.endswith("mask"):
            feed[value.name] = np.ones(shape, np.int64)
        else:
            feed[value.name] = rng.integers(5, 1000, shape)
    return feed


def loop(session: Any, feed: dict[str, Any], calls: int) -> list[float]:
    """Returns the milliseconds of calls, after three that are not counted."""
    times = []
    for _ in range(calls + 3):
        started = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - started) * 1000)
    return times[3:]


def profiled(graph: Path, threads: int, tokens: int, calls: int) -> float:
    """Returns the median of what ONNX Runtime's profile says of the calls, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(graph, threads, f"{folder}/profile")
        loop(session, make_feed(session, tokens), calls)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = [event["dur"] / 1000 for event in events if event.get("name") == "model_run"]
    return float(statistics.median(runs[3:]))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median, the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    """Prints the table; exit status 1 where a figure does not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, metavar="MODEL.onnx")
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--calls", type=int, default=30)
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    session = open_session(options.graph, results["threads"], None)
    agreed = True
    print(
        f"| {VARIANT} | toolkit p50 ms (its rounds) | bare loop: median (quartiles) | onnxruntime's profile | agrees |"
    )
    print("|---|---|---|---|---|")
    for row in results["rows"]:
        if row["variant"] != VARIANT or row["batch_size"] != 1 or not row["traffic"].startswith("S="):
            continue
        tokens = int(row["traffic"][2:])
        low, middle, high = quartiles(loop(session, make_feed(session, tokens), options.calls))
        own = profiled(options.graph, results["threads"], tokens, options.calls)
        spread = high - low
        fits = row["low_ms"] - spread <= middle <= row["high_ms"] + spread
        agreed &= fits
        toolkit = f"{row['p50_ms']:.2f} ({row['low_ms']:.2f}–{row['high_ms']:.2f})"
        loops = f"{middle:.2f} ({low:.2f}–{high:.2f})"
        print("|", " | ".join([row["traffic"], toolkit, loops, f"{own:.2f}", "yes" if fits else "NO"]), "|")
    raise SystemExit(0 if agreed else 1)


if __name__ == "__main__":
    main()
