"""The models of a multi-model endpoint: loaded, listed and unloaded while the container runs.

::

    load ─▶ its turn ─▶ memory? ─▶ cold start ─▶ workers load and warm up ─▶ served ─▶ unload ─▶ requests in flight
              409        507          422              422, 507                          finish, workers end

Each model has processes and a run directory of its own, and a name of its own in the model server, which is never used
again: what is left of one load cannot meet the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout

from trimodal.errors import (
    AlreadyLoaded,
    ArtifactError,
    ModelUnusable,
    NotFound,
    OutOfMemory,
    RequestError,
    StartupError,
    Unavailable,
)
from trimodal.loading.hardware import memory_use, thread_count, worker_count
from trimodal.loading.memory import free_memory, require_memory
from trimodal.loading.prepare import prepare
from trimodal.loading.selection import Selection
from trimodal.metrics.channel import SEND_SECONDS
from trimodal.servers.load_request import LoadRequest
from trimodal.servers.model_server import ModelServer
from trimodal.servers.telemetry import Telemetry
from trimodal.servers.workers import SHOWN, failure, living, served
from trimodal.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Model:
    """One model that is or was served.

    Attributes:
        name: by which SageMaker knows it.
        path: its directory.
        key: by which the model server knows it.
        run_dir: where its workers report.
        telemetry: takes what is measured of it.
        idle: set while no request is in flight.
        leaving: no more requests are taken.
        gone: set when nothing is left of it.
    """

    name: str
    path: Path
    key: str
    run_dir: Path
    telemetry: Telemetry
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _in_flight: int = 0

    def __post_init__(self) -> None:
        self.idle.set()

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
        return {"modelName": self.name, "modelUrl": str(self.path)}

    def describe(self) -> dict[str, object]:
        """Returns what is served."""
        state = served(self.run_dir)
        facts = {key: state[key] for key in SHOWN if key in state}
        return {**self.summary(), "workers": len(living(self.run_dir)), **facts}


class Models:
    """Loads and unloads; belongs to one event loop.

    Attributes:
        settings: the container's settings.
        server: the model server.
    """

    def __init__(self, settings: Settings, server: ModelServer, run_dir: Path) -> None:
        """Starts without a model.

        Args:
            settings: the container's settings.
            server: a model server that runs.
            run_dir: a writable directory that it and its workers know.
        """
        self.settings = settings
        self.server = server
        self._run_dir = run_dir
        self._keys = map(str, itertools.count(1))
        self._models: dict[str, Model] = {}
        self._loads: set[asyncio.Task[Model]] = set()
        self._turn = asyncio.Lock()
        self._closed = False
        self._client = ClientSession(timeout=ClientTimeout(total=None))

    @property
    def loading(self) -> int:
        """Counts the loads that are not done."""
        return len(self._loads)

    def __iter__(self) -> Iterator[Model]:
        """Yields the models that are served, by name."""
        return (self._models[name] for name in sorted(self._models) if not self._models[name].leaving)

    def get(self, name: str) -> Model:
        """Returns a model that is served.

        Raises:
            NotFound: there is none of that name.
            Unavailable: it is being loaded.
        """
        model = self._models.get(name)
        if model is not None and not model.leaving:
            return model
        if any(task.get_name() == name for task in self._loads):
            raise Unavailable("This model is being loaded; try again later.")
        raise _unknown()

    def page(self, limit: int, after: str) -> tuple[list[Model], str | None]:
        """Returns at most `limit` models of names after `after`, and where the next page begins, or None."""
        models = list(self)
        rest = models[bisect_right(models, after, key=lambda model: model.name) :]
        return rest[:limit], rest[limit - 1].name if len(rest) > limit else None

    async def load(self, request: LoadRequest) -> Model:
        """Loads a model; when it returns, the model is served, warm. One load runs at a time.

        Raises:
            AlreadyLoaded: a model of that name is served.
            OutOfMemory: there is no memory for it.
            ModelUnusable: it cannot be served.
            Unavailable: it was unloaded meanwhile, or the container ends.
        """
        if self._closed:
            raise Unavailable("The container ends.")
        task = asyncio.create_task(self._load(request), name=request.name)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)
        await asyncio.wait((task,))
        try:
            if task.cancelled():
                raise Unavailable("The loading of this model was ended.")
            return task.result()
        except RequestError as err:
            logger.warning("model not loaded", extra={"model": request.name, "code": err.code, "cause": str(err)})
            raise

    async def _load(self, request: LoadRequest) -> Model:
        started = time.perf_counter()
        async with self._turn:
            known = self._models.get(request.name)
            if known is not None and not known.leaving:
                raise AlreadyLoaded("A model of this name is loaded.")
            if known is not None:
                await known.gone.wait()
            if not request.path.is_dir():
                raise ModelUnusable("url names no directory of this container.")
            waited = int(time.perf_counter() - started)  # SageMaker's patience began with the request
            budget = max(1, self.settings.budget - waited)
            settings = replace(self.settings, model_dir=request.path.resolve(), budget=budget)
            require_memory(settings, free_memory())
            model = self._new(request)
            try:
                selection = await self._bring_up(model, settings)
            except BaseException:  # also when it was ended
                await self._take_down(model)
                raise
            self._models[request.name] = model
        seconds = round(time.perf_counter() - started, 2)
        model.telemetry.cold_start(selection, seconds)
        model.telemetry.serving(served(model.run_dir), living(model.run_dir))
        logger.info("model loaded", extra={"model": model.name, "seconds": seconds})
        return model

    def _new(self, request: LoadRequest) -> Model:
        key = next(self._keys)
        run_dir = self._run_dir / key
        run_dir.mkdir()
        telemetry = Telemetry(self.settings, run_dir, request.name, container=False)
        return Model(request.name, request.path, key, run_dir, telemetry)

    async def _bring_up(self, model: Model, settings: Settings) -> Selection:
        """Chooses what to serve, and has workers load it."""
        try:
            selection = await _prepare(settings)
        except ArtifactError as err:
            raise ModelUnusable(str(err)) from err
        selection.write(model.run_dir)
        kills = memory_use()[1]
        status = await self._manage(
            "POST",
            "/models",
            url=str(settings.model_dir),
            model_name=model.key,
            initial_workers=str(worker_count(settings)),
            synchronous="true",
        )
        if status == 200:
            return selection
        if status == OutOfMemory.status or memory_use()[1] > kills:
            raise OutOfMemory("Memory ran out while this model was loaded; unload another model.")
        limit = settings.startup_timeout
        ended = f"A worker ended while it loaded this model, or needed longer than SAGEMAKER_STARTUP_TIMEOUT={limit}."
        raise ModelUnusable(failure(model.run_dir) or ended)

    async def _manage(self, method: str, path: str, **parameters: str) -> int:
        """Calls the model server's management API; returns the status.

        Raises:
            Unavailable: it does not answer.
        """
        try:
            async with self._client.request(method, f"{self.server.address}{path}", params=parameters) as answer:
                return answer.status
        except ClientError as err:
            raise Unavailable("The model server does not answer; try again later.") from err

    async def unload(self, name: str) -> None:
        """Unloads a model, or ends its loading; when it returns, its memory is free.

        Raises:
            NotFound: there is none of that name.
        """
        loads = [task for task in self._loads if task.get_name() == name]
        for task in loads:
            task.cancel()
        if loads:
            await asyncio.wait(loads)
        model = self._models.get(name)
        if model is None or model.leaving:
            if loads:
                return
            raise _unknown()
        model.leaving = True
        await model.idle.wait()  # for at most the time that a request may take
        await asyncio.sleep(SEND_SECONDS)  # for what its workers have measured
        await self._take_down(model)
        del self._models[name]
        model.gone.set()
        logger.info("model unloaded", extra={"model": name})

    async def _take_down(self, model: Model) -> None:
        """Ends the workers of a model, and removes what they shared."""
        with contextlib.suppress(Unavailable):
            await self._manage("DELETE", f"/models/{model.key}")
        await asyncio.to_thread(self.server.end_workers, model.key)
        await asyncio.to_thread(model.telemetry.close)
        await asyncio.to_thread(shutil.rmtree, model.run_dir, ignore_errors=True)

    def look(self) -> None:
        """Looks after the workers of all models."""
        self.server.reap()
        for model in self:
            model.telemetry.serving(served(model.run_dir), living(model.run_dir))

    async def end_loads(self) -> None:
        """Ends every load, and refuses others."""
        self._closed = True
        for task in self._loads:
            task.cancel()
        if self._loads:
            await asyncio.wait(self._loads)

    async def close(self) -> None:
        """Publishes what was measured; the model server is to be stopped before."""
        await self._client.close()
        await asyncio.gather(*(asyncio.to_thread(model.telemetry.close) for model in self))


def _unknown() -> NotFound:
    return NotFound("No model of this name is loaded; GET /models lists those that are.")


async def _prepare(settings: Settings) -> Selection:
    """Runs the cold start of a model directory on a thread; ends it where the caller is cancelled.

    Raises:
        ArtifactError: see `trimodal.loading.prepare`.
    """
    told = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(prepare, settings, thread_count(settings), told))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        told.set()
        with contextlib.suppress(StartupError):
            await work
        raise
