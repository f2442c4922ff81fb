"""The front of a multi-model endpoint: SageMaker's calls to load, list, unload and invoke models."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from aiohttp import web

from trimodal.errors import MalformedBody, NotFound
from trimodal.servers.front import Front
from trimodal.servers.load_request import parse_load_request
from trimodal.servers.many import Models
from trimodal.servers.telemetry import Telemetry
from trimodal.settings import Settings

_PAGE = 100

T = TypeVar("T")


class ManyFront(Front):
    """Answers for the models that are loaded."""

    usage = (
        "There is GET /ping, GET and POST /models, GET and DELETE /models/{model_name}, and "
        "POST /models/{model_name}/invoke."
    )

    def __init__(self, settings: Settings, models: Models, telemetry: Telemetry) -> None:
        """Prepares the front.

        Args:
            settings: the container's settings.
            models: what is served.
            telemetry: takes what is measured of the container.
        """
        super().__init__("", settings.max_payload, settings.request_timeout, ready=lambda: 1)
        self.models = models
        if (page := telemetry.page) is not None:
            self.metrics = lambda: page.render(m.telemetry.page for m in models if m.telemetry.page is not None)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Adds the paths of the contract."""
        router.add_post("/invocations", self.invocations)
        router.add_get("/models", self.list_models)
        router.add_post("/models", self.load, expect_handler=self.expect)
        router.add_get("/models/{name}", self.describe)
        router.add_delete("/models/{name}", self.unload)
        router.add_post("/models/{name}/invoke", self.invoke, expect_handler=self.expect)

    async def ping(self, _request: web.Request) -> web.Response:
        """Answers 200 while models can be loaded, whether or not one is."""
        state = {"status": "draining" if self.draining else "ready", "models": len(list(self.models))}
        return web.json_response({**state, "loading": self.models.loading}, status=503 if self.draining else 200)

    async def invocations(self, _request: web.Request) -> web.Response:
        """Says what to use."""
        raise NotFound("This container serves several models; send POST /models/{model_name}/invoke.")

    async def list_models(self, request: web.Request) -> web.Response:
        """Lists the models by name, in pages."""
        models, following = self.models.page(_limit(request), request.query.get("next_page_token", ""))
        body: dict[str, Any] = {"models": [model.summary() for model in models]}
        return web.json_response(body if following is None else {**body, "nextPageToken": following})

    async def load(self, request: web.Request) -> web.Response:
        """Loads a model."""
        wanted = parse_load_request(await self.body(request))
        model = await self._counted(self.models.load(wanted))
        return web.json_response(model.describe())

    async def describe(self, request: web.Request) -> web.Response:
        """Tells what is served of a model."""
        return web.json_response(self.models.get(request.match_info["name"]).describe())

    async def unload(self, request: web.Request) -> web.Response:
        """Unloads a model."""
        name = request.match_info["name"]
        await self._counted(self.models.unload(name))
        return web.json_response({"modelName": name})

    async def invoke(self, request: web.Request) -> web.Response:
        """Forwards one request to a model, and its answer."""
        name = request.match_info["name"]
        telemetry = self.models.get(name).telemetry

        async def work() -> web.Response:
            body = await self.body(request)
            model = self.models.get(name)  # it may have left meanwhile
            with model.busy():
                return await self.forward(request, body, model.address)

        return await self.answered(request, work, telemetry.request, model=name)

    async def _counted(self, work: Awaitable[T]) -> T:
        """Counts work as a request in flight, whose answer the end of the container waits for."""
        self.in_flight += 1
        try:
            return await work
        finally:
            self.in_flight -= 1


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(_PAGE))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _PAGE):
        raise MalformedBody(f"limit must be a whole number from 1 to {_PAGE}.")
    return int(text)
