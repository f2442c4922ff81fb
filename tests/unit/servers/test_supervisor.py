"""The supervisor with real processes: what they say, when they are started again, and when that ends."""

import signal
import subprocess
import sys

import pytest

from trimodal.errors import ArtifactError, StartupError
from trimodal.servers import supervisor
from trimodal.servers.supervisor import _cause, supervise
from trimodal.settings import Settings

READY = "from trimodal.servers.pulse import Pulse\nimport os, pathlib\np = Pulse(pathlib.Path(os.environ['DIR']))\n"


@pytest.fixture
def children(monkeypatch):
    """Puts programs in the place of the serving process, one after another; the last one again and again."""
    own = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(supervisor, "BACK_OFF", (0.0,))
    programs, started = [], []

    def start(self):
        program = programs[min(len(started), len(programs) - 1)]
        started.append(program)
        environ = {**supervisor.os.environ, "DIR": str(self.run_dir)}
        return subprocess.Popen([sys.executable, "-c", program], env=environ)

    monkeypatch.setattr(supervisor._Supervisor, "_start", start)
    yield programs, started
    for number, handler in own.items():
        signal.signal(number, handler)


def test_a_start_that_fails_is_not_repeated(children, tmp_path):
    programs, started = children
    programs.append("raise SystemExit(1)")
    assert supervise(Settings(model_dir=tmp_path)) == 1
    assert len(started) == 1


def test_a_process_that_dies_again_and_again_ends_the_container(children, tmp_path, caplog):
    programs, started = children
    programs.append(f"{READY}p.beat(None)\nos.kill(os.getpid(), 11)")
    with pytest.raises(StartupError, match=r"The serving process ended: SIGSEGV.*waiting for requests.*6 times"):
        supervise(Settings(model_dir=tmp_path))
    assert len(started) == 6
    messages = [record.message for record in caplog.records if "serving process ended" in record.message]
    assert len(messages) == 5


def test_sigterm_is_passed_on(children, tmp_path):
    programs, started = children
    handle = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    programs.append(f"{handle}{READY}p.beat(None)\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)")
    assert supervise(Settings(model_dir=tmp_path)) == 0
    assert len(started) == 1


def test_a_process_that_is_not_ready_in_time_is_ended(children, tmp_path):
    programs, _ = children
    programs.append(f"{READY}p.tell('loading the model')\nimport time\ntime.sleep(60)")
    with pytest.raises(StartupError, match=r"SAGEMAKER_STARTUP_TIMEOUT=1; last stage: loading the model"):
        supervise(Settings(model_dir=tmp_path, startup_timeout=1))


def test_no_model_directory(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        supervise(Settings(model_dir=tmp_path / "none"))


@pytest.mark.parametrize(
    ("status", "memory", "words"),
    [
        (-11, False, "SIGSEGV in native code"),
        (-9, True, "SIGKILL, out of memory"),
        (-9, False, "SIGKILL, perhaps for lack of memory"),
        (-99, False, "signal 99 in native code"),
        (3, False, "exit status 3"),
    ],
)
def test_how_a_process_ended(status, memory, words):
    assert _cause(status, killed_for_memory=memory) == words
