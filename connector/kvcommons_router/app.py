"""One worker of the router: its connections, what becomes of their requests, and what it does every so often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from kvcommons_core.errors import ConfigurationError

from kvcommons_router import metrics, overview, own_paths
from kvcommons_router.access_log import AccessLog
from kvcommons_router.admission import RESPONSES, Admission
from kvcommons_router.auth import Authenticator, KeysError
from kvcommons_router.board import Board
from kvcommons_router.body import NOTHING
from kvcommons_router.budgets import Budgets
from kvcommons_router.cells import Cells
from kvcommons_router.checks import HealthChecker
from kvcommons_router.context import Context
from kvcommons_router.errors import Refusal
from kvcommons_router.fleet import Instance
from kvcommons_router.follower import Follower
from kvcommons_router.http_server import ClientConnection
from kvcommons_router.index import Index
from kvcommons_router.journey import Journey
from kvcommons_router.metrics import Layout
from kvcommons_router.picker import Policy
from kvcommons_router.request import Request
from kvcommons_router.settings import RouterSettings
from kvcommons_router.sharing import Posts
from kvcommons_router.tls import ServerTls, server_tls

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.02
TICKS_PER_SWEEP: Final = 50


class App:
    """Ties the parts of one worker together; the owner of its connections and exchanges."""

    def __init__(
        self,
        every: RouterSettings,
        *,
        layout: Layout,
        cells: Cells,
        row: int,
        auth: Authenticator,
        make_index: Callable[[Context], Index],
        board: Board,
        posts: Posts | None = None,
    ) -> None:
        self.context = context = Context(every, layout=layout, cells=cells, row=row, posts=posts)
        self.settings = settings = every.router
        self.limits = settings.limits
        self.layout = layout
        self.cells = cells
        self.auth = auth
        self.recorder = context.recorder
        self.fleet = context.fleet
        self.index: Index = make_index(context)
        context.index = self.index
        self.budgets = Budgets(settings.limits, context.recorder)
        self.admission = Admission(context, auth, self.budgets)
        self.checker = HealthChecker(context) if row == 0 else None
        self.log = AccessLog() if settings.access_log else None
        self.tls = server_tls(settings)
        self.not_ready = False
        self.connections: set[ClientConnection] = set()
        self.emptied = asyncio.Event()
        self._id_prefix = context.id_prefix.encode()
        self._id_count = 0
        self.follower = Follower(context, board)
        self.follower.on_change = self._fleet_changed
        self.follower.poll()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to live on a loop."""
        self.context.attach(loop)

    def _fleet_changed(self) -> None:
        self.admission.engine_keys(any(one.settings.api_key is not None for one in self.fleet.instances))
        if self.checker is not None:
            self.checker.wake()

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self.context.draining

    # Connections.

    def opened(self, connection: ClientConnection) -> bool:
        """A client came; whether there is room."""
        if len(self.connections) >= self.limits.connections_max:
            self.recorder.refused("connections")
            return False
        self.connections.add(connection)
        return True

    def closed(self, connection: ClientConnection) -> None:
        """A client left."""
        self.connections.discard(connection)
        if self.context.draining and not self.connections:
            self.emptied.set()

    # Requests, once they are whole.

    def serve(self, connection: ClientConnection, request: Request) -> None:
        """Answers a request, or sets it on its way."""
        path = request.path
        if not self.admission.relays(path):
            self._serve_own(connection, request, path)
            return
        context = self.context
        id_bytes = b"%b%08x" % (self._id_prefix, self._id_count)
        self._id_count += 1
        try:
            exchange = self.admission.admit(self, connection, request, id_bytes)
        except Refusal as refusal:
            self.budgets.release_body(request)
            if context.tracing is not None:
                context.tracing.refused(request, refusal.status, context.loop_time() - request.received)
            connection.refuse(request, refusal, id_bytes)
            return
        connection.exchange = exchange
        if context.tracing is not None:
            exchange.trace = context.tracing.begin(exchange)
        if len(exchange.group.usable) > 1 and exchange.keys8 and context.policy is Policy.COST:
            self.index.locate(exchange)
        else:
            self.recorder.count(self.layout.lookups + 4)
            exchange.located(None if path == RESPONSES else {})  # None: those that begin alike meet, by a hash

    def _serve_own(self, connection: ClientConnection, request: Request, path: bytes) -> None:
        try:
            if path == b"/healthz":  # for what restarts us: engines that are away are no reason
                answer = own_paths.Answer(200, b'{"status":"alive"}')
            elif path in (b"/health", b"/readyz"):
                answer = own_paths.health_report(self.context, leaving=self.draining or self.not_ready)
            elif path == b"/metrics":
                self.show()
                answer = own_paths.metrics_page(self.context)
            elif path.startswith(own_paths.REQUESTS):
                tenant = self.auth.tenant(request.head.authorization)
                answer = own_paths.request_page(self.context, path, tenant.name)
            elif path == own_paths.LAST_REQUESTS:
                answer = overview.requests_page(self.context, self.auth.tenant(request.head.authorization).name)
            elif path == own_paths.POOL:
                self.show()
                answer = overview.pool_page(self.context, draining=self.draining)
            elif path in own_paths.PAGE:
                answer = overview.page_file(path)
            else:
                answer = own_paths.models_page(self.context, path)
        except Refusal as refusal:
            connection.refuse(request, refusal, b"")
            return
        connection.respond(request, *answer)

    def health_report(self) -> tuple[int, bytes]:
        """The status and the body of `/health`."""
        answer = own_paths.health_report(self.context, leaving=self.draining or self.not_ready)
        return answer.status, answer.body

    # What became of requests.

    def answered_here(self, request: Request, status: int) -> None:
        """The router answered by itself."""
        if self.admission.relays(request.path):
            self.context.count_request(self.layout.other_model, status)

    def exchange_ended(self, exchange: Journey) -> None:
        """A request is no longer under way."""
        self.budgets.release_body(exchange.request)
        exchange.forwarded = NOTHING
        self.budgets.end(exchange.tenant.name)
        if exchange.trace is not None:
            exchange.trace.ended(exchange)

    def request_done(self, exchange: Journey, instance: Instance | None) -> None:
        """A request ended with an engine's answer, or with its client's leaving."""
        self.exchange_ended(exchange)
        context, layout = self.context, self.layout
        row = self.recorder.row
        seconds = context.loop_time() - exchange.request.received
        context.count_request(exchange.group.position, exchange.status)
        self.recorder.observe_seconds(layout.request_seconds, exchange.group.position, seconds)
        row[layout.response_bytes] += exchange.relayed
        row[layout.response_chunks] += exchange.pieces
        if self.log is not None:
            self.log.write(exchange, instance, seconds)

    # What is done every so often.

    async def tick(self) -> None:
        """Runs until cancelled: sums load, looks at who is usable, expires what is old."""
        context = self.context
        count = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            count += 1
            self.follower.poll()
            if context.sharing is not None:
                context.sharing.listen(context.loop_time())
            context.load.refresh()
            context.guesses.take(context.loop_time())
            context.waiting.wake()
            if context.sharing is not None:
                context.sharing.tell(context.loop_time())
            self.show()
            if count % TICKS_PER_SWEEP == 0:
                await self._sweep()
            elif self.settings.workers > 1 and count % 5 == 0:
                context.refresh_health()

    def show(self) -> None:
        """Brings the gauges up to date."""
        row, layout = self.recorder.row, self.layout
        row[layout.connections] = len(self.connections)
        row[layout.requests_now] = self.budgets.requests
        row[layout.body_bytes] = self.budgets.body_bytes
        row[layout.queued] = self.context.waiting.size

    async def _sweep(self) -> None:
        context = self.context
        now = context.loop_time()
        context.refresh_health()
        for connection in tuple(self.connections):
            connection.check(now)
        self.fleet.expire_idle(now)
        work = self.cells.total(self.layout.prefill_work) * metrics.MICRO
        context.utilisation.sample(work, sum(one.ready for one in self.fleet.instances))
        self.index.observe()
        if self.log is not None:
            self.log.flush()
        if self.auth.enabled:
            await self._reload_keys()
        if self.tls is not None:
            await self._reload_certificate(self.tls)

    async def _reload_certificate(self, tls: ServerTls) -> None:
        try:
            if await asyncio.to_thread(tls.reload_if_changed):
                logger.info("the certificate has been read again")
        except ConfigurationError as error:
            logger.error("the certificate read before stays in force: %s", error)

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
        self.context.draining = True
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
        await self.context.end_tasks()
        if self.context.tracing is not None:
            await asyncio.to_thread(self.context.tracing.close)
        if self.log is not None:
            self.log.flush()
