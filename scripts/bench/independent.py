"""Times a graph without the toolkit, before and after the toolkit does, and holds its figures against that.

    .venv/bin/python scripts/bench/independent.py MODEL_DIR [--lengths 13 32 128] [--seconds 3] [--budget 60]

For each fixed length, one record a call: a bare loop over `InferenceSession.run`, in which nothing of the package is
imported, and what ONNX Runtime's own profile says of such calls (`model_run`; writing the profile costs, and most where
calls are short). The toolkit's figure agrees where the range of its rounds meets that of the loops' quartiles: these
machines change their speed within minutes, so the loops run on both sides of it. A toolkit's call begins with a record,
whose tensors take 0.2 ms to make (measured), and in a process that has just been woken; so it may take half a
millisecond more.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

VARIANT = "onnx-fp32"

TENSORS_MS = 0.5
"""Most that a toolkit's call may take beside the run of the graph."""


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


def loop(session: Any, feed: dict[str, Any], seconds: float) -> list[float]:
    """Returns the milliseconds of calls, for so many seconds and ten calls at least, after three that do not count."""
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 13 or time.perf_counter() < ends:
        started = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - started) * 1000)
    return times[3:]


def profiled(graph: Path, threads: int, tokens: int, seconds: float) -> float:
    """Returns the median of what ONNX Runtime's profile says of the calls, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(graph, threads, f"{folder}/profile")
        loop(session, make_feed(session, tokens), seconds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = [event["dur"] / 1000 for event in events if event.get("name") == "model_run"]
    return float(statistics.median(runs[3:]))


def toolkit(model: Path, threads: int, lengths: Sequence[int], budget: float) -> dict[int, dict[str, float]]:
    """Returns the toolkit's figures by length."""
    command = [sys.executable, "-m", "trimodal.cli", "optimize", str(model), "--batch-sizes", "1", "--sequence-lengths"]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--threads", str(threads), "--budget", str(budget), "--out", folder]
        subprocess.run([*command, *map(str, lengths), *options], check=True, stdout=subprocess.DEVNULL)
        (file,) = Path(folder).glob("*.json")
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {int(row["traffic"][2:]): row for row in rows if row["variant"] == VARIANT and row["traffic"] != "mix"}


def main() -> None:
    """Prints the table; exit status 1 where a figure does not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--lengths", type=int, nargs="+", default=[13, 32, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--budget", type=float, default=60)
    options = parser.parse_args()
    graph = options.model / "model.onnx"
    session = open_session(graph, options.threads, None)
    feeds = {tokens: make_feed(session, tokens) for tokens in options.lengths}

    def loops() -> dict[int, list[float]]:
        return {tokens: statistics.quantiles(loop(session, feed, options.seconds)) for tokens, feed in feeds.items()}

    before = loops()
    figures = toolkit(options.model, options.threads, options.lengths, options.budget)
    after = loops()
    agreed = True
    print(f"| {VARIANT} | toolkit p50 ms (its rounds) | loop before: median (quartiles) | after | profile | agrees |")
    print("|---|---|---|---|---|---|")
    for tokens, row in figures.items():
        pair = before[tokens], after[tokens]
        least, most = min(low for low, _, _ in pair), max(high for _, _, high in pair) + TENSORS_MS
        fits = row["low_ms"] <= most and row["high_ms"] >= least
        agreed &= fits
        spread = f"{row['p50_ms']:.2f} ({row['low_ms']:.2f}–{row['high_ms']:.2f})"
        cells = [f"{middle:.2f} ({low:.2f}–{high:.2f})" for low, middle, high in pair]
        own = profiled(graph, options.threads, tokens, options.seconds)
        print("|", " | ".join([f"S={tokens}", spread, *cells, f"{own:.2f}", "yes" if fits else "NO"]), "|")
    raise SystemExit(0 if agreed and figures else 1)


if __name__ == "__main__":
    main()
