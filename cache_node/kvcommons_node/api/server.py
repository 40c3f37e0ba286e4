"""The HTTP server of the control API: routing, limits and the token. What is done is in ``control.Control``."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware
from kvcommons_core.errors import IndexUnavailableError
from pydantic import BaseModel, ValidationError

from kvcommons_node.api import models, openapi, refusals

BODY_BYTES_MAX = 8 << 20
"""A lookup of TOKENS_PER_LOOKUP_MAX tokens fits."""
REQUESTS_AT_ONCE_MAX = 64
RETRY_SECONDS = 1
SHUTDOWN_SECONDS_MAX = 2.0

M = TypeVar("M", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Operations(Protocol):
    """What the server can be asked for."""

    def health(self) -> models.HealthAnswer: ...
    def ready(self) -> models.ReadyAnswer: ...
    def stats(self) -> models.StatsAnswer: ...
    def metrics(self) -> tuple[bytes, str]: ...
    async def lookup(self, request: models.LookupRequest) -> models.LookupAnswer: ...
    async def clear(self, request: models.ClearRequest) -> models.ClearAnswer: ...
    async def fence(self, request: models.FenceRequest) -> models.FenceAnswer: ...


@dataclass(frozen=True)
class Access:
    """Who may use /v1: anyone on loopback without a token, holders of the token, or nobody."""

    token: str | None
    loopback: bool

    def check(self, request: web.Request) -> None:
        """:raises Refusal: if the request may not use the control API."""
        if self.token is None:
            if not self.loopback:
                raise refusals.control_is_closed()
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise refusals.unauthorized()


class Api:
    """The application over one set of operations."""

    def __init__(self, operations: Operations, access: Access, version: str) -> None:
        self._operations = operations
        self._access = access
        self._document = json.dumps(openapi.document(version))
        self._paths = ", ".join([*dict.fromkeys(o.path for o in openapi.OPERATIONS), "/metrics", "/openapi.json"])
        self._at_once = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guard()])
        for operation in openapi.OPERATIONS:
            app.router.add_route(operation.method, operation.path, self._handler(operation))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self._openapi)
        return app

    def _guard(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self._at_once >= REQUESTS_AT_ONCE_MAX:
                return refusals.busy(RETRY_SECONDS).response()
            self._at_once += 1
            try:
                return await handler(request)
            except refusals.Refusal as refusal:
                return refusal.response()
            except IndexUnavailableError as error:
                return refusals.index_away(error).response()
            except web.HTTPException as error:
                return refusals.of_http(error, request.path, self._paths).response()
            finally:
                self._at_once -= 1

        return guard

    def _handler(self, operation: openapi.Operation) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if operation.guarded:
                self._access.check(request)
            match operation.name:
                case "lookup":
                    return _answer(await self._operations.lookup(await _body(request, models.LookupRequest)))
                case "clear":
                    return _answer(await self._operations.clear(await _body(request, models.ClearRequest)))
                case "fence":
                    return _answer(await self._operations.fence(await _body(request, models.FenceRequest)))
                case "stats":
                    return _answer(self._operations.stats())
                case "ready":
                    ready = self._operations.ready()
                    return _answer(ready, status=200 if ready.ready else 503)
                case _:
                    return _answer(self._operations.health())

        return handle

    async def _metrics(self, _request: web.Request) -> web.StreamResponse:
        body, content_type = self._operations.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._document, content_type="application/json")


async def _body(request: web.Request, model: type[M]) -> M:
    # A browser can send other types across origins without asking: this is what keeps a web page off /v1/clear.
    if request.content_type != "application/json":
        raise refusals.not_json(request.content_type)
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        raise refusals.invalid(error) from error


def _answer(answer: BaseModel, status: int = 200) -> web.Response:
    return web.Response(status=status, text=answer.model_dump_json(), content_type="application/json")
