"""A router from its settings to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from kvcommons_core.index import IndexConnection

from kvcommons_router.board import Board
from kvcommons_router.cells import Cells
from kvcommons_router.listed import ListedFile
from kvcommons_router.metrics import Layout
from kvcommons_router.settings import RouterSettings
from kvcommons_router.steward import Steward
from kvcommons_router.supervisor import Supervisor
from kvcommons_router.tls import engine_tls, server_tls
from kvcommons_router.tracing import check_tracing
from kvcommons_router.workers import Worker, authenticator, bind


def serve(settings: RouterSettings, *, config: Path | None = None, load: Callable[[], RouterSettings]) -> int:
    """Runs a router to its end; the exit status.

    :param config: the file that instances are read from again when it changes.
    :param load: reads all sources of settings as they are then.
    :raises ConfigurationError: if the address can't be had, or keys or the index can't be used as they are given.
    """
    own = settings.router
    if settings.index.url:
        IndexConnection(settings.index)  # says now what would else be said by each worker
    server_tls(own)
    if any(one.https for one in own.instances):
        engine_tls(own.engine_ca)
    check_tracing(own.tracing)
    auth = authenticator(own)
    file = ListedFile(config, load, settings) if config is not None else None
    layout = Layout()
    if own.workers > 1 or own.kubernetes is not None:
        return Supervisor(settings, layout, auth, file).run()
    cells = Cells(1, layout.columns)
    board = Board()
    listener = bind(own, share=False)
    steward = Steward(own, layout, cells, board, row=0, file=file)
    steward.poll(time.monotonic())
    uvloop.run(Worker(settings, layout, cells, 0, auth, board).run(listener, alone=steward))
    return 0
