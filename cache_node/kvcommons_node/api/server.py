"""The HTTP server of the control API: routing, limits and the token. What is done is in ``control.Control``."""

from __future__ import annotations

import contextlib
import hmac
import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp import web
from aiohttp.typedefs import Middleware
from kvcommons_core.errors import IndexUnavailableError
from pydantic import BaseModel, ValidationError

from kvcommons_node.api import audit, models, openapi, refusals, refusals_work
from kvcommons_node.api.models_cluster import ClusterAnswer, ClusterRequest
from kvcommons_node.api.models_jobs import CancelRequest, JobAnswer, JobEntry, JobsAnswer, JobsQuery, PrewarmRequest
from kvcommons_node.api.models_move import FetchRequest, MoveRequest
from kvcommons_node.api.models_pins import PinAnswer, PinRequest, PinsAnswer, PinsQuery, UnpinAnswer, UnpinRequest
from kvcommons_node.api.models_recode import CompressRequest, DecompressRequest
from kvcommons_node.api.models_requests import EventsQuery, RequestsAnswer, RequestsQuery
from kvcommons_node.api.models_select import ClearAnswer, ClearRequest, LookupAnswer, LookupRequest
from kvcommons_node.api.models_size import ResizeAnswer, ResizeRequest
from kvcommons_node.feed import Watcher

BODY_BYTES_MAX = 8 << 20
"""A lookup of TOKENS_PER_CHAIN_MAX tokens fits."""
REQUESTS_AT_ONCE_MAX = 64
RETRY_SECONDS = 1
SHUTDOWN_SECONDS_MAX = 2.0

HEARTBEAT_SECONDS = 15.0
"""Between events, so that a client that has gone is noticed."""
MEANT_HEADER = "X-Kvcommons-Node"
"""Whom a call is for, where a node calls another: an address may have become someone else's."""
ASKED = web.RequestKey("asked", BaseModel)

V = TypeVar("V")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Operations(Protocol):
    """What the server can be asked for: one method for each of openapi.OPERATIONS, and the metrics."""

    def health(self) -> models.HealthAnswer: ...
    def ready(self) -> models.ReadyAnswer: ...
    def stats(self) -> models.StatsAnswer: ...
    def metrics(self) -> tuple[bytes, str]: ...
    async def lookup(self, request: LookupRequest) -> LookupAnswer: ...
    async def clear(self, request: ClearRequest) -> ClearAnswer: ...
    async def pin(self, request: PinRequest) -> PinAnswer: ...
    async def unpin(self, request: UnpinRequest) -> UnpinAnswer: ...
    def pins(self, query: PinsQuery) -> PinsAnswer: ...
    async def prewarm(self, request: PrewarmRequest) -> JobAnswer: ...
    async def move(self, request: MoveRequest) -> JobAnswer: ...
    async def fetch(self, request: FetchRequest) -> JobAnswer: ...
    async def compress(self, request: CompressRequest) -> JobAnswer: ...
    async def decompress(self, request: DecompressRequest) -> JobAnswer: ...
    def jobs(self, query: JobsQuery) -> JobsAnswer: ...
    async def cancel(self, request: CancelRequest) -> JobEntry: ...
    def requests(self, query: RequestsQuery) -> RequestsAnswer: ...
    def events(self, query: EventsQuery) -> AbstractContextManager[Watcher]: ...
    def close_events(self) -> None: ...
    async def cluster(self, request: ClusterRequest) -> ClusterAnswer: ...
    async def fence(self, request: models.FenceRequest) -> models.FenceAnswer: ...
    def resize(self, request: ResizeRequest) -> ResizeAnswer: ...


@dataclass(frozen=True)
class Access:
    """Who may use /v1: holders of the token, or of a certificate; without either anyone on loopback, or nobody."""

    token: str | None
    loopback: bool
    certificates: bool = False
    """The handshake has verified what a client showed."""

    def check(self, request: web.Request) -> None:
        """:raises Refusal: if the request may not use the control API."""
        if self.certificates and client_name(request) is not None:
            return
        if self.token is None:
            if self.certificates:
                raise refusals.no_certificate()
            if not self.loopback:
                raise refusals.control_is_closed()
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise refusals.unauthorized()


def client_name(request: web.Request) -> str | None:
    """What a client's verified certificate calls it; None without one."""
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    if not certificate:
        return None
    names = {name: value for part in certificate.get("subject", ()) for name, value in part}
    return str(names.get("commonName", "a client without a name"))


class Api:
    """The application over one set of operations."""

    def __init__(self, operations: Operations, access: Access, version: str, node_id: str = "") -> None:
        """:param node_id: a call that says that it is for another node is refused."""
        self._node_id = node_id
        self._operations = operations
        self._access = access
        self._document = json.dumps(openapi.document(version))
        self._paths = ", ".join([*dict.fromkeys(o.path for o in openapi.OPERATIONS), "/metrics", "/openapi.json"])
        self._at_once = 0

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guard()])
        for operation in openapi.OPERATIONS:
            app.router.add_route(operation.method, operation.path, self._handler(operation))
        app.on_shutdown.append(self._end_streams)
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
        call = getattr(self._operations, operation.name)

        async def handle(request: web.Request) -> web.StreamResponse:
            if operation.guarded:
                self._access.check(request)
                self._check_meant(request)
            asked = await _asked(request, operation)
            answer = call(asked) if asked is not None else call()
            if inspect.isawaitable(answer):
                answer = await answer
            return _answer(answer, 503 if isinstance(answer, models.ReadyAnswer) and not answer.ready else 200)

        async def stream(request: web.Request) -> web.StreamResponse:
            self._access.check(request)
            with call(await _asked(request, operation)) as watcher:
                return await _stream(request, watcher)

        if operation.streams:
            return stream
        return _audited(operation.name, handle) if operation.changes else handle

    def _check_meant(self, request: web.Request) -> None:
        meant = request.headers.get(MEANT_HEADER, self._node_id)
        if meant != self._node_id:
            raise refusals_work.another_node(meant, self._node_id)

    async def _end_streams(self, _app: web.Application) -> None:
        self._operations.close_events()

    async def _metrics(self, _request: web.Request) -> web.StreamResponse:
        body, content_type = self._operations.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text=self._document, content_type="application/json")


def _audited(operation: str, handle: Handler) -> Handler:
    async def audited(request: web.Request) -> web.StreamResponse:
        status = 500
        try:
            response = await handle(request)
            status = response.status
            return response
        except refusals.Refusal as refusal:
            status = refusal.status
            raise
        finally:
            audit.record(operation, request, request.get(ASKED), status, client_name(request))

    return audited


async def _asked(request: web.Request, operation: openapi.Operation) -> BaseModel | None:
    if operation.query is not None:
        return _validated(operation.query.model_validate, dict(request.query))
    if operation.body is None:
        return None
    # A browser can send other types across origins without asking: this is what keeps a web page off /v1/clear.
    if request.content_type != "application/json":
        raise refusals.not_json(request.content_type)
    asked = _validated(operation.body.model_validate_json, await request.read())
    request[ASKED] = asked
    return asked


def _validated(validate: Callable[[V], BaseModel], given: V) -> BaseModel:
    try:
        return validate(given)
    except ValidationError as error:
        raise refusals.invalid(error) from error


async def _stream(request: web.Request, watcher: Watcher) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(b": following\n\n")
    with contextlib.suppress(ConnectionError):  # who followed has left
        async for word in watcher.words(HEARTBEAT_SECONDS):
            if word is None:
                await response.write(b": nothing new\n\n")
            else:
                kind, fields = word
                await response.write(f"event: {kind}\ndata: {json.dumps(fields)}\n\n".encode())
    return response


def _answer(answer: BaseModel, status: int) -> web.Response:
    return web.Response(status=status, text=answer.model_dump_json(), content_type="application/json")
