"""One of several models: its workers in the model server, the directory that they share, and what is measured of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout

from trimodal.errors import ArtifactError, ModelUnusable, OutOfMemory, StartupError, Unavailable
from trimodal.loading.hardware import memory_use, thread_count, worker_count
from trimodal.loading.prepare import prepare
from trimodal.loading.selection import Selection
from trimodal.servers.model_server import ModelServer
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.workers import SHOWN, failure, living, served
from trimodal.settings import Settings

_POLL_SECONDS = 0.05


@dataclass(slots=True)
class Model:
    """One model that is, will be or was served.

    Attributes:
        name: by which SageMaker knows it.
        settings: the container's settings, with the model's directory.
        key: by which the model server knows it.
        server: the model server.
        run_dir: where its workers report.
        telemetry: takes what is measured of it.
        entry: the optimized model that it uses, or None.
        idle: set while no request is in flight.
        leaving: no more requests are taken.
        gone: set when nothing is left of it.
    """

    name: str
    settings: Settings
    key: str
    server: ModelServer
    run_dir: Path
    telemetry: Telemetry
    entry: Path | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _in_flight: int = 0

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def address(self) -> str:
        """Where the model server takes its requests."""
        return f"{self.server.address}/models/{self.key}/invoke"

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Counts a request in flight."""
        self._in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.idle.set()

    def summary(self) -> dict[str, object]:
        """Returns what the list of models shows."""
        return {"modelName": self.name, "modelUrl": str(self.settings.model_dir)}

    def describe(self) -> dict[str, object]:
        """Returns what is served."""
        state = served(self.run_dir)
        facts = {key: state[key] for key in SHOWN if key in state}
        return {**self.summary(), "workers": len(living(self.run_dir)), **facts}

    def look(self) -> None:
        """Notes which of its workers live, and what they serve."""
        self.telemetry.serving(served(self.run_dir), living(self.run_dir))

    async def bring_up(self) -> Selection:
        """Chooses what to serve, and has workers load it and warm it up.

        Raises:
            ModelUnusable: it cannot be served.
            OutOfMemory: memory ran out.
            Unavailable: the model server does not answer.
        """
        try:
            selection = await self._prepare()
        except ArtifactError as err:
            raise ModelUnusable(str(err)) from err
        if selection.entry is not None:
            self.entry = selection.entry
            with contextlib.suppress(OSError):  # it was baked into a directory that cannot be written
                os.utime(self.entry)
        selection.write(self.run_dir)
        kills = memory_use()[1]
        status = await self._register()
        if status == 200:
            return selection
        if status == OutOfMemory.status or memory_use()[1] > kills:
            raise OutOfMemory("Memory ran out while this model was loaded; unload another model.")
        limit = self.settings.startup_timeout
        ended = f"A worker ended while it loaded this model, or needed longer than SAGEMAKER_STARTUP_TIMEOUT={limit}."
        raise ModelUnusable(failure(self.run_dir) or ended)

    async def _register(self) -> int:
        """Has the model server start workers, which load the model; returns its status.

        Where the caller is cancelled, what still loads is killed first: of a model that is unregistered meanwhile the
        server would start workers for ever, and for the process that forks them it waits a minute.
        """
        parameters = {
            "url": str(self.settings.model_dir.resolve()),
            "model_name": self.key,
            "initial_workers": str(worker_count(self.settings)),
            "synchronous": "true",
        }
        work = asyncio.create_task(self._manage("POST", "/models", **parameters))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                if not living(self.run_dir):
                    await asyncio.to_thread(self.server.interrupt_load, self.key)
                await asyncio.wait((work,), timeout=_POLL_SECONDS)
            work.exception()  # whatever came of it
            raise

    async def take_down(self) -> None:
        """Ends its workers, whatever they do, and removes what they shared."""
        with contextlib.suppress(Unavailable):
            await self._manage("DELETE", f"/models/{self.key}")
        await asyncio.to_thread(self.server.end_workers, self.key)
        await asyncio.to_thread(self.telemetry.close)
        await asyncio.to_thread(shutil.rmtree, self.run_dir, ignore_errors=True)

    async def _prepare(self) -> Selection:
        """Runs the cold start on a thread; ends it where the caller is cancelled.

        Raises:
            ArtifactError: see `trimodal.loading.prepare`.
        """
        told = threading.Event()
        work = asyncio.create_task(asyncio.to_thread(prepare, self.settings, thread_count(self.settings), told))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            told.set()
            with contextlib.suppress(StartupError):
                await work
            raise

    async def _manage(self, method: str, path: str, **parameters: str) -> int:
        """Calls the model server's management API; returns the status.

        Raises:
            Unavailable: it does not answer.
        """
        url = f"{self.server.address}{path}"
        try:
            async with (
                ClientSession(timeout=ClientTimeout(total=None)) as client,
                client.request(method, url, params=parameters) as answer,
            ):
                return answer.status
        except ClientError as err:
            raise Unavailable("The model server does not answer; try again later.") from err
