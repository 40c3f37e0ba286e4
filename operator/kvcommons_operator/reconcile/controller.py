"""The workers: take what is due, observe, plan, carry out, tell. Idempotent, driven by levels, one object at a time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.conditions import previous
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import ConflictError, ForbiddenError, KubeError, NotFoundError, UnavailableError
from kvcommons_operator.kube.kinds import DEPLOYMENT_OWN, OWN_KINDS
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.observed import Manifest
from kvcommons_operator.outcome import Finalizer, Plan
from kvcommons_operator.plan import plan_deployment, plan_pool
from kvcommons_operator.reconcile.act import CHILD_REFUSED, NAME_TAKEN, Executor, Refused
from kvcommons_operator.reconcile.observe import Observer, now
from kvcommons_operator.reconcile.owners import Owner
from kvcommons_operator.reconcile.queue import WorkQueue
from kvcommons_operator.reconcile.resources import Id, Resources, truth_changed, wish_changed
from kvcommons_operator.reconcile.warnings import Warnings

REFUSED_SECONDS: Final = 30.0
"""What the server refused is tried again after this long: a quota or a role may have changed."""
RESYNC_JITTER: Final = 0.2
REFUSED_CONDITIONS: Final = ("Progressing", "Ready")
"""They don't hold while something is refused, whatever the plan hoped for."""

logger = logging.getLogger(__name__)


class Controller:
    """Events in, reconciles out."""

    def __init__(
        self,
        client: KubeClient,
        resources: Resources,
        observer: Observer,
        executor: Executor,
        queue: WorkQueue[Id],
        metrics: OperatorMetrics,
        warnings: Warnings,
        *,
        namespaces: Sequence[str | None],
        workers: int,
        resync_seconds: float,
    ) -> None:
        self._client = client
        self._resources = resources
        self._observer = observer
        self._executor = executor
        self._queue = queue
        self._metrics = metrics
        self._warnings = warnings
        self._namespaces = namespaces
        self._workers = workers
        self._resync_seconds = resync_seconds

    # events -----------------------------------------------------------------------------------------------------------

    async def prime(self) -> None:
        """One consistent list of our own kinds before anything is decided. :raises KubeError: if there is none."""
        for kind in OWN_KINDS:
            found = [item for place in self._namespaces for item in await self._client.list(kind, place)]
            self._resources.replace(kind.name, found, self._namespaces)
        self.all()

    def all(self) -> None:
        """Everything is looked at again: an API has come or gone."""
        for kind in (names.POOL_KIND, names.DEPLOYMENT_KIND):
            for key, _ in self._resources.of_kind(kind):
                self._queue.add(key)

    def resource_event(self, kind: str, event: str | None, body: dict[str, Any]) -> None:
        """What kopf saw. `event` is None for what was listed."""
        if event == "DELETED":
            key = Id(kind, body["metadata"]["namespace"], body["metadata"]["name"])
            live = self._resources.get(key)
            if live is None or live["metadata"].get("uid") == body["metadata"].get("uid"):
                self._resources.remove(key)
                self._related(key, live or body)
                self._queue.add(key)
            return
        key, old, new = self._resources.put(kind, body)
        if wish_changed(old, new):
            self._queue.add(key)
        if truth_changed(old, new):
            self._related(key, new)
            if old is not None and self._resources.pool_of(old) != self._resources.pool_of(new):
                self._related(key, old)

    def owner_event(self, owner: Owner) -> None:
        """Something that belongs to a resource has changed."""
        key = self._resources.of_owner(owner)
        if key is not None:
            self._queue.add(key)

    def _related(self, key: Id, item: Manifest) -> None:
        """A pool plans with its users, a deployment with its pool and its roles."""
        related: list[Id] = []
        if key.kind == names.POOL_KIND:
            related = self._resources.deployments_of(key)
        elif key.kind == names.DEPLOYMENT_KIND:
            pool = self._resources.pool_of(item)
            related = [pool] if pool is not None else []
        else:
            deployment = self._resources.deployment_of_role(item)
            related = [deployment] if deployment is not None else []
        for other in related:
            self._queue.add(other)

    # work -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. A defect in a plan stops that object's work, with a log of why, and no other's."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"reconcile {number}")

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            started, outcome = time.monotonic(), "retried"
            try:
                again = await self.reconcile(key)
                outcome = "done"
                self._queue.done(key, again)
            except ConflictError as error:
                logger.debug("%s: %s", key, error)
                self._queue.failed(key)
            except UnavailableError as error:
                pause = self._queue.failed(key, error.retry_after_seconds or 0.0)
                logger.info("%s: again in %.1f s: %s", key, pause, error)
            except ForbiddenError as error:
                logger.warning("%s: %s", key, error)
                self._queue.failed(key, REFUSED_SECONDS)
            except KubeError as error:
                logger.warning("%s: %s", key, error)
                self._queue.failed(key)
            except Exception:
                outcome = "defect"
                logger.exception("%s: a defect of the operator", key)
                self._queue.failed(key, REFUSED_SECONDS)
            self._metrics.reconciles.labels(key.kind, outcome).inc()
            self._metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)

    async def reconcile(self, key: Id) -> float | None:
        """Returns when to look again. :raises KubeError: to be tried again."""
        resource = self._resources.get(key)
        if key.kind == names.ROLE_KIND:
            return None
        if resource is None:
            self._executor.forget(key)
            self._warnings.watch(key, ())
            self._queue.forget(key)
            return None
        try:
            other = await self._executor.marks.claim(key, resource)
        except NotFoundError:
            self._vanished(key, resource)
            return None
        if other:
            self._warnings.watch(key, ())
            await self._executor.leave(resource, other)
            return self._slow()
        resource = self._resources.get(key) or resource
        plan = await self._plan(key, resource)
        self._warnings.watch(key, plan.puzzles)
        refused = await self._executor.carry_out(key, resource, plan)
        status = with_refusals(plan.status, refused, resource)
        try:
            later = await self._executor.tell(key, resource, status)
        except NotFoundError:
            self._vanished(key, resource)
            return None
        await self._executor.events(resource, without_hopes(plan) if refused else plan, refused)
        if plan.finalizer is Finalizer.DROP and await self._still_to_drop(key):
            await self._executor.marks.drop_finalizer(key, self._resources.get(key) or resource)
        if refused:
            return REFUSED_SECONDS
        return min(one for one in (plan.requeue_seconds, later, self._slow()) if one is not None)

    def _slow(self) -> float:
        return self._resync_seconds * (1 + RESYNC_JITTER * (2 * random.random() - 1))

    def _vanished(self, key: Id, resource: Manifest) -> None:
        """It was deleted while nobody watched (kopf tells of no deletion that falls between two of its lists). Without this its children
        would be made again as often as the garbage collector removes them."""
        logger.info("%s is gone, though nobody said so", key)
        self._warnings.watch(key, ())
        live = self._resources.get(key)
        if live is not None and live["metadata"].get("uid") == resource["metadata"].get("uid"):
            self._resources.remove(key)
            self._executor.forget(key)
            self._related(key, resource)

    async def _plan(self, key: Id, resource: Manifest) -> Plan:
        if key.kind == names.POOL_KIND:
            return plan_pool(resource, self._observer.pool(key))
        return plan_deployment(resource, await self._observer.deployment(key, resource))

    async def _still_to_drop(self, key: Id) -> bool:
        """A pool goes only after a consistent look at who uses it: the caches may not have heard of the newest user."""
        live = self._resources.get(key)
        if live is None:
            return False
        if key.kind != names.POOL_KIND or "deletionTimestamp" not in live["metadata"]:
            return True
        before, known = self._resources.users_of(key), self._resources.uids(names.DEPLOYMENT_KIND)
        found = [item for place in self._namespaces for item in await self._client.list(DEPLOYMENT_OWN, place)]
        self._resources.replace(names.DEPLOYMENT_KIND, found, self._namespaces, known)
        if self._resources.users_of(key) == before:
            return True
        self._queue.add(key)
        return False


def without_hopes(plan: Plan) -> Plan:
    """Without the Events that what was refused makes untrue."""
    hopes = tuple(f"{kind}: " for kind in ("Accepted", *REFUSED_CONDITIONS))
    return replace(plan, events=tuple(event for event in plan.events if not event.message.startswith(hopes)))


def with_refusals(status: dict[str, Any], refused: list[Refused], resource: Manifest) -> dict[str, Any]:
    """The status, with the truth about what the API server did not take: not progressing, and why."""
    if not refused or not status:
        return status
    first = min(refused, key=lambda one: (one.reason != NAME_TAKEN, one.reason != CHILD_REFUSED))
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    says = "has a name that is taken" if first.reason == NAME_TAKEN else "is refused"
    where = f"{', '.join(first.fields)}: " if first.fields else ""
    message = f"{where}{first.ref.kind} {first.ref.namespace}/{first.ref.name} {says}: {first.error.message}{more}"
    untrue = REFUSED_CONDITIONS if first.reason != CHILD_REFUSED else ("Accepted", *REFUSED_CONDITIONS)
    found = [dict(condition) for condition in status.get("conditions") or []]
    before = previous(resource)
    for condition in found:
        if condition.get("type") in untrue:
            old = before.get(condition["type"], {})
            since = old.get("lastTransitionTime") if old.get("status") == "False" else None
            condition |= {
                "status": "False",
                "lastTransitionTime": since or now(),
                "reason": first.reason,
                "message": message[:1024],
                "observedGeneration": resource["metadata"].get("generation", 0),
            }
    return {**status, "conditions": found}
