"""The main process of a multi-model endpoint: starts the model server without a model, and serves SageMaker's calls.

::

    start ─▶ port opens ─▶ models come and go ─▶ SIGTERM ─▶ loads end, requests in flight finish ─▶ exit 0
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path

from aiohttp import ClientError, ClientSession

from trimodal.errors import StartupError
from trimodal.loading.hardware import detect, no_gpu
from trimodal.servers import model_server
from trimodal.servers.many import Models
from trimodal.servers.many_front import ManyFront
from trimodal.servers.serve import listening, until_stopped
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.workers import run_directory
from trimodal.settings import Settings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


def serve_many(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        StartupError: the container cannot start or go on; the text says what to fix.
    """
    with run_directory(None) as folder:
        asyncio.run(_serve(settings, folder))


async def _serve(settings: Settings, run_dir: Path) -> None:
    started = time.perf_counter()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    telemetry = Telemetry(settings, run_dir, "all")
    server = model_server.start(settings, 1, detect(gpu=no_gpu).memory, run_dir)
    models = Models(settings, server, run_dir)
    try:
        if not await _wait_until_up(server, settings, stop):
            return
        async with listening(ManyFront(settings, models, telemetry), settings.port):
            logger.info("serving", extra={"port": settings.port, "seconds": round(time.perf_counter() - started, 2)})
            await until_stopped(server, stop, models.look)
            ending = asyncio.create_task(models.end_loads())
        await ending
    finally:
        await asyncio.to_thread(server.stop)
        await models.close()
        await asyncio.to_thread(telemetry.close)
    logger.info("stopped")


async def _wait_until_up(server: model_server.ModelServer, settings: Settings, stop: asyncio.Event) -> bool:
    """Waits until the model server takes requests; False when told to stop before.

    Raises:
        StartupError: it does not come up.
    """
    deadline = time.monotonic() + settings.startup_timeout
    async with ClientSession() as client:
        while not stop.is_set():
            if server.process.poll() is not None:
                status = server.process.returncode
                raise StartupError(f"The model server ended with status {status}; see its log above.")
            try:
                async with client.get(f"{server.address}/ping"):
                    return True
            except ClientError:
                await asyncio.sleep(_POLL_SECONDS)
            if time.monotonic() > deadline:
                limit = settings.startup_timeout
                raise StartupError(f"The model server was not ready within SAGEMAKER_STARTUP_TIMEOUT={limit}.")
    return False
