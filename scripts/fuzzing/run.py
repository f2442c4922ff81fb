"""Fuzzes decoders, text steps and readers of the model directory with atheris, and the HTTP interface with schemathesis.

scripts/fuzz sets up what it needs and calls this. Exit status 1 where something was found; the inputs lie in --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fuzzing.api import fuzz_api
from fuzzing.targets import all_targets

SECONDS_EACH = 15
"""An input that takes longer is a finding."""

MEGABYTES = 2048
"""So is one that takes more memory."""


@dataclass(frozen=True)
class Outcome:
    """What came of one target.

    Attributes:
        executions: inputs that were tried.
        seconds: how long that took.
        edges: places in the code that were reached, as libFuzzer counts them.
        finding: the error's type and message, or None.
    """

    executions: int
    seconds: float
    edges: int
    finding: str | None


def fuzz(name: str, seeds: Path, out: Path, runs: int, seconds: int) -> Outcome:
    """Fuzzes one target in a process of its own."""
    found = out / re.sub(r"\W+", "-", name)
    found.mkdir(parents=True, exist_ok=True)
    options = {
        "runs": runs,
        "max_total_time": seconds,
        "timeout": SECONDS_EACH,
        "rss_limit_mb": MEGABYTES,
        "seed": 1,
        "artifact_prefix": f"{found}/",
        "print_final_stats": 1,
    }
    command = [sys.executable, "-m", "fuzzing.one", name]
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, *(f"-{key}={value}" for key, value in options.items()), str(seeds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    (found / "log").write_text(text, encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^#(\d+)", text, re.MULTILINE)]
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    edges = re.findall(r"cov: (\d+)", text)
    return Outcome(
        executions=int(executed[1]) if executed else max(numbers, default=0),
        seconds=round(time.perf_counter() - begun, 1),
        edges=int(edges[-1]) if edges else 0,
        finding=None if done.returncode == 0 else _finding(text, done.returncode),
    )


def _finding(text: str, status: int) -> str:
    """Returns the last line that says what happened."""
    for pattern in (r"=== Uncaught Python exception: ===\n(.*)", r"(ERROR: libFuzzer: .*)", r"^(\w*Error.*)$"):
        if match := re.search(pattern, text, re.MULTILINE):
            return match[1][:300]
    return f"ended with status {status}"


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "targets", nargs="*", help="targets by name (default: all of them, and the HTTP interface as `http`)"
    )
    parser.add_argument("--runs", type=int, default=20_000, help="executions of each target (default: 20000)")
    parser.add_argument("--seconds", type=int, default=300, help="most seconds of each target (default: 300)")
    parser.add_argument("--cases", type=int, default=10_000, help="cases of the HTTP interface (default: 10000)")
    parser.add_argument(
        "--out", type=Path, default=Path("fuzz-findings"), help="where inputs and logs go (default: fuzz-findings)"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the summary as JSON")
    options = parser.parse_args()
    known = all_targets()
    wanted = options.targets or [*known, "http"]
    if unknown := set(wanted) - {*known, "http"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join([*known, 'http'])}")
    shutil.rmtree(options.out, ignore_errors=True)
    results: dict[str, Any] = {}
    for name in wanted:
        if name == "http":
            continue
        with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as seeds:
            for number, seed in enumerate(known[name].seeds):
                Path(seeds, str(number)).write_bytes(seed)
            outcome = fuzz(name, Path(seeds), options.out, options.runs, options.seconds)
        results[name] = asdict(outcome)
        print(
            f"{name:24s} {outcome.executions:8d} executions {outcome.seconds:7.1f} s  {outcome.finding or 'nothing found'}",
            flush=True,
        )
    if "http" in wanted:
        results["http"] = fuzz_api(options.cases, options.out)
        print(
            f"{'http':24s} {results['http']['executions']:8d} cases      {results['http']['seconds']:7.1f} s  {results['http']['finding'] or 'nothing found'}",
            flush=True,
        )
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name)
            for name in ("atheris", "schemathesis", "pyarrow", "beautifulsoup4", "tokenizers")
        },
        "executions": sum(result["executions"] for name, result in results.items() if name != "http"),
        "targets": results,
    }
    if options.record is not None:
        options.record.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"{summary['executions']} executions over {len(results)} targets")
    return 1 if any(result["finding"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
