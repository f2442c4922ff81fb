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
import time
from bisect import bisect_right
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path

from trimodal.errors import AlreadyLoaded, ModelUnusable, NotFound, OutOfMemory, RequestError, Unavailable
from trimodal.loading.room import free_disk, free_memory, make_room, require_memory
from trimodal.metrics.channel import SEND_SECONDS
from trimodal.servers.load_request import LoadRequest
from trimodal.servers.model import Model
from trimodal.servers.model_server import ModelServer
from trimodal.servers.telemetry import Telemetry
from trimodal.settings import Settings

logger = logging.getLogger(__name__)


class Models:
    """Loads and unloads; belongs to one event loop."""

    def __init__(self, settings: Settings, server: ModelServer, run_dir: Path) -> None:
        """Starts without a model.

        Args:
            settings: the container's settings.
            server: a model server that runs.
            run_dir: a writable directory that it and its workers know.
        """
        self._settings = settings
        self._server = server
        self._run_dir = run_dir
        self._keys = map(str, itertools.count(1))
        self._models: dict[str, Model] = {}
        self._loads: set[asyncio.Task[Model]] = set()
        self._turn = asyncio.Lock()
        self._closed = False

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
        if (model := self._served(name)) is not None:
            return model
        if self._loads_of(name):
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
            if self._served(request.name) is not None:
                raise AlreadyLoaded("A model of this name is loaded.")
            if (leaving := self._models.get(request.name)) is not None:
                await leaving.gone.wait()
            waited = int(time.perf_counter() - started)  # SageMaker's patience began with the request
            model = self._new(request, max(1, self._settings.budget - waited))
            try:
                selection = await model.bring_up()
            except BaseException:  # also when it was ended
                await _finish(model.take_down())
                raise
            self._models[request.name] = model
        seconds = round(time.perf_counter() - started, 2)
        model.telemetry.cold_start(selection, seconds)
        model.look()
        logger.info("model loaded", extra={"model": model.name, "seconds": seconds})
        return model

    def _new(self, request: LoadRequest, budget: int) -> Model:
        """Makes room for a model.

        Raises:
            ModelUnusable: its directory cannot be read.
            OutOfMemory: there is no room.
        """
        settings = replace(self._settings, model_dir=request.path, budget=budget)
        try:
            require_memory(settings, free_memory())
            make_room(settings, {model.entry for model in self._models.values() if model.entry is not None}, free_disk)
        except OSError as err:
            raise ModelUnusable("url names no directory that can be read in this container.") from err
        key = next(self._keys)
        run_dir = self._run_dir / key
        try:
            run_dir.mkdir()
            telemetry = Telemetry(settings, run_dir, request.name, container=False)
        except OSError as err:
            raise OutOfMemory("There is no room for temporary files; unload another model.") from err
        return Model(request.name, settings, key, self._server, run_dir, telemetry)

    async def unload(self, name: str) -> None:
        """Unloads a model, or ends its loading; when it returns, its memory is free.

        Raises:
            NotFound: there is none of that name.
        """
        loads = self._loads_of(name)
        await _end(loads)
        model = self._served(name)
        if model is None:
            if loads:
                return
            raise _unknown()
        model.leaving = True
        await model.idle.wait()  # for at most the time that a request may take
        await asyncio.sleep(SEND_SECONDS)  # for what its workers have measured
        await model.take_down()
        del self._models[name]
        model.gone.set()
        logger.info("model unloaded", extra={"model": name})

    def look(self) -> None:
        """Looks after the workers of all models."""
        self._server.reap()
        for model in self:
            model.look()

    async def end_loads(self) -> None:
        """Ends every load, and refuses others."""
        self._closed = True
        await _end(list(self._loads))

    async def close(self) -> None:
        """Publishes what was measured; the model server is to be stopped before."""
        await asyncio.gather(*(asyncio.to_thread(model.telemetry.close) for model in self))

    def _served(self, name: str) -> Model | None:
        model = self._models.get(name)
        return model if model is not None and not model.leaving else None

    def _loads_of(self, name: str) -> list[asyncio.Task[Model]]:
        return [task for task in self._loads if task.get_name() == name]


async def _end(loads: list[asyncio.Task[Model]]) -> None:
    for task in loads:
        if not task.cancelling():  # a second time would interrupt its cleaning up
            task.cancel()
    if loads:
        await asyncio.wait(loads)


async def _finish(work: Coroutine[None, None, None]) -> None:
    """Does work to its end, also where the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    task.result()


def _unknown() -> NotFound:
    return NotFound("No model of this name is loaded; GET /models lists those that are.")
