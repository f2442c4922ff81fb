"""The entrypoint of `MODEL_SERVER=asgi`: starts the serving process, watches it, and starts it again when it dies.

::

    start ─▶ watch ─▶ SIGTERM ─▶ pass it on ─▶ exit 0
      ▲        │
      └── ends by itself, or is stuck and killed: one line that says how ─── too often in a row ─▶ exit 1

It imports nothing heavy: its memory and its faults are not the model's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from trimodal.errors import StartupError
from trimodal.loading.hardware import memory_use
from trimodal.servers.pulse import FILE, MEMORY, State, look
from trimodal.servers.workers import run_directory
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

MAX_DEATHS = 5
"""Deaths in a row, each soon after its start, after which the container ends."""

QUICK_SECONDS = 60
"""A process that has served for so long counts as well again."""

BACK_OFF = (0.0, 1.0, 2.0, 5.0, 10.0)
"""Seconds before the first, second, … start after a death."""

_END_SECONDS = 29
_WATCH_SECONDS = 0.25


def supervise(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status.

    Raises:
        StartupError: the serving process cannot be started, or dies again and again.
    """
    with run_directory(settings.model_dir) as folder:
        return _Supervisor(settings, folder).run()


@dataclass(slots=True)
class _Supervisor:
    """Watches one serving process after another."""

    settings: Settings
    run_dir: Path
    told: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.told.set())
        deaths = 0
        while True:
            started, kills = time.monotonic(), memory_use()[1]
            process = self._start()
            stuck = self._watch(process, started)
            state = look(self.run_dir)
            if self.told.is_set():
                return self._end(process)
            if process.returncode == 1 and not state.ready:
                return 1  # it has said why
            deaths = 1 if state.ready and time.monotonic() - started > QUICK_SECONDS else deaths + 1
            if killed_for_memory := memory_use()[1] > kills:
                (self.run_dir / MEMORY).touch()
            cause = stuck or _cause(process.returncode, killed_for_memory=killed_for_memory)
            message = f"the serving process ended: {cause}; last stage: {state.stage}"
            if deaths > MAX_DEATHS:
                raise StartupError(f"T{message[1:]}. It ended {deaths} times in a row, and is not started again.")
            pause = BACK_OFF[min(deaths, len(BACK_OFF)) - 1]
            facts = {"exit_status": process.returncode, "stage": state.stage, "deaths": deaths, "restart_in": pause}
            logger.error("%s", message, extra=facts)
            if self.told.wait(pause):
                return 0

    def _start(self) -> subprocess.Popen[bytes]:
        (self.run_dir / FILE).unlink(missing_ok=True)
        code = str(Path(__file__).parents[2])
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH")))),
            "SM_MODEL_DIR": str(self.settings.model_dir.resolve()),
            "TRIMODAL_RUN_DIR": str(self.run_dir),
        }
        command = [sys.executable, "-m", "trimodal.servers.single"]
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL)  # noqa: S603  our own module

    def _watch(self, process: subprocess.Popen[bytes], started: float) -> str | None:
        """Waits until the process ends or we are told to; returns why it had to be killed, or None.

        Raises:
            StartupError: it is not ready in time.
        """
        while process.poll() is None and not self.told.wait(_WATCH_SECONDS):
            state = look(self.run_dir)
            if not state.ready and time.monotonic() - started > self.settings.startup_timeout:
                _kill(process)
                limit = self.settings.startup_timeout
                raise StartupError(
                    f"The model was not ready within SAGEMAKER_STARTUP_TIMEOUT={limit}; last stage: {state.stage}."
                )
            if (stuck := self._stuck(state)) is not None:
                _kill(process)
                return f"{stuck}, and it was killed"
        return None

    def _stuck(self, state: State) -> str | None:
        return state.stuck(time.monotonic(), self.settings.stuck_after)

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Passes SIGTERM on; returns 0 unless the process must be killed."""
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(process)
        return 0 if process.returncode in (0, -signal.SIGTERM) else 1


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _cause(status: int, *, killed_for_memory: bool) -> str:
    """Says how a process ended."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if status != -signal.SIGKILL:
        return f"{name} in native code"
    return f"{name}, out of memory" if killed_for_memory else f"{name}, perhaps for lack of memory"
