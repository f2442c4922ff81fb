"""The serving process of `MODEL_SERVER=asgi`: cold start, load, open the port, serve, drain, end.

`trimodal.servers.supervisor` starts it, and starts it again when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mms
import uvicorn
import uvloop
from mms.context import Context

from trimodal import log
from trimodal.errors import ArtifactError, StartupError, TrimodalError
from trimodal.loading.hardware import detect, no_gpu, thread_count
from trimodal.loading.prepare import prepare
from trimodal.loading.selection import Selection
from trimodal.servers.asgi import App
from trimodal.servers.asgi_protocol import Protocol
from trimodal.servers.batching import batched, pays
from trimodal.servers.body import BodyReader
from trimodal.servers.drain import drain
from trimodal.servers.limits import KEEP_ALIVE_SECONDS
from trimodal.servers.mms import Service
from trimodal.servers.pulse import MEMORY, Pulse
from trimodal.servers.scheduler import Scheduler
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.workers import full_disk_told
from trimodal.serving.pipeline import Pipeline
from trimodal.settings import Settings

logger = logging.getLogger("trimodal.servers.single")

_BACKLOG = 1024
_BEAT_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1
_TOO_LATE = 2
"""Seconds after the drain in which connections may still be written to."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: SIGTERM starts our own drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(slots=True)
class _Process:
    """The parts of a start, in the order in which they come to be.

    Attributes:
        settings: the container's settings.
        run_dir: directory that outlives the process.
        pulse: tells the supervisor what happens.
        telemetry: takes what is measured.
        stop: set by SIGTERM and SIGINT.
        started: when the process began.
    """

    settings: Settings
    run_dir: Path
    pulse: Pulse
    telemetry: Telemetry
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    started: float = field(default_factory=time.perf_counter)

    async def run(self) -> None:
        """Serves until told to stop.

        Raises:
            StartupError: the model cannot be served, or the port is taken.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        self.pulse.tell("preparing the model")
        selection = await self._prepare()
        if selection is None:
            return
        self.pulse.tell("loading the model")
        loading = asyncio.create_task(asyncio.to_thread(self._load))
        if not await self._first(loading):
            os._exit(0)  # nothing is served yet, and a thread that loads cannot be interrupted
        service = await loading
        self.pulse.tell("opening the port")
        await self._serve(service, selection)

    async def _first(self, work: asyncio.Task[Service]) -> bool:
        """Waits for work; False when told to stop before."""
        waiting = asyncio.create_task(self.stop.wait())
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return not self.stop.is_set()

    async def _prepare(self) -> Selection | None:
        """Chooses what to serve, unless a process before this one has; None when told to stop before."""
        if (known := Selection.read(self.run_dir)) is not None:
            self.telemetry.recorder.record("WorkerRestarts")
            if (mark := self.run_dir / MEMORY).exists():
                mark.unlink()
                self.telemetry.recorder.record("OutOfMemory")
            return known
        told = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(prepare, self.settings, thread_count(self.settings), told))
        waiting = asyncio.create_task(self.stop.wait())
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.stop.is_set():
            told.set()
            with contextlib.suppress(StartupError):
                await work
            return None
        selection = await work
        selection.write(self.run_dir)
        return selection

    def _load(self) -> Service:
        """Loads the model and the functions that answer for it.

        Raises:
            ArtifactError: one of them fails.
        """
        directory = self.settings.model_dir
        context = Context("model", str(directory), {}, 1, None, mms.__version__)
        try:
            recorder = self.telemetry.recorder if self.settings.metrics_sinks else None
            service = Service(self.settings, directory, context, recorder)
        except TrimodalError:
            raise
        except Exception as err:
            logger.exception("the model cannot be loaded")
            step = getattr(err, "__notes__", ["loading"])[-1]
            raise ArtifactError(f"{step} failed: {type(err).__name__}: {err}") from err
        if isinstance(service.model, Pipeline):
            service.model = batched(service.model, self.settings)
        return service

    async def _serve(self, service: Service, selection: Selection) -> None:
        hardware = detect(gpu=no_gpu)
        scheduler = Scheduler(self._concurrency(service, hardware.cores), self.settings.max_queue)
        reader = BodyReader(self.settings.max_payload, hardware.memory // 16)
        app = App(self.settings, service, scheduler, reader, self.telemetry)
        async with self._listening(app):
            seconds = round(time.perf_counter() - self.started, 2)
            facts = {"port": self.settings.port, "concurrency": scheduler.concurrency, "seconds": seconds}
            logger.info("serving", extra=facts)
            self.telemetry.cold_start(selection, seconds)
            self.telemetry.serving(getattr(service.model, "status", {}), {os.getpid()})
            while not self.stop.is_set():
                self._beat(scheduler)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), timeout=_BEAT_SECONDS)
        scheduler.close()
        logger.info("stopped")

    def _concurrency(self, service: Service, cores: int) -> int:
        """Returns how many requests are worked on at once; those of a batch wait for each other."""
        together = self.settings.max_batch if pays(getattr(service.model, "status", {})) else 1
        return self.settings.workers or max(cores, together)

    def _beat(self, scheduler: Scheduler) -> None:
        if scheduler.alive:  # else the supervisor misses the heartbeat
            self.pulse.beat(scheduler.oldest_slice())

    @contextlib.asynccontextmanager
    async def _listening(self, app: App) -> AsyncIterator[None]:
        """Opens the public port; on leaving finishes the requests in flight, then closes it.

        Raises:
            StartupError: the port is taken.
        """
        port = self.settings.port
        try:
            sock = socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)  # noqa: S104  a container serves its network
        except OSError as err:
            raise StartupError(f"Port {port} is taken; set SAGEMAKER_BIND_TO_PORT to a free one.") from err
        server = _Uvicorn(_configuration(app))
        running = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield
            app.draining = True

            async def stop() -> None:
                for listener in server.servers:
                    listener.close()

            await drain(sock, stop, lambda: app.in_flight)
        finally:
            server.should_exit = True
            await running


def _configuration(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_TOO_LATE,
    )


def main() -> int:
    """Runs the process; its settings come from the environment."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    settings = Settings.from_environment(os.environ)
    log.configure(settings.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if settings.run_dir is None:
        raise StartupError("TRIMODAL_RUN_DIR is not set; start the container with `trimodal serve`.")
    try:
        with full_disk_told():
            _serve(settings, settings.run_dir)
    except TrimodalError as err:
        sys.stdout.flush()
        print(f"trimodal: {err}", file=sys.stderr)  # noqa: T201  the one message that a user looks for
        return 1
    return 0


def _serve(settings: Settings, run_dir: Path) -> None:
    """Runs the process; what it has measured is out before an error is told, which stands last in the log."""
    telemetry = Telemetry(settings, run_dir)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_Process(settings, run_dir, Pulse(run_dir), telemetry).run())
    finally:
        telemetry.close()


if __name__ == "__main__":
    sys.exit(main())
