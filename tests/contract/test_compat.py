"""Recorded answers of the previous handler, replayed against a running server, wherever they are at hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KIT = Path(os.environ.get("COMPAT_KIT", ROOT.parent / "shared" / "compat"))
VARIANTS = ["base", "percentile", "regular", "risk", "defaultsteps", "bare", "multi3"]
WITH_OWN_SCORES = ["textfail/*", "tab/*", "batch/*", "batchval/*", "risk/*", "bare/*", "cal/*"]
REJECTED_BEFORE = ["csv/*", "json/*"]  # no recorded score to compare with; test_formats.py shows that they are read

pytestmark = [
    pytest.mark.compat,
    pytest.mark.skipif(not KIT.is_dir(), reason="the recorded answers are not on this machine (COMPAT_KIT)"),
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Assembled model directories, by variant."""
    out = tmp_path_factory.mktemp("compat")
    subprocess.run([sys.executable, KIT / "assemble.py", out, *VARIANTS], check=True, stdout=subprocess.DEVNULL)
    return out


def compare(server, variant, *options):
    command = [sys.executable, KIT / "compare.py", f"http://127.0.0.1:{server.port}", "--model", variant, *options]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_answers_come_back(start, directories, variant):
    server = start(directories / variant)
    status, output = compare(server, variant)
    assert status == 0, output
    assert "matched" in output
    assert "OTHER" not in output

    # the recorded defects: each row's own score, or an error
    for group in WITH_OWN_SCORES + REJECTED_BEFORE:
        _, output = compare(server, variant, "--defects", "--only", group)
        assert "SAME AS REFERENCE" not in output, output
        assert "Traceback" not in output, output
        assert group in REJECTED_BEFORE or "defect -> other" not in output, output
    assert server.terminate() == 0


@pytest.mark.parametrize("name", ["absolute", "some/hub-name"])
def test_the_tokenizer_may_be_named_in_other_ways(start, tmp_path, name):
    command = [sys.executable, KIT / "assemble.py", tmp_path, "base", "--tokenizer", name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    server = start(tmp_path / "base", HF_HUB_OFFLINE="1")
    status, output = compare(server, "base", "--only", "single/*")
    assert status == 0, output
    assert server.terminate() == 0
