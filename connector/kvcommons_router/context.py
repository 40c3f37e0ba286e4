"""What all requests of one worker share: instances, their load and health, the index, metrics and the clock."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine

from kvcommons_core import limits as core_limits

from kvcommons_router import metrics
from kvcommons_router.cells import Cells
from kvcommons_router.fleet import Fleet, Instance
from kvcommons_router.guesses import Guesses
from kvcommons_router.health import Health
from kvcommons_router.index import Index
from kvcommons_router.load import Load, Utilisation
from kvcommons_router.metrics import Layout, Names, Recorder
from kvcommons_router.picker import Credits, Policy, Weights
from kvcommons_router.quotas import Quotas
from kvcommons_router.settings import RouterSettings
from kvcommons_router.sharing import Posts, Sharing
from kvcommons_router.tracing import Tracing, make_tracing
from kvcommons_router.waiting import Waiting

logger = logging.getLogger(__name__)


class Context:
    """The shared state of one worker. It knows of no connection and no request."""

    index: Index  # given by whoever makes this: an index needs a context itself

    def __init__(
        self, every: RouterSettings, *, layout: Layout, cells: Cells, row: int, posts: Posts | None = None
    ) -> None:
        """:param posts: shared by the workers of a router; not needed by one alone."""
        self.settings = settings = every.router
        self.index_settings = every.index
        self.layout = layout
        self.cells = cells
        self.row = row
        self.policy: Policy = settings.policy
        cost = settings.cost
        self.weights = Weights(
            Credits(cost.engine_credit, cost.memory_credit, cost.disk_credit, cost.peer_credit),
            cost.decode_seconds,
            cost.adapter_seconds,
        )
        queue = settings.queue
        self.binds_late = queue.enabled and self.policy is Policy.COST
        self.waiting = Waiting(self, queue.binding(), queue.seconds_max)
        self.recorder = Recorder(layout, cells.row(row))
        shares = settings.workers > 1 or bool(every.index.url)
        self.fleet = Fleet(settings, shares=shares)
        self.load = Load(layout, cells.row(row), [])
        self.sharing = Sharing(self, posts or Posts(1), row) if shares else None
        if self.sharing is not None:
            self.load.sources.append(self.sharing)
        self.health = Health(layout, cells, row, 0, settings.health)
        self.utilisation = Utilisation()
        self.guesses = Guesses()
        self.step_bytes = core_limits.TEXT_STEP_BYTES
        self.id_prefix = secrets.token_hex(8)
        self.draining = False
        self.tracing: Tracing | None = make_tracing(settings.tracing)
        self.quotas = Quotas(self.recorder, lambda: self.loop_time())
        self.loop_time: Callable[[], float] = time.monotonic
        self._tasks: set[asyncio.Task[None]] = set()

    # Time and tasks.

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to live on a loop."""
        self.loop_time = loop.time
        self.waiting.attach(loop.call_soon)

    def now_ms(self) -> int:
        """The machine's monotonic clock: the same in all workers, which compare it."""
        return int(time.monotonic() * 1000)

    def spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        """Runs something beside; it is kept until it ends."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task failed", exc_info=task.exception())

    async def end_tasks(self) -> None:
        """Ends what runs beside."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=2.0)

    # Health.

    def health_failed(self, instance: Instance) -> bool:
        """An instance failed a request; whether it is left out from now on."""
        now_ms = self.now_ms()
        if self.health.failed(instance.index, now_ms):
            instance.pool.close_idle()
            self.fleet.refresh(self.health, now_ms)
            return True
        return False

    def refresh_health(self) -> None:
        """Takes what other workers and the checks found."""
        now_ms = self.now_ms()
        if self.health.refresh(now_ms):
            self.fleet.refresh(self.health, now_ms)

    def up(self) -> dict[int, bool]:
        """Which instances are known to serve, by index."""
        self.refresh_health()
        now_ms = self.now_ms()
        return {one.index: one.ready and self.health.ready(one.index, now_ms) for one in self.fleet.instances}

    # Counters.

    def names(self) -> Names:
        """The labels of the metrics, as the fleet is now."""
        models = {group.position: group.model for group in self.fleet.groups.values()}
        models.pop(self.layout.other_model, None)
        return Names(tuple(sorted(models.items())), tuple((one.index, one.name) for one in self.fleet.instances))

    def count_request(self, model_column: int, status: int) -> None:
        """A request of a model was answered."""
        layout = self.layout
        column = layout.status_column.get(status)
        if column is None:
            column = layout.status_column[0]
        self.recorder.row[layout.requests + model_column * len(metrics.STATUSES) + column] += 1

    def count_attempt(self, index: int, outcome: str) -> None:
        """An attempt at an instance ended."""
        column = self.layout.attempts + index * len(metrics.OUTCOMES) + metrics.OUTCOMES.index(outcome)
        self.recorder.row[column] += 1
