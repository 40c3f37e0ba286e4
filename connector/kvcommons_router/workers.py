"""The processes of one router: one worker is the process itself; more share the port, and one truth about themselves."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from typing import Final

import uvloop
from kvcommons_core.index import IndexConnection

from kvcommons_router.app import App, layout_of
from kvcommons_router.auth import Authenticator, read_or_make_secret, read_secret
from kvcommons_router.cells import Cells
from kvcommons_router.http_server import ClientConnection
from kvcommons_router.index_redis import make_index
from kvcommons_router.metrics import Layout
from kvcommons_router.settings import RouterSection, RouterSettings, secret_path

logger = logging.getLogger(__name__)

BACKLOG: Final = 2048
ANNOUNCE_SECONDS: Final = 0.02  # how often the supervisor looks whether its workers serve, at the start
GC_THRESHOLDS: Final = (50_000, 20, 100)
RESTART_SECONDS_MIN: Final = 0.2
RESTART_SECONDS_MAX: Final = 10.0


def bind(settings: RouterSection, *, share: bool) -> socket.socket:
    """A listening socket of this process; with `share` others may listen on the same port.

    :raises OSError: if the address can't be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.host, settings.port))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def authenticator(settings: RouterSection) -> Authenticator:
    """The authenticator of these settings.

    :raises KeysError: if the keys or the secret can't be read.
    """
    if settings.api_keys is None:
        return Authenticator(None, b"")
    path = secret_path(settings)
    secret = read_secret(path) if settings.salt_secret is not None else read_or_make_secret(path)
    return Authenticator(settings.api_keys, secret)


class Worker:
    """One serving process."""

    def __init__(self, settings: RouterSettings, layout: Layout, cells: Cells, row: int, auth: Authenticator) -> None:
        self._settings = settings.router
        self.app = App(settings, layout=layout, cells=cells, row=row, auth=auth, make_index=make_index)
        self._stop: asyncio.Event | None = None

    async def run(self, listener: socket.socket, *, announce: bool) -> None:
        """Serves until SIGTERM or SIGINT, then drains."""
        app, settings = self.app, self._settings
        # What was made until now stays; requests make next to no cycles, so looking for some is rarely worth it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        loop = asyncio.get_running_loop()
        app.attach(loop)
        self._stop = stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        background = [asyncio.ensure_future(app.tick())]
        if app.checker is not None:
            background.append(asyncio.ensure_future(app.checker.run()))
        await app.index.start()
        server = await loop.create_server(lambda: ClientConnection(app), sock=listener, backlog=BACKLOG)
        app.recorder.row[app.layout.workers] = 1
        if announce:
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d, %d instances", host, port, len(settings.instances))
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


def serve(settings: RouterSettings) -> int:
    """Runs a router to its end; the exit status.

    :raises OSError: if the address can't be had.
    :raises KeysError: if the API keys can't be read.
    :raises ConfigurationError: if the index can't be meant as it is given.
    """
    own = settings.router
    if settings.index.url:
        IndexConnection(settings.index)  # says now what would else be said by each worker
    auth = authenticator(own)
    layout = layout_of(own)
    if own.workers == 1:
        cells = Cells(1, layout.columns)
        listener = bind(own, share=False)
        uvloop.run(Worker(settings, layout, cells, 0, auth).run(listener, announce=True))
        return 0
    return Supervisor(settings, layout, auth).run()


class Supervisor:
    """Starts the workers, starts them again when they crash, and passes on the signal to stop.

    It has no threads and no event loop, so that a fork copies nothing half done.
    """

    def __init__(self, settings: RouterSettings, layout: Layout, auth: Authenticator) -> None:
        # A socket that is bound but does not listen keeps the port ours, also when it was 0, while workers come and go.
        self._holder = bind(settings.router, share=True)
        host, port = self._holder.getsockname()[:2]
        listen = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
        self._settings = settings.router.model_copy(update={"listen": listen})
        self._every = settings.model_copy(update={"router": self._settings})
        self._layout = layout
        self._auth = auth
        workers = self._settings.workers
        self._cells = Cells(workers + 1, layout.columns)
        self._own = self._cells.row(workers)
        self._gauges = layout.gauge_columns()
        self._pids: dict[int, int] = {}
        self._stopping = False
        self._announced = False
        self._delays = [RESTART_SECONDS_MIN] * workers
        self._started = [0.0] * workers
        self._due: dict[int, float] = {}

    def run(self) -> int:
        """Until every worker has ended after a signal to stop."""
        signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        for row in range(self._settings.workers):
            self._start(row)
        while self._pids or (self._due and not self._stopping):
            found = signal.sigtimedwait(signals, self._patience())
            if found is not None and found.si_signo != signal.SIGCHLD:
                self._stop()
            self._reap()
            self._start_due()
            self._announce()
        return 0

    def _announce(self) -> None:
        """Says that the router listens once all its workers do."""
        if not self._announced and self._cells.total(self._layout.workers) == self._settings.workers:
            self._announced = True
            logger.info("listening on http://%s, %d workers", self._settings.listen, self._settings.workers)

    def _patience(self) -> float:
        if not self._announced:
            return ANNOUNCE_SECONDS
        if not self._due:
            return 60.0
        return max(0.01, min(self._due.values()) - time.monotonic())

    def _start(self, row: int) -> None:
        self._started[row] = time.monotonic()
        supervisor = os.getpid()
        pid = os.fork()
        if pid:
            self._pids[pid] = row
            return
        status = 1
        try:
            _die_with(supervisor)
            self._work(row)
            status = 0
        finally:
            logging.shutdown()
            sys.stdout.flush()
            os._exit(status)

    def _work(self, row: int) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
        listener = bind(self._settings, share=True)
        self._holder.close()
        worker = Worker(self._every, self._layout, self._cells, row, self._auth)
        uvloop.run(worker.run(listener, announce=False))

    def _reap(self) -> None:
        while self._pids:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            row = self._pids.pop(pid, None)
            if row is not None:
                self._ended(row, pid, status)

    def _ended(self, row: int, pid: int, status: int) -> None:
        cells = self._cells.row(row)
        for column in self._gauges:
            cells[column] = 0
        if self._stopping:
            return
        if time.monotonic() - self._started[row] > 60.0:
            self._delays[row] = RESTART_SECONDS_MIN
        delay = self._delays[row]
        self._delays[row] = min(delay * 2, RESTART_SECONDS_MAX)
        self._due[row] = time.monotonic() + delay
        self._own[self._layout.worker_restarts] += 1
        code = os.waitstatus_to_exitcode(status)
        logger.error("worker %d (process %d) ended with %d; another one starts in %.1f s", row, pid, code, delay)

    def _start_due(self) -> None:
        if self._stopping:
            return
        now = time.monotonic()
        for row in [row for row, due in self._due.items() if due <= now]:
            del self._due[row]
            self._start(row)

    def _stop(self) -> None:
        self._stopping = True
        self._due.clear()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _die_with(supervisor: int) -> None:
    """A worker ends when its supervisor does, however that ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)
