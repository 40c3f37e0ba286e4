"""The process that starts the workers of a router, and decides for all of them which instances there are."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

import uvloop

from kvcommons_router.auth import Authenticator
from kvcommons_router.board import Board
from kvcommons_router.cells import Cells
from kvcommons_router.listed import ListedFile
from kvcommons_router.metrics import Layout
from kvcommons_router.settings import RouterSettings
from kvcommons_router.sharing import Posts
from kvcommons_router.steward import Steward
from kvcommons_router.workers import Worker, announce, bind

logger = logging.getLogger(__name__)

SOON_SECONDS: Final = 0.03  # how often it looks at its workers while it waits for something of them
SELDOM_SECONDS: Final = 1.0
RESTART_SECONDS_MIN: Final = 0.2
RESTART_SECONDS_MAX: Final = 10.0
HEALTHY_SECONDS: Final = 60.0  # a process that lived so long is started again at once


class Supervisor:
    """Starts the workers, starts them again when they crash, and passes on the signal to stop.

    It has no threads and no event loop, so that a fork copies nothing half done; what watches Kubernetes is therefore
    a process of its own, whose finds are put up for this one, and which may crash without anybody noticing.
    """

    def __init__(self, settings: RouterSettings, layout: Layout, auth: Authenticator, file: ListedFile | None) -> None:
        # A socket that is bound but does not listen keeps the port ours, also when it was 0, while workers come and go.
        # It is bound alone, so that it fails where another router is, and then lets the workers in.
        self._holder = bind(settings.router, share=False)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        host, port = self._holder.getsockname()[:2]
        listen = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
        self._settings = settings.router.model_copy(update={"listen": listen})
        self._every = settings.model_copy(update={"router": self._settings})
        self._layout = layout
        self._auth = auth
        workers = self._settings.workers
        self._row = workers  # our own, and after it that of the process that discovers
        self._cells = Cells(workers + 2, layout.columns)
        self._own = self._cells.row(self._row)
        self._gauges = layout.gauge_columns()
        self._board = Board()
        self._posts = Posts(workers)
        self._found = Board() if self._settings.kubernetes is not None else None
        self._steward = Steward(
            self._settings, layout, self._cells, self._board, row=self._row, file=file, found=self._found
        )
        self._rows = [*range(workers), *([workers + 1] if self._found is not None else [])]
        self._pids: dict[int, int] = {}
        self._stopping = False
        self._announced = False
        self._delays = dict.fromkeys(self._rows, RESTART_SECONDS_MIN)
        self._started = dict.fromkeys(self._rows, 0.0)
        self._due: dict[int, float] = {}
        self._signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1}
        if file is not None:
            self._signals.add(signal.SIGHUP)

    def run(self) -> int:
        """Until every worker has ended after a signal to stop."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._steward.poll(time.monotonic())
        for row in self._rows:
            self._start(row)
        while self._pids or (self._due and not self._stopping):
            found = signal.sigtimedwait(self._signals, self._patience())
            if found is not None and found.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._stop()
            self._reap()
            self._start_due()
            self._announce()
            self._steward.poll(time.monotonic(), look=found is not None and found.si_signo == signal.SIGHUP)
        return 0

    def _announce(self) -> None:
        """Says that the router listens once all its workers do."""
        workers = self._settings.workers
        if not self._announced and not self._stopping and self._cells.total(self._layout.workers) == workers:
            self._announced = True
            found = self._settings.kubernetes
            pods = f", pods with {found.selector} in {found.namespace}" if found is not None else ""
            tls = self._settings.tls_certificate is not None
            announce(self._holder, f"{workers} workers{pods}", self._cells, self._layout, self._every.index, tls=tls)

    def _patience(self) -> float:
        if not self._announced or not self._steward.settled:
            return SOON_SECONDS
        seldom = SELDOM_SECONDS if self._steward.watches else 60.0
        if not self._due:
            return seldom
        return min(seldom, max(0.01, min(self._due.values()) - time.monotonic()))

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
            # SIGHUP and SIGUSR1 stay blocked: they are for the supervisor, also when a whole group gets them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
            work: Callable[[int], None] = self._discover if row > self._row else self._serve
            work(row)
            status = 0
        finally:
            logging.shutdown()
            sys.stdout.flush()
            os._exit(status)

    def _serve(self, row: int) -> None:
        listener = bind(self._settings, share=True)
        self._holder.close()
        worker = Worker(self._every, self._layout, self._cells, row, self._auth, self._board, self._posts)
        uvloop.run(worker.run(listener))

    def _discover(self, row: int) -> None:
        from kvcommons_router import discovery  # aiohttp, which no other router needs

        self._holder.close()
        assert self._found is not None
        assert self._settings.kubernetes is not None
        discovery.run(self._settings.kubernetes, self._layout, self._cells.row(row), self._found)

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
        if row < self._row:  # what it had under way holds up nobody
            self._posts.boards[row].write(b"")
        if self._stopping:
            return
        if time.monotonic() - self._started[row] > HEALTHY_SECONDS:
            self._delays[row] = RESTART_SECONDS_MIN
        delay = self._delays[row]
        self._delays[row] = min(delay * 2, RESTART_SECONDS_MAX)
        self._due[row] = time.monotonic() + delay
        self._own[self._layout.worker_restarts] += 1
        code = os.waitstatus_to_exitcode(status)
        what = f"worker {row}" if row < self._row else "what watches Kubernetes"
        logger.error("%s (process %d) ended with %d; another one starts in %.1f s", what, pid, code, delay)

    def _start_due(self) -> None:
        if self._stopping:
            return
        now = time.monotonic()
        for row in [row for row, due in self._due.items() if due <= now]:
            del self._due[row]
            self._start(row)

    def _stop(self) -> None:
        self._stopping = True
        self._holder.close()  # who comes after us may have the port as soon as the workers listen no more
        self._due.clear()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _die_with(supervisor: int) -> None:
    """A worker ends when its supervisor does, however that ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)
