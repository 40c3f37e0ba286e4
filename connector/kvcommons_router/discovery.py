"""The process that watches Kubernetes, and puts up the instances that it finds for the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from urllib.parse import quote

from kvcommons_router.board import Board
from kvcommons_router.kube_session import KubeSession
from kvcommons_router.metrics import EVENTS, TROUBLES, Layout
from kvcommons_router.pod_set import PodSet
from kvcommons_router.pod_watch import PodWatch, Trouble
from kvcommons_router.settings_instances import KubernetesSettings

logger = logging.getLogger(__name__)


class Finds:
    """Puts up what the watch heard, tells the supervisor, and counts."""

    def __init__(self, pods: PodSet, board: Board, layout: Layout, row: memoryview, supervisor: int) -> None:
        self._pods = pods
        self._board = board
        self._layout = layout
        self._row = row
        self._supervisor = supervisor
        self._last: bytes | None = None

    def listed(self) -> None:
        """All pods were heard."""
        self._row[self._layout.discovery_lists] += 1

    def event(self, kind: str) -> None:
        """One event was heard."""
        self._row[self._layout.discovery_events + EVENTS.index(kind)] += 1

    def heard(self) -> None:
        """Puts up the fleet, if it is another one than before."""
        layout, row = self._layout, self._row
        row[layout.discovery_watching] = 1
        row[layout.discovery_heard] = int(time.time())
        text = self._pods.text()
        if text == self._last:
            return
        try:
            self._board.write(text)
        except ValueError as error:
            logger.error("pods: the fleet is not put up: %s", error)
            return
        self._last = text
        with contextlib.suppress(ProcessLookupError):  # then our own end is on its way
            os.kill(self._supervisor, signal.SIGUSR1)

    def trouble(self, trouble: Trouble) -> None:
        """The API server is not heard for now."""
        self._row[self._layout.discovery_watching] = 0
        self._row[self._layout.discovery_errors + TROUBLES.index(trouble.value)] += 1

    def problems(self, told: Sequence[str]) -> None:
        """Pods say what is not understood."""
        self._row[self._layout.discovery_pods_refused] += len(told)
        for problem in told:
            logger.warning("%s", problem)


def run(settings: KubernetesSettings, layout: Layout, row: memoryview, board: Board) -> None:
    """Watches until SIGTERM or SIGINT."""
    asyncio.run(_run(settings, layout, row, board, os.getppid()))


async def _run(settings: KubernetesSettings, layout: Layout, row: memoryview, board: Board, supervisor: int) -> None:
    pods = PodSet(settings)
    session = KubeSession(settings)
    path = f"/api/v1/namespaces/{quote(settings.namespace, safe='')}/pods"
    watch = PodWatch(session, path, settings.selector, pods, Finds(pods, board, layout, row, supervisor))
    task = asyncio.ensure_future(watch.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await session.renew()
