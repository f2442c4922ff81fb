"""Processes of their own: a builder whose memory goes back, and a worker that holds one variant and times its calls.

Each variant has its own process, so that its memory and its load time are its own, and no two thread pools meet. The
parent tells the workers in turn what to run; a worker that is told nothing sleeps. Messages are pickles over pipes
between a process and the children that it started itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from trimodal.errors import OptimizationError, TrimodalError

MIB = 1024 * 1024

WARM_SECONDS = 0.01
"""A short call is timed once its process has worked for so long: after a sleep it finds its caches full of other
variants. Measured: calls of 0.8 ms take 1.4, 1.0, 0.9, 0.9, 0.7 ms; calls of 12 ms take 12.7 and 11.7."""


class Child:
    """A process that answers one message with another, until it is closed.

    Args:
        main: module-level function that the child runs: `main(receive, send)`.
    """

    def __init__(self, main: Callable[[Callable[[], Any], Callable[[Any], None]], None]) -> None:
        code = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH")))),
            "OMP_WAIT_POLICY": "PASSIVE",  # torch's threads must not spin while another variant is timed
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        # A process group of its own: Ctrl+C in a terminal reaches the parent alone, which then ends its children.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trimodal.bench.apart"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,
        )
        self.send(main)

    def send(self, message: Any) -> None:
        """Sends a message; a child that is gone is noticed when its answer is read."""
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._pipe(self._process.stdin))
            self._pipe(self._process.stdin).flush()

    def receive(self) -> Any:
        """Waits for the answer.

        Raises:
            OptimizationError: the child failed, or was killed.
        """
        try:
            done, answer = pickle.load(self._pipe(self._process.stdout))
        except (EOFError, pickle.UnpicklingError) as err:
            self._process.kill()
            status = self._process.wait()
            raise OptimizationError(f"its process ended with status {status}{self._last()}") from err
        if not done:
            raise OptimizationError(answer)
        return answer

    def close(self) -> None:
        """Ends the process and waits until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()
        self._errors.close()

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        if pipe is None:
            raise OptimizationError("the process has no pipe")
        return pipe

    def _last(self) -> str:
        """Returns the last thing that it said; what the libraries say holds no request's content."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" ({lines[-1][:160]})" if lines else " (no message: killed, or out of memory)"


def call_apart(function: Callable[[], Any]) -> Any:
    """Calls a picklable function in a process of its own and returns what it returned.

    Raises:
        OptimizationError: it failed.
    """
    child = Child(_call)
    try:
        child.send(function)
        return child.receive()
    finally:
        child.close()


def _call(receive: Callable[[], Any], send: Callable[[Any], None]) -> None:
    send(receive()())


class Worker(Child):
    """A process that holds one opened variant."""

    def __init__(self, opening: Callable[[], Any], batches: Sequence[Sequence[Any]]) -> None:
        """Starts it.

        Args:
            opening: opens the scorer; its `run(items)` is what is timed.
            batches: everything that will be run, by its place.
        """
        super().__init__(_work)
        self.send((opening, batches))

    def opened(self) -> tuple[float, float]:
        """Waits until the scorer is open: (seconds that it took, MiB of the process then)."""
        seconds, memory = self.receive()
        return float(seconds), float(memory)

    def time(self, place: int) -> float:
        """Runs a batch; returns seconds."""
        self.send(("time", place))
        return float(self.receive())

    def scores(self, place: int) -> Any:
        """Runs a batch; returns its scores."""
        self.send(("scores", place))
        return self.receive()

    def peak(self) -> float:
        """Returns the most MiB that the process has held."""
        self.send(("peak", 0))
        return float(self.receive())


def _work(receive: Callable[[], Any], send: Callable[[Any], None]) -> None:
    opening, batches = receive()
    started = time.perf_counter()
    scorer = opening()
    send((time.perf_counter() - started, _status("VmRSS")))
    while True:
        task, place = receive()
        if task == "peak":
            send(_status("VmHWM"))
            continue
        seconds, scores = _timed(scorer, batches[place])
        if task == "time" and seconds < 2 * WARM_SECONDS:
            warm = time.perf_counter() + WARM_SECONDS - seconds
            while time.perf_counter() < warm:
                scorer.run(batches[place])
            seconds, scores = _timed(scorer, batches[place])
        send(scores if task == "scores" else seconds)


def _timed(scorer: Any, batch: Sequence[Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    scores = scorer.run(batch)
    return time.perf_counter() - started, scores


def _status(key: str) -> float:
    """Reads MiB from /proc/self/status; `ru_maxrss` would hold what the parent had when it started this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _serve() -> None:
    """The child's side: keeps the pipe for itself, because libraries write to stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def receive() -> Any:
        return pickle.load(sys.stdin.buffer)

    def send(answer: Any, *, done: bool = True) -> None:
        pickle.dump((done, answer), answers)
        answers.flush()

    try:
        receive()(receive, send)
    except EOFError:  # the parent is gone, or needs nothing more
        return
    except TrimodalError as err:
        send(str(err), done=False)
    except Exception as err:  # noqa: BLE001  a library raises what it likes, and the parent is told
        send(f"{type(err).__name__}: {str(err).strip().partition(chr(10))[0][:160]}", done=False)


if __name__ == "__main__":
    _serve()
    sys.stdout.flush()
    os._exit(0)  # giving weights back one by one takes a while
