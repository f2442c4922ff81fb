"""`trimodal score` with Ray, two processes and the demo model: killed in the middle, taken up again, same scores."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from trimodal.loading.hardware import detect, no_gpu
from trimodal.loading.load import load_pipeline
from trimodal.scoring.dataset import cut, find_files
from trimodal.scoring.scorer import Scorer
from trimodal.settings import Settings

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "models" / "demo"
ROWS = 200
OURS = ("SAGEMAKER_", "SM_", "ONNX_", "TRIMODAL_", "SCORE_", "RESPONSE_", "LOG_", "MODEL_", "RAY_")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (requirements/score.txt)"),
    pytest.mark.skipif(detect(gpu=no_gpu).cores < 2, reason="two workers need two cores"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A parquet and a JSON-lines file of 2,400 records with texts unlike each other, one of them not to be scored."""
    folder = tmp_path_factory.mktemp("data")
    golden = [json.loads(line)["record"] for line in (DEMO / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [
        {
            **golden[n % len(golden)],
            "order_id": str(n),
            "dialogue": f"[bom]{n}[eom] {golden[n % len(golden)]['dialogue']}",
        }
        for n in range(2400)
    ]
    parquet.write_table(pa.Table.from_pylist(records[:1200]), folder / "a.parquet", row_group_size=500)
    lines = [json.dumps(record) for record in records[1200:]]
    lines[300] = '{"order_id": "broken'
    (folder / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def begin():
    """Starts the command.

    What killed runs leave behind goes into a folder of a short name: Ray's sockets have no room for a longer one.
    """
    with tempfile.TemporaryDirectory(prefix="s", ignore_cleanup_errors=True) as folder:
        yield lambda data, out: run(data, out, folder)


def run(data, out, folder):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "trimodal.cli",
            "score",
            DEMO,
            data,
            out,
            "--workers",
            "2",
            "--partition-rows",
            str(ROWS),
        ],
        env={**environ, "PYTHONPATH": str(ROOT / "code"), "TMPDIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, process):
    """Waits for something to happen while the command runs."""
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return found


def parts(out):
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


def writer(out):
    """Returns the process that has a partition half written, or None."""
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = path.readlink()
        except OSError:
            continue
        if target.parent == out and target.suffix == ".draft":
            return int(path.parts[2])
    return None


def test_killed_in_the_middle_and_taken_up_again(begin, data, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    partitions = cut(*find_files(data), ROWS)
    assert len(partitions) == 12
    first = begin(data, out)
    wait_for(lambda: parts(out), first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = parts(out)
    assert 0 < len(kept) < len(partitions)

    second = begin(data, out)
    told, errors = second.communicate(timeout=120)

    assert (second.returncode, told) == (0, f"{out}: 12 of 12 partitions done\n"), errors
    before = re.search(r"12 partitions, (\d+) of them done before; 2 workers of 1 threads", errors)
    assert int(before[1]) in range(len(kept), len(partitions))  # a process may finish what it does after the kill
    assert "1 records have an error instead of scores; the first: b.jsonl: Record 300 is not valid JSON" in errors
    assert parts(out).items() >= kept.items(), "what was done must not be done again"
    alone.mkdir()
    scorer = Scorer(load_pipeline(Settings(model_dir=DEMO, intra_op_threads=1)), data, alone, "alone")
    assert [scorer.score(partition).failure for partition in partitions] == [None] * 12
    for partition in partitions:
        assert (out / partition.name).read_bytes() == (alone / partition.name).read_bytes()
    assert parquet.read_table(out).num_rows == 2400


def test_a_process_that_dies_costs_the_partition_that_it_scored(begin, data, tmp_path):
    out = tmp_path / "out"
    process = begin(data / "a.parquet", out)
    os.kill(wait_for(lambda: writer(out), process), signal.SIGKILL)

    told, errors = process.communicate(timeout=120)

    assert (process.returncode, told) == (1, f"{out}: 5 of 6 partitions done\n"), errors
    assert "failed: The process that scored it died" in errors
    assert "1 partitions failed; the same command tries them again" in errors
    assert len(parts(out)) == 5
    assert "(raylet)" not in errors
