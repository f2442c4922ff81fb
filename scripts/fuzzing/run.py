"""Fuzzes decoders, text steps and readers of model directories (atheris), and a running server (schemathesis).

Exit status 1 where something was found; inputs and logs lie in --out. What broke once belongs into tests/found.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fuzzing.http import KINDS, fuzz_http
from nasty.targets import all_targets

SECONDS_EACH, MEGABYTES = 15, 2048
"""An input that takes longer, or more memory, is a finding."""

LIBRARIES = ("atheris", "schemathesis", "pyarrow", "beautifulsoup4", "tokenizers", "numpy", "uvicorn")


@dataclass(frozen=True)
class Outcome:
    """What came of one target.

    Attributes:
        executions: inputs that were tried.
        seconds: how long that took.
        edges: places in the code that were reached, as libFuzzer counts them.
        finding: what went wrong, or None.
    """

    executions: int
    seconds: float
    edges: int
    finding: str | None


def fuzz(name: str, seeds: Path, out: Path, runs: int, seconds: int) -> Outcome:
    """Fuzzes one target in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    options = {
        "runs": runs,
        "max_total_time": seconds,
        "timeout": SECONDS_EACH,
        "rss_limit_mb": MEGABYTES,
        "artifact_prefix": f"{out}/",
        "print_final_stats": 1,
    }
    begun = time.perf_counter()
    log = out / "log"
    with log.open("wb") as file:
        arguments = (f"-{key}={value}" for key, value in options.items())
        command = [sys.executable, "-m", "fuzzing.one", name, *arguments, str(seeds)]
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    text = log.read_text(encoding="utf-8", errors="replace")
    numbers = [int(number) for number in re.findall(r"^#(\d+)", text, re.MULTILINE)]
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    return Outcome(
        executions=int(executed[1]) if executed else max(numbers, default=0),
        seconds=round(time.perf_counter() - begun, 1),
        edges=max(map(int, re.findall(r"cov: (\d+)", text)), default=0),
        finding=None if status == 0 else _finding(text, status),
    )


def _finding(text: str, status: int) -> str:
    """Returns the line of a log that says what happened."""
    for pattern in (r"=== Uncaught Python exception: ===\n(.*)", r"(ERROR: libFuzzer: .*)", r"^(\w*Error.*)$"):
        if match := re.search(pattern, text, re.MULTILINE):
            return match[1][:300]
    return f"ended with status {status}"


def main() -> int:
    """Runs the command; returns its exit status."""
    targets = all_targets()
    known = [*targets, *KINDS]
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"which of {', '.join(known)} (default: all)")
    parser.add_argument("--runs", type=int, default=20_000, help="executions of each target (default: 20000)")
    parser.add_argument("--seconds", type=int, default=300, help="most seconds of each target (default: 300)")
    parser.add_argument("--cases", type=int, default=5_000, help="requests to each server (default: 5000)")
    parser.add_argument("--out", type=Path, help="where inputs and logs go (default: a new temporary directory)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add the results to a JSON file")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    out = options.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    results: dict[str, Outcome] = {}
    for name in options.targets or known:
        if name in KINDS:
            executions, seconds, finding = fuzz_http(name, options.cases, out / name)
            outcome = Outcome(executions, seconds, 0, finding)
        else:
            with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as seeds:
                for number, seed in enumerate(targets[name].seeds):
                    Path(seeds, str(number)).write_bytes(seed)
                outcome = fuzz(name, Path(seeds), out / name, options.runs, options.seconds)
        results[name] = outcome
        if options.record is not None:
            _record(options.record, name, outcome)
        said = outcome.finding or "nothing found"
        print(f"{name:16s} {outcome.executions:8d} inputs {outcome.seconds:7.1f} s  {said}", flush=True)
    print(f"inputs and logs: {out}")
    return 1 if any(outcome.finding for outcome in results.values()) else 0


def _record(path: Path, name: str, outcome: Outcome) -> None:
    """Adds what came of a target to a file, in which earlier runs of it and of others stay."""
    found = json.loads(path.read_text(encoding="utf-8"))["targets"] if path.is_file() else {}
    before = found.get(name, {"executions": 0, "seconds": 0, "edges": 0, "findings": []})
    found[name] = {
        "executions": before["executions"] + outcome.executions,
        "seconds": round(before["seconds"] + outcome.seconds, 1),
        "edges": max(before["edges"], outcome.edges),
        "findings": before["findings"] + ([outcome.finding] if outcome.finding else []),
    }
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": {library: metadata.version(library) for library in LIBRARIES},
        "executions": sum(each["executions"] for each in found.values()),
        "targets": found,
    }
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
