"""What `trimodal score` refuses, in one line that says what to fix, and what it tells while it runs."""

from __future__ import annotations

import io
import os
import sys

import pytest

from model_directories import write_model_directory as write
from trimodal import cli
from trimodal.errors import SettingsError
from trimodal.loading.hardware import detect, no_gpu
from trimodal.loading.locks import locked
from trimodal.scoring.command import share_cores
from trimodal.scoring.manifest import LOCK
from trimodal.scoring.progress import Progress, standard_error
from trimodal.scoring.scorer import Outcome
from trimodal.settings import Settings

OURS = ("SAGEMAKER_", "SM_", "ONNX_", "TRIMODAL_", "SCORE_", "RESPONSE_", "LOG_", "MODEL_")
CORES = detect(gpu=no_gpu).cores


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("{}\n")
    return write(tmp_path / "model"), tmp_path / "data", tmp_path / "out"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs the command, which must fail; returns its one line."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(cli.log, "configure", lambda *_: None)

    def run(*arguments):
        assert cli.main(["score", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("trimodal: ")
        assert err.count("\n") == 1
        return err

    return run


def test_without_ray(refused, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(*folders)
    assert "Ray is not installed" in line
    assert "-r requirements/score.txt" in line
    assert not folders[2].exists()


def test_bad_arguments(refused, folders):
    model, data, out = folders
    assert "nothing does not exist" in refused(data / "nothing", data, out)
    assert "nothing does not exist" in refused(model, data / "nothing", out)
    assert "inside the input" in refused(model, data, data)
    assert "inside the input" in refused(model, data, data / "scores")
    assert "--workers 0" in refused(*folders, "--workers", 0)
    assert "--partition-rows 0" in refused(*folders, "--partition-rows", 0)
    assert f"{CORES} cores" in refused(*folders, "--workers", CORES + 1)
    (model / "model.onnx").unlink()
    assert "model.onnx" in refused(*folders)


def test_handlers_of_a_users_own_are_not_passed_over(refused, folders):
    (folders[0] / "code").mkdir()
    (folders[0] / "code" / "inference.py").write_text("def predict_fn(data, model): return 1\n")
    assert "handlers of its own" in refused(*folders)


@pytest.mark.parametrize("name", ["file", "record", "error"])
def test_an_id_that_has_the_name_of_another_column(refused, folders, name):
    write(folders[0], config={"id_name": name})
    assert f"id_name '{name}'" in refused(*folders)


def test_one_run_a_folder(refused, folders, monkeypatch):
    monkeypatch.setattr("trimodal.scoring.command.check_installed", lambda: None)
    folders[2].mkdir()
    with locked(folders[2] / LOCK, 0):
        assert "Another run" in refused(*folders)
    folders[2].joinpath(LOCK).unlink()
    folders[2].rmdir()
    folders[2].touch()
    assert "cannot be used" in refused(*folders)


def test_threads_and_workers_share_the_cores(tmp_path):
    settings, workers = share_cores(Settings(model_dir=tmp_path), None)
    assert (settings.intra_op_threads, workers) == (1, CORES)
    settings, workers = share_cores(Settings(model_dir=tmp_path), 1)
    assert (settings.intra_op_threads, workers) == (min(4, CORES), 1)
    with pytest.raises(SettingsError, match="ONNX_INTRA_OP_THREADS"):
        share_cores(Settings(model_dir=tmp_path, intra_op_threads=2), CORES)


def test_progress():
    stream = io.StringIO()
    progress = Progress((4, 40), 2, stream)
    failed = [Outcome(f"a.jsonl, records {n}0 to {n}9", failure="Torn.") for n in (1, 2)]
    progress.follow([Outcome("p", 10, 0.5), *failed, Outcome("p", 10, 0.5, 1, "a.jsonl: Record 7 is not a number.")])

    assert stream.getvalue().splitlines() == [
        "score: 1 of 4 partitions, 10 records, 40 a second, 1 s left",
        "score: a.jsonl, records 10 to 19 failed: Torn.",
        "score: a.jsonl, records 20 to 29 failed: Torn.",
        "score: 4 of 4 partitions, 20 records, 40 a second",
    ]
    assert (progress.failed, progress.errors, progress.error) == (2, 1, "a.jsonl: Record 7 is not a number.")


def test_progress_on_a_terminal_takes_one_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress((1, 9000), 1, stream)
    progress.follow([Outcome("p", 9000, 1.5)])
    progress.say("done")

    assert stream.getvalue() == "\r\x1b[Kscore: 1 of 1 partitions, 9000 records, 6000 a second\r\x1b[Kscore: done\n"


def test_progress_goes_where_errors_went_at_first(capfd):
    with standard_error() as stream:
        stream.write("here")
    assert capfd.readouterr().err == "here"
