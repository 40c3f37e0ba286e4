"""One worker of the router: what its connections share, which requests it takes, and what it does every so often."""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Final

import orjson
import xxhash
from kvcommons_core import limits as core_limits
from kvcommons_core import textkeys

from kvcommons_router import body as bodies
from kvcommons_router import metrics
from kvcommons_router.access_log import AccessLog
from kvcommons_router.auth import Authenticator, KeysError, Tenant
from kvcommons_router.cells import Cells
from kvcommons_router.checks import HealthChecker
from kvcommons_router.errors import Refusal
from kvcommons_router.exchange import Exchange
from kvcommons_router.fleet import Fleet, Group, Instance, models_of
from kvcommons_router.health import Health
from kvcommons_router.http_server import ClientConnection, Request
from kvcommons_router.index import Index
from kvcommons_router.load import Load, SiblingLoad, Utilisation
from kvcommons_router.metrics import Layout, Recorder
from kvcommons_router.picker import Credits, Policy, Shape, Weights
from kvcommons_router.settings import RouterSection, RouterSettings

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.02
TICKS_PER_SWEEP: Final = 50
AFFINITY_STEP: Final = 3  # texts that share this many steps and one more, about 8 KiB, meet when there is no index
SEEDS_MAX: Final = 10_000
RELAYED: Final = frozenset({b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings"})
OWN: Final = frozenset({b"/health", b"/metrics", b"/v1/models"})


def layout_of(settings: RouterSection) -> Layout:
    """The metrics of a router with these settings."""
    return Layout(models_of(settings), [one.name for one in settings.instances])


class App:
    """Everything that the connections of one worker share."""

    def __init__(
        self,
        every: RouterSettings,
        *,
        layout: Layout,
        cells: Cells,
        row: int,
        auth: Authenticator,
        make_index: Callable[[App], Index],
    ) -> None:
        self.settings = settings = every.router
        self.index_settings = every.index
        self.layout = layout
        self.cells = cells
        self.auth = auth
        self.policy: Policy = settings.policy
        cost = settings.cost
        self.weights = Weights(
            Credits(cost.engine_credit, cost.memory_credit, cost.disk_credit, cost.peer_credit), cost.decode_seconds
        )
        self.row = row
        self.recorder: Recorder = Recorder(layout, cells.row(row))
        self.fleet = Fleet(settings)
        sources = [SiblingLoad(layout, cells, row)] if settings.workers > 1 else []
        self.load = Load(layout, cells.row(row), self.fleet.candidates(), sources)
        self.health = Health(layout, cells, row, 0, settings.health)
        self.utilisation = Utilisation()
        self.checker = HealthChecker(self) if row == 0 else None
        self.log = AccessLog() if settings.access_log else None
        self.step_bytes = core_limits.TEXT_STEP_BYTES
        self.draining = False
        self.not_ready = False
        # The client's key is for the router, or would stand beside the engine's own.
        self.drops_authorization = auth.enabled or any(one.api_key is not None for one in settings.instances)
        self.connections: set[ClientConnection] = set()
        self.emptied = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.loop_time: Callable[[], float] = time.monotonic
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._bodies = 0
        self._guesses: list[tuple[float, int, int, Exchange]] = []
        self._new_guesses: list[tuple[float, int, Exchange]] = []
        self._guess_count = 0
        self._by_tenant: dict[str, int] = {}
        self._seeds: dict[tuple[str, str], int] = {}
        self.id_prefix = secrets.token_hex(8)
        self._id_count = 0
        self.index: Index = make_index(self)
        self._model_columns = {model: at for at, model in enumerate(layout.models)}

    # Time and tasks.

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to live on a loop."""
        self._loop = loop
        self.loop_time = loop.time

    def now(self) -> float:
        """The loop's clock, seconds."""
        return self.loop_time()

    def spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        """Runs something beside; it is kept until it ends."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task failed", exc_info=task.exception())

    # Connections.

    def opened(self, connection: ClientConnection) -> bool:
        """A client came; whether there is room."""
        if len(self.connections) >= self.settings.limits.connections_max:
            self.recorder.refused("connections")
            return False
        self.connections.add(connection)
        return True

    def closed(self, connection: ClientConnection) -> None:
        """A client left."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.emptied.set()

    # Requests, while they are read.

    def admit_head(self, request: Request, length: int) -> None:
        """Refuses what can be refused before its body comes.

        :raises Refusal: with the reason.
        """
        path = request.path
        if path in RELAYED:
            if request.method != b"POST":
                raise Refusal(405, f"{path.decode('latin-1')} takes POST.", param="POST")
            self.auth.tenant(request.head.authorization)
            if length > self.settings.limits.body_bytes_max:
                raise self._too_large()
            return
        known = path in OWN or path.startswith(b"/v1/models/")
        if not known:
            raise Refusal(404, f"There is nothing at {path.decode('latin-1')[:200]}.", code="not_found")
        if request.method not in (b"GET", b"HEAD"):
            raise Refusal(405, f"{path.decode('latin-1')[:200]} takes GET.", param="GET, HEAD")
        if path.startswith(b"/v1/"):
            self.auth.tenant(request.head.authorization)

    def _too_large(self) -> Refusal:
        self.recorder.refused("body_bytes")
        limit = self.settings.limits.body_bytes_max
        return Refusal(413, f"The body is larger than {limit} bytes.", code="body_too_large", close=True)

    def hold_body(self, request: Request, count: int) -> None:
        """Takes account of bytes of a body that came.

        :raises Refusal: if they are too many, of this request or of all.
        """
        limits = self.settings.limits
        if request.body_bytes > limits.body_bytes_max:
            request.body_bytes -= count
            raise self._too_large()
        if self._bodies + count > limits.bodies_bytes_max:
            request.body_bytes -= count
            self.recorder.refused("bodies_bytes")
            raise Refusal(503, "Too many request bodies are held now.", retry_after_seconds=1, close=True)
        self._bodies += count

    def release_body(self, request: Request) -> None:
        """A body is no longer held."""
        if request.refusal is None or request.pieces or request.body:
            self._bodies -= request.body_bytes
            request.body_bytes = 0
        request.pieces = []
        request.body = b""

    # Requests, once they are whole.

    def serve(self, connection: ClientConnection, request: Request) -> None:
        """Answers a request, or sets it on its way."""
        path = request.path
        if path not in RELAYED:
            self._serve_own(connection, request, path)
            return
        request_id = f"{self.id_prefix}{self._id_count:08x}"
        self._id_count += 1
        try:
            exchange = self._admit(connection, request, path, request_id)
        except Refusal as refusal:
            self.release_body(request)
            connection.refuse(request, refusal, request_id.encode())
            return
        connection.exchange = exchange
        self._requests += 1
        if len(exchange.group.usable) > 1 and exchange.text_keys and self.policy is Policy.COST:
            self.index.locate(exchange)
        else:
            self.recorder.count(self.layout.lookups + 4)
            exchange.located({})

    def _admit(self, connection: ClientConnection, request: Request, path: bytes, request_id: str) -> Exchange:
        tenant = self.auth.tenant(request.head.authorization)
        fields = bodies.parse(request.body)
        bodies.check_nested(fields)
        group = self._group(fields)
        self._admit_tenant(tenant)
        exchange = Exchange(self, connection, request, tenant, group)
        exchange.request_id = request_id
        exchange.streaming = fields.get("stream") is True
        keys: list[int] = []
        text_bytes = 0
        affinity = 0
        completion = path != b"/v1/embeddings"
        if completion:
            canonical, _ = textkeys.canonical_text(fields)
            text_bytes = len(canonical)
            seed = self._seed(group.model, tenant)
            keys = textkeys.chain(canonical, seed)
            affinity = keys[min(AFFINITY_STEP, len(keys) - 1)] if keys else xxhash.xxh3_64_intdigest(canonical, seed)
        else:
            text_bytes = len(request.body)
        exchange.text_keys = keys
        exchange.text_bytes = text_bytes
        exchange.length = group.ratio.tokens(text_bytes)
        exchange.shape = Shape(exchange.length, affinity)
        additions = bodies.members(
            request_id, tenant.salt, keys, text_bytes, transfer_params=completion and self.settings.transfer_params
        )
        exchange.forwarded = bodies.rewrite(request.body, fields, additions)
        exchange.forwarded_bytes = sum([len(part) for part in exchange.forwarded])
        request.body = b""
        self._by_tenant[tenant.name] = self._by_tenant.get(tenant.name, 0) + 1
        return exchange

    def _admit_tenant(self, tenant: Tenant) -> None:
        limits = self.settings.limits
        if self._requests >= limits.requests_max:
            self.recorder.refused("requests")
            raise Refusal(429, "Too many requests are under way.", code="rate_limit_exceeded", retry_after_seconds=1)
        if self._by_tenant.get(tenant.name, 0) >= limits.tenant_requests_max:
            self.recorder.refused("tenant_requests")
            message = "Too many requests of this tenant are under way."
            raise Refusal(429, message, code="rate_limit_exceeded", retry_after_seconds=1)

    def _group(self, fields: bodies.Fields) -> Group:
        model = fields.get("model")
        groups = self.fleet.groups
        if model is None and len(groups) == 1:
            return next(iter(groups.values()))
        if not isinstance(model, str):
            raise Refusal(400, "`model` must name a model.", code="invalid_model", param="model")
        group = groups.get(model)
        if group is None:
            raise Refusal(404, f"The model {model[:200]!r} is not served here.", code="model_not_found", param="model")
        return group

    def _seed(self, model: str, tenant: Tenant) -> int:
        seed = self._seeds.get((model, tenant.name))
        if seed is None:
            if len(self._seeds) >= SEEDS_MAX:
                self._seeds.clear()
            seed = textkeys.text_seed(model, "", tenant.name, tenant.salt or "")
            self._seeds[(model, tenant.name)] = seed
        return seed

    def _serve_own(self, connection: ClientConnection, request: Request, path: bytes) -> None:
        if path == b"/health":
            status, answer = self.health_report()
            connection.respond(request, status, answer)
        elif path == b"/metrics":
            self.show()
            text = metrics.render(self.layout, self.cells, self._up())
            connection.respond(request, 200, text, b"text/plain; version=0.0.4; charset=utf-8")
        else:
            self._serve_models(connection, request, path)

    def _serve_models(self, connection: ClientConnection, request: Request, path: bytes) -> None:
        if path == b"/v1/models":
            data = [self._model(name) for name in self.fleet.groups]
            connection.respond(request, 200, orjson.dumps({"object": "list", "data": data}))
            return
        name = path[len(b"/v1/models/") :].decode("latin-1")
        if name in self.fleet.groups:
            connection.respond(request, 200, orjson.dumps(self._model(name)))
        else:
            refusal = Refusal(404, f"The model {name[:200]!r} is not served here.", code="model_not_found")
            connection.refuse(request, refusal, b"")

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "kvcommons"}

    def _up(self) -> list[bool]:
        self._refresh_health()
        now_ms = self.now_ms()
        return [self.health.ready(one.index, now_ms) for one in self.fleet.instances]

    def health_report(self) -> tuple[int, bytes]:
        """200 if every model has an instance that serves and we are staying; the details for people."""
        up = self._up()
        models = {
            group.model: {"instances": len(group.members), "up": sum(up[one.index] for one in group.members)}
            for group in self.fleet.groups.values()
        }
        if self.draining or self.not_ready:
            status = "draining"
        elif not models or not all(model["up"] for model in models.values()):
            status = "unavailable" if not any(up) else "degraded"
        else:
            status = "ok"
        workers = self.cells.total(self.layout.workers)
        answer = orjson.dumps({"status": status, "models": models, "workers": workers})
        return (200 if status in ("ok", "degraded") else 503), answer

    def guess_prefilled(self, exchange: Exchange, at: float) -> None:
        """Counts a request as decoding from a moment on, if it is still under way with the same attempt."""
        self._new_guesses.append((at, exchange.attempts, exchange))

    def _take_guesses(self) -> None:
        now, guesses = self.loop_time(), self._guesses
        fresh, self._new_guesses = self._new_guesses, []
        for at, attempt, exchange in fresh:
            if not exchange.done:  # most have ended within a tick, and cost no more than this
                self._guess_count += 1
                heapq.heappush(guesses, (at, self._guess_count, attempt, exchange))
        while guesses and guesses[0][0] <= now:
            _, _, attempt, exchange = heapq.heappop(guesses)
            if not exchange.done and exchange.attempts == attempt:
                exchange.prefilled()

    # What became of requests.

    def answered_here(self, request: Request, status: int) -> None:
        """The router answered by itself."""
        if request.path in RELAYED:
            self._count_request(self._model_columns[""], status)

    def _count_request(self, model_column: int, status: int) -> None:
        layout = self.layout
        column = layout.status_column.get(status)
        if column is None:
            column = layout.status_column[0]
        self.recorder.row[layout.requests + model_column * len(metrics.STATUSES) + column] += 1

    def count_attempt(self, index: int, outcome: str) -> None:
        """An attempt at an instance ended."""
        column = self.layout.attempts + index * len(metrics.OUTCOMES) + metrics.OUTCOMES.index(outcome)
        self.recorder.row[column] += 1

    def exchange_ended(self, exchange: Exchange) -> None:
        """A request is no longer under way."""
        self.release_body(exchange.request)
        exchange.forwarded = ()
        self._requests -= 1
        name = exchange.tenant.name
        left = self._by_tenant.get(name, 1) - 1
        if left > 0:
            self._by_tenant[name] = left
        else:
            self._by_tenant.pop(name, None)

    def request_done(self, exchange: Exchange, instance: Instance | None) -> None:
        """A request ended with an engine's answer, or with its client's leaving."""
        self.exchange_ended(exchange)
        recorder, layout = self.recorder, self.layout
        row = recorder.row
        seconds = self.loop_time() - exchange.request.received
        self._count_request(exchange.group.position, exchange.status)
        recorder.observe_seconds(layout.request_seconds, exchange.group.position, seconds)
        row[layout.response_bytes] += exchange.relayed
        row[layout.response_chunks] += exchange.pieces
        if self.log is not None:
            self.log.write(exchange, instance, seconds)

    def health_failed(self, instance: Instance) -> bool:
        """An instance failed a request; whether it is left out from now on."""
        now_ms = self.now_ms()
        if self.health.failed(instance.index, now_ms):
            instance.pool.close_idle()
            self.fleet.refresh(self.health, now_ms)
            return True
        return False

    def now_ms(self) -> int:
        """The machine's monotonic clock: the same in all workers, which compare it."""
        return int(time.monotonic() * 1000)

    # What is done every so often.

    async def tick(self) -> None:
        """Runs until cancelled: sums load, looks at who is usable, expires what is old."""
        count = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            count += 1
            self.load.refresh()
            self._take_guesses()
            self.show()
            if count % TICKS_PER_SWEEP == 0:
                await self._sweep()
            elif self.settings.workers > 1 and count % 5 == 0:
                self._refresh_health()

    def show(self) -> None:
        """Brings the gauges up to date."""
        row, layout = self.recorder.row, self.layout
        row[layout.connections] = len(self.connections)
        row[layout.requests_now] = self._requests
        row[layout.body_bytes] = self._bodies

    def _refresh_health(self) -> None:
        now_ms = self.now_ms()
        if self.health.refresh(now_ms):
            self.fleet.refresh(self.health, now_ms)

    async def _sweep(self) -> None:
        now = self.now()
        self._refresh_health()
        for connection in tuple(self.connections):
            connection.check(now)
        self.fleet.expire_idle(now)
        work = self.cells.total(self.layout.prefill_work) * metrics.MICRO
        self.utilisation.sample(work, len(self.fleet.instances))
        self.index.observe()
        if self.log is not None:
            self.log.flush()
        if self.auth.enabled:
            await self._reload_keys()

    async def _reload_keys(self) -> None:
        column = self.layout.key_reloads
        try:
            if await asyncio.to_thread(self.auth.reload_if_changed):
                self.recorder.count(column)
                logger.info("the API keys have been read again")
        except KeysError as error:
            self.recorder.count(column + 1)
            logger.error("the API keys read before stay in force: %s", error)

    # The end.

    def drain(self) -> None:
        """Takes no more than what is under way."""
        self.draining = True
        if not self.connections:
            self.emptied.set()
        for connection in tuple(self.connections):
            connection.drain()

    @property
    def busy(self) -> int:
        """Connections that still have something under way."""
        return len(self.connections)

    async def close(self) -> None:
        """Lets go of everything."""
        for connection in tuple(self.connections):
            connection.transport.abort()
        self.fleet.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=2.0)
        if self.log is not None:
            self.log.flush()
