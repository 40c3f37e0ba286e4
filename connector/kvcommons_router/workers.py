"""A worker: one process that serves. Several of them share the port, and one truth about themselves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from typing import Final

from kvcommons_core.errors import ConfigurationError
from kvcommons_core.settings import IndexSettings

from kvcommons_router.app import App
from kvcommons_router.auth import Authenticator, KeysError, read_or_make_secret, read_secret
from kvcommons_router.board import Board
from kvcommons_router.cells import Cells
from kvcommons_router.http_server import ClientConnection
from kvcommons_router.index_redis import make_index
from kvcommons_router.metrics import Layout
from kvcommons_router.settings import RouterSection, RouterSettings, secret_path
from kvcommons_router.sharing import Posts
from kvcommons_router.steward import Steward

logger = logging.getLogger(__name__)

BACKLOG: Final = 2048
GC_THRESHOLDS: Final = (50_000, 20, 100)
STEWARD_SECONDS: Final = 0.1  # how often a worker that is its own steward looks


def bind(settings: RouterSection, *, share: bool) -> socket.socket:
    """A listening socket of this process; with `share` others may listen on the same port.

    :raises ConfigurationError: if the address can't be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        remedy = f"can't be listened on ({error.strerror}): give another address or port, or end what has it"
        raise ConfigurationError("router.listen", settings.listen, remedy) from error
    listener.setblocking(False)
    return listener


def authenticator(settings: RouterSection) -> Authenticator:
    """The authenticator of these settings.

    :raises ConfigurationError: if the keys or the secret can't be read.
    """
    if settings.api_keys is None:
        return Authenticator(None, b"")
    path = secret_path(settings)
    try:
        secret = read_secret(path) if settings.salt_secret is not None else read_or_make_secret(path)
    except (KeysError, OSError) as error:
        field = "router.salt_secret" if settings.salt_secret is not None else "router.state_directory"
        raise ConfigurationError(field, str(path), str(error)) from error
    try:
        return Authenticator(settings.api_keys, secret)
    except KeysError as error:
        raise ConfigurationError("router.api_keys", str(settings.api_keys), str(error)) from error


class Worker:
    """One serving process."""

    def __init__(
        self,
        settings: RouterSettings,
        layout: Layout,
        cells: Cells,
        row: int,
        auth: Authenticator,
        board: Board,
        posts: Posts | None = None,
    ) -> None:
        self._settings = settings.router
        self.app = App(
            settings, layout=layout, cells=cells, row=row, auth=auth, make_index=make_index, board=board, posts=posts
        )

    async def run(self, listener: socket.socket, *, alone: Steward | None = None) -> None:
        """Serves until SIGTERM or SIGINT, then drains.

        :param alone: given where there is no supervisor, so that this process does its work, too.
        """
        app = self.app
        # What was made until now stays; requests make next to no cycles, so looking for some is rarely worth it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        loop = asyncio.get_running_loop()
        app.attach(loop)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        background = [asyncio.ensure_future(app.tick())]
        if app.checker is not None:
            background.append(asyncio.ensure_future(app.checker.run()))
        if alone is not None and alone.watches:
            background.append(asyncio.ensure_future(_keep_roster(alone)))
        await app.index.start()
        app.index.observe()
        tls = app.tls
        server = await loop.create_server(
            lambda: ClientConnection(app),
            sock=listener,
            backlog=BACKLOG,
            ssl=tls.context if tls is not None else None,
            ssl_handshake_timeout=app.limits.header_seconds if tls is not None else None,
        )
        app.recorder.row[app.layout.workers] = 1
        if alone is not None:
            announce(
                listener,
                f"{len(app.fleet.instances)} instances",
                app.cells,
                app.layout,
                app.context.index_settings,
                tls=tls is not None,
            )
        waiter = asyncio.ensure_future(stop.wait())
        await asyncio.wait([waiter, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in background:
            if task.done():
                task.result()  # what ended it ends us: the supervisor starts another worker
        await self._drain(server)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await app.index.close()
        await app.close()
        app.recorder.row[app.layout.workers] = 0

    async def _drain(self, server: asyncio.AbstractServer) -> None:
        app, settings = self.app, self._settings
        app.not_ready = True
        await asyncio.sleep(settings.drain_delay_seconds)
        server.close()
        app.drain()
        try:
            async with asyncio.timeout(settings.drain_seconds):
                await app.emptied.wait()
        except TimeoutError:
            logger.warning("%d connections are cut after %g s of draining", app.busy, settings.drain_seconds)


async def _keep_roster(steward: Steward) -> None:
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), STEWARD_SECONDS)
        look = asked.is_set()
        asked.clear()
        steward.poll(time.monotonic(), look=look)


def announce(
    listener: socket.socket, what: str, cells: Cells, layout: Layout, index: IndexSettings, *, tls: bool = False
) -> None:
    """Says where the router listens, and how it stands with the index."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("listening on %s://%s:%d, %s", "https" if tls else "http", shown, port, what)
    if not index.url:
        logger.info("index: none; each worker remembers by itself what it sent where")
    elif cells.total(layout.index_up) == cells.total(layout.workers):
        logger.info("index: connected, prefix %s", index.prefix)
    else:
        logger.warning("index: away; requests are sent without it until it answers")
