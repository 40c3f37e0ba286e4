"""The daemon: starts the parts in order, waits for a signal, and ends them in the opposite order.

Order of the start: the checks, the HTTP address (so that /readyz can say 503), the holder, the core, then the events
and the index. Redis is never waited for. Order of the stop: leave the index (a fence makes everything published void at
once), stop the events, the core, the holder if it is ours, and HTTP last."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from kvcommons_core.errors import StartRefusedError
from kvcommons_core.settings_values import format_bytes

from kvcommons_node import holder, preflight, size
from kvcommons_node.api.server import SHUTDOWN_SECONDS_MAX, Access, Api
from kvcommons_node.cluster import Credentials
from kvcommons_node.control import Control, IndexLink
from kvcommons_node.engines import Engines
from kvcommons_node.history import History
from kvcommons_node.model_names import ModelNames
from kvcommons_node.pinning import Pinning
from kvcommons_node.plan import StartPlan
from kvcommons_node.pool_view import NoPool, PoolView
from kvcommons_node.pump import EventPump
from kvcommons_node.remote.driver import Drivers
from kvcommons_node.seam import Core
from kvcommons_node.tls import Tls

if TYPE_CHECKING:
    from kvcommons_node.peers import Peers

INDEX_LEAVE_SECONDS_MAX = 2.0
ANSWER_SECONDS = 0.2
"""Until who asked for a new beginning has been answered."""
PINS_FILE = "pins.jsonl"
MODELS_FILE = "models.json"

logger = logging.getLogger(__name__)

CoreFactory = Callable[[StartPlan], Core]
IndexFactory = Callable[[StartPlan, Core], IndexLink]
PoolFactory = Callable[[StartPlan], PoolView]


class BeginAnew(Exception):
    """The start went wrong for a reason that the next one has not."""


class Daemon:
    """One node. ``run`` lives until ``stop`` is called or the process is told to end."""

    def __init__(
        self,
        plan: StartPlan,
        make_core: CoreFactory,
        make_index: IndexFactory,
        make_pool: PoolFactory = lambda _plan: NoPool(),
    ) -> None:
        self._plan = plan
        self._tls = Tls(plan.control_tls) if plan.control_tls is not None else None
        self._make_core = make_core
        self._make_index = make_index
        self._make_pool = make_pool
        self._stopping = asyncio.Event()
        self.serving = asyncio.Event()
        """Set once engines may attach."""
        self.http_address: tuple[str, int] | None = None

        self.begins_anew = False
        """It ended to begin anew: the holder was left what it holds."""

    def stop(self) -> None:
        self.begins_anew = False
        self._stopping.set()

    def begin_anew(self) -> None:
        """Ends so that the same command is run again, as soon as the answer to who asked for it is on its way."""
        self.begins_anew = True
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._stopping.set)

    async def run(self) -> None:
        """:raises StartRefusedError: if something is in the way of the start."""
        plan = self._plan
        async with AsyncExitStack() as stack:
            core = self._make_core(plan)
            index = self._make_index(plan, core)
            pinning = Pinning(core, plan.state_directory / PINS_FILE, plan.pinned_bytes_max)
            models = ModelNames(plan.state_directory / MODELS_FILE)
            models.restore()
            pool = self._make_pool(plan)
            stack.push_async_callback(pool.close)
            engines = Engines(plan.engines, pool, plan.node_id)
            stack.push_async_callback(engines.close)
            control = Control(
                core,
                index,
                pinning,
                models=models,
                pool=pool,
                engines=engines,
                credentials=Credentials(plan.control_token, self._tls.client if self._tls is not None else None),
                sizing=size.Sizing(plan, self.begin_anew),
                node_id=plan.node_id,
                version=plan.version,
                socket_path=str(plan.socket_path),
                multi_tenant=plan.multi_tenant,
                namespace_secret=plan.namespace_secret,
            )
            await self._serve_http(control, stack)
            await self._start_core(core)
            self._start_drivers(core, stack)
            if plan.owns_holder and plan.holder_socket is not None:
                stack.callback(self._end_holder, plan.holder_socket)
            stack.push_async_callback(asyncio.to_thread, core.stop)
            await pinning.restore()
            stack.push_async_callback(_ended, asyncio.create_task(pinning.run()))
            peers = _peers_of(plan, core, index, control.reports.history)
            self._attach(control, core, index, stack, peers)
            stack.push_async_callback(control.close)
            await index.start()
            stack.push_async_callback(_leave, index)
            if peers is not None:
                await peers.start()
                stack.push_async_callback(peers.stop)
            self._announce(core.notes, core.remarks, core.adopted)
            self.serving.set()
            await self._stopping.wait()
            logger.info("stopping")
            control.set_serving(False)

    def _start_drivers(self, core: Core, stack: AsyncExitStack) -> None:
        """They end after the core, which writes behind until it stops."""
        if self._plan.stores:
            drivers = Drivers(self._plan.stores)
            stack.push_async_callback(asyncio.to_thread, drivers.stop)
            drivers.start(core.remote_ports())

    def _attach(
        self, control: Control, core: Core, index: IndexLink, stack: AsyncExitStack, peers: Peers | None
    ) -> None:
        loop = asyncio.get_running_loop()
        on_wake = peers.wake if peers is not None else _nothing
        pump = EventPump(core, index, control.node_metrics, control.reports, control.feed, control.models, on_wake)
        pump.start(loop)
        stack.callback(pump.stop, loop)
        control.set_serving(True)
        stack.callback(control.set_serving, False)

    async def _serve_http(self, control: Control, stack: AsyncExitStack) -> None:
        host, port = self._plan.control_host, self._plan.control_port
        access = Access(
            token=self._plan.control_token,
            loopback=preflight.is_loopback(host),
            certificates=self._plan.control_tls is not None and self._plan.control_tls.client_ca is not None,
        )
        context = self._tls.server if self._tls is not None else None
        application = Api(control, access, self._plan.version, self._plan.node_id).application()
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, host, port, ssl_context=context).start()
        except OSError as error:
            raise StartRefusedError(preflight.port_refused(host, port, error)) from error
        if self._tls is not None:
            stack.push_async_callback(_ended, asyncio.create_task(self._tls.run()))
        self.http_address = (host, int(runner.addresses[0][1]))

    def _end_holder(self, socket_path: Path) -> None:
        if not self.begins_anew:
            _stop_holder(socket_path)

    async def _start_core(self, core: Core) -> None:
        plan = self._plan
        started_holder = False
        if plan.owns_holder and plan.holder_socket is not None:
            log = plan.state_directory / "holder.log"
            started_holder = await asyncio.to_thread(holder.ensure, plan.holder_socket, plan.holder_idle_seconds, log)
        try:
            # Populating gigabytes takes seconds: health checks are answered meanwhile.
            await asyncio.to_thread(core.start)
        except (ValueError, OSError) as error:
            if plan.arena_bytes != plan.configured_bytes:
                logger.warning("the size that was asked for last is given up: %s", error)
                size.forget(plan.state_directory)
                self.begins_anew = True
                raise BeginAnew from error
            # A holder that was there before keeps what it has: a refused start must not cost the content.
            if started_holder and plan.holder_socket is not None:
                _stop_holder(plan.holder_socket)
            raise StartRefusedError(str(error)) from error

    def _announce(self, notes: Sequence[str], remarks: Sequence[str], adopted: bool) -> None:
        """Leave a note for tools, and for whoever chose port 0."""
        host, port = self.http_address or ("", 0)
        note = {
            "pid": os.getpid(),
            "node_id": self._plan.node_id,
            "http": f"{host}:{port}",
            "socket": str(self._plan.socket_path),
        }
        file = self._plan.state_directory / "node.json"
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps(note) + "\n")
        scratch.replace(file)
        for line in (*notes, *self._plan.notes):
            logger.warning("%s", line)
        for line in remarks:
            logger.info("%s", line)
        arena = f"arena of {format_bytes(self._plan.arena_bytes)}{', adopted with what it held' if adopted else ''}"
        told = f"engines attach at {note['socket']} ({arena}), control API at {'https' if self._tls is not None else 'http'}://{note['http']}"
        logger.info("serving as %s: %s", self._plan.node_id, told, extra=note)


def _peers_of(plan: StartPlan, core: Core, index: IndexLink, history: History) -> Peers | None:
    """Imported late, as the index: a private node needs no Redis client."""
    if not plan.peer_address or not plan.index.url:
        return None
    from kvcommons_node.peers import Peers

    return Peers(plan.index, core, index, plan.node_id, plan.core["peers"]["locate_ms_max"], history)


def _nothing() -> None:
    """Nobody else waits for the core."""


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _leave(index: IndexLink) -> None:
    try:
        await asyncio.wait_for(index.stop(), INDEX_LEAVE_SECONDS_MAX)
    except TimeoutError:
        # The lease runs out by itself.
        logger.warning("Redis did not answer while leaving the index")


def _stop_holder(socket_path: Path) -> None:
    from kvcommons_core import _native

    with suppress(OSError, ValueError):
        _native.holder_stop(str(socket_path))


def stop_on_signals(daemon: Daemon) -> None:
    """SIGTERM and SIGINT end the daemon cleanly."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
