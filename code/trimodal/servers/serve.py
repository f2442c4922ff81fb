"""The container's main process: starts the model server, opens the port when it is ready, drains, ends.

::

    start ─▶ workers load and warm up ─▶ port opens ─▶ serve ─▶ SIGTERM ─▶ requests in flight finish ─▶ exit 0
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from trimodal.errors import ArtifactError, StartupError
from trimodal.loading.hardware import MIB, detect, no_gpu, thread_count, worker_count
from trimodal.loading.prepare import prepare
from trimodal.loading.selection import Selection
from trimodal.servers import model_server
from trimodal.servers.drain import drain
from trimodal.servers.front import Front
from trimodal.servers.front_protocol import BACKLOG, serving
from trimodal.servers.limits import execution_parameters
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.workers import failure, living, ready_workers, run_directory, served
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_M_MMAP_THRESHOLD = -3


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        StartupError: the container cannot start or go on; the text says what to fix.
    """
    # glibc raises this limit when it sees large blocks, and keeps later ones: each body would stay in memory for long
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MIB)
    with run_directory(settings.model_dir) as folder:
        asyncio.run(_serve(settings, folder))


async def _serve(settings: Settings, run_dir: Path) -> None:
    started = time.perf_counter()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    workers = worker_count(settings)
    selection = await _prepare(settings, run_dir, stop)
    if selection is None:
        return
    telemetry = Telemetry(settings, run_dir)
    server = model_server.start(settings, workers, detect(gpu=no_gpu).memory, run_dir)
    try:
        if not await _wait_until_ready(server, settings, workers, run_dir, stop):
            return
        telemetry.cold_start(selection, time.perf_counter() - started)
        telemetry.serving(served(run_dir), living(run_dir))
        front = Front(
            server.address,
            settings.max_payload,
            settings.request_timeout,
            ready=lambda: ready_workers(run_dir),
            served=lambda: served(run_dir),
        )
        front.observe(telemetry.request, telemetry.metrics)
        front.parameters = execution_parameters(settings, workers)
        async with listening(front, settings.port):
            seconds = round(time.perf_counter() - started, 2)
            logger.info("serving", extra={"port": settings.port, "workers": workers, "seconds": seconds})
            await until_stopped(server, stop, lambda: telemetry.serving(served(run_dir), living(run_dir)))
    finally:
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(telemetry.close)
    logger.info("stopped")


async def _prepare(settings: Settings, run_dir: Path, stop: asyncio.Event) -> Selection | None:
    """Chooses what to serve, once for all workers, before any of them loads; None when told to stop before.

    Raises:
        ArtifactError: see `trimodal.loading.prepare`.
    """
    told = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(prepare, settings, thread_count(settings), told))
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        told.set()
        with contextlib.suppress(StartupError):
            await work
        return None
    waiting.cancel()
    selection = await work
    selection.write(run_dir)
    return selection


async def _wait_until_ready(
    server: model_server.ModelServer, settings: Settings, workers: int, run_dir: Path, stop: asyncio.Event
) -> bool:
    """Waits until every worker has loaded the model; False when told to stop before.

    Raises:
        StartupError: a worker cannot load it, or the time is over.
    """
    deadline = time.monotonic() + settings.startup_timeout
    while ready_workers(run_dir) < workers:
        if stop.is_set():
            return False
        if (message := failure(run_dir)) is not None:
            raise ArtifactError(message)
        if server.process.poll() is not None:
            raise StartupError(f"The model server ended with status {server.process.returncode}; see its log above.")
        if time.monotonic() > deadline:
            raise StartupError(f"The model was not ready within SAGEMAKER_STARTUP_TIMEOUT={settings.startup_timeout}.")
        await asyncio.sleep(_POLL_SECONDS)
    return True


@contextlib.asynccontextmanager
async def listening(front: Front, port: int) -> AsyncIterator[None]:
    """Opens the public port; on leaving finishes the requests in flight, then closes it.

    Raises:
        StartupError: the port is taken.
    """
    try:
        sock = socket.create_server(("0.0.0.0", port), backlog=BACKLOG)  # noqa: S104  a container serves its network
    except OSError as err:
        raise StartupError(f"Port {port} is taken; set SAGEMAKER_BIND_TO_PORT to a free one.") from err
    async with serving(front.application(), sock) as stop:
        yield
        front.draining = True
        await drain(sock, stop, lambda: front.in_flight)


async def until_stopped(server: model_server.ModelServer, stop: asyncio.Event, look: Callable[[], None]) -> None:
    """Waits for a signal, and looks after the workers meanwhile.

    Raises:
        StartupError: the model server ended by itself.
    """
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=0.5)
        with contextlib.suppress(OSError):  # no file descriptor is left; later there may be one
            look()
        if server.process.poll() is not None and not stop.is_set():
            raise StartupError(f"The model server ended with status {server.process.returncode}; see its log above.")
