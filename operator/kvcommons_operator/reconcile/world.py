"""All watches: which kinds in which namespaces, begun as their APIs appear, each feeding the inventory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.kube import kinds
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.discovery import TTL_SECONDS, Discovery
from kvcommons_operator.kube.errors import KubeError
from kvcommons_operator.kube.kinds import Kind
from kvcommons_operator.kube.watches import Change, Scope, Watch
from kvcommons_operator.observed import Api, Pod
from kvcommons_operator.reconcile.inventory import Child, Inventory, keep_child, keep_pod

SELECTOR: Final = f"{names.MANAGED_BY}={names.MANAGER}"
WATCHED: Final = (
    kinds.SERVICE,
    kinds.SERVICE_ACCOUNT,
    kinds.DAEMON_SET,
    kinds.DEPLOYMENT,
    kinds.STATEFUL_SET,
    kinds.ROLE,
    kinds.ROLE_BINDING,
    kinds.NETWORK_POLICY,
    kinds.DISRUPTION_BUDGET,
    kinds.AUTOSCALER,
)
"""Secrets are not: the operator may write those that it makes up, and reads none."""
DOUBT_SECONDS: Final = 2.0

logger = logging.getLogger(__name__)


class World:
    """Runs watches until it is stopped. `apis` are the optional ones that are served."""

    def __init__(
        self,
        client: KubeClient,
        namespaces: Iterable[str],
        inventory: Inventory,
        on_apis: Callable[[], None],
        *,
        discovery_seconds: float = TTL_SECONDS,
    ) -> None:
        self.namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self.discovery = Discovery(client, kinds.OPTIONAL, ttl_seconds=discovery_seconds * 0.9)
        self._client = client
        self._inventory = inventory
        self._on_apis = on_apis
        self._discovery_seconds = discovery_seconds
        self._doubted = asyncio.Event()
        self._children: dict[tuple[Kind, str | None], Watch[Child]] = {}
        self._pods: list[Watch[Pod]] = []
        self._tasks: dict[object, asyncio.Task[None]] = {}

    @property
    def apis(self) -> frozenset[Api]:
        """The optional APIs that are served, as planners name them."""
        return frozenset(Api(kind.api_version, kind.name) for kind in self.discovery.served)

    def watches(self, kind: Kind) -> bool:
        """Whether objects of a kind are watched, in any namespace."""
        return any(watched == kind for watched, _ in self._children)

    def offer(self, kind: Kind, item: Mapping[str, Any]) -> Child | None:
        """An object as a request answered it. Returns what is kept of it; None where its kind is not watched."""
        namespace = item["metadata"].get("namespace")
        for place in (namespace, None):
            watch = self._children.get((kind, place))
            if watch is not None:
                return watch.offer(dict(item))
        return None

    async def start(self) -> None:
        """Returns when everything has been listed once. :raises KubeError: if the APIs are not known."""
        served = await self.discovery.refresh()
        for namespace in self.namespaces:
            self._watch_pods(namespace)
            for kind in (*WATCHED, *served):
                self._watch(kind, namespace)
        self._tasks["discovery"] = _spawn(self._rediscover(), "discovery")
        await self.synced()

    async def synced(self) -> None:
        """Returns when every watch has listed once."""
        watches: list[Watch[Any]] = [*self._children.values(), *self._pods]
        await asyncio.gather(*(watch.synced.wait() for watch in watches))

    async def stop(self) -> None:
        """Ends all watches."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def failed(self) -> BaseException | None:
        """A watch never ends by itself: what ended one is a defect, and the process must not go on half blind."""
        for task in self._tasks.values():
            if task.done() and not task.cancelled():
                return task.exception() or RuntimeError(f"{task.get_name()} has ended")
        return None

    def restarts(self) -> Mapping[str, int]:
        """How often watches began anew, by reason."""
        total: dict[str, int] = {}
        watches: list[Watch[Any]] = [*self._children.values(), *self._pods]
        for watch in watches:
            for reason, count in watch.restarts.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def _watch(self, kind: Kind, namespace: str | None) -> None:
        place = (kind, namespace)
        if place in self._children:
            return
        scope = Scope(kind, namespace, labels=SELECTOR)
        watch = Watch(self._client, scope, keep=keep_child(kind.key), on_change=self._inventory.child_changed)
        self._children[place] = watch
        self._tasks[place] = _spawn(watch.run(), f"watch {kind.plural} in {namespace or 'all namespaces'}")

    def _watch_pods(self, namespace: str | None) -> None:
        scope = Scope(kinds.POD, namespace, labels=SELECTOR)
        watch = Watch(self._client, scope, keep=keep_pod, on_change=self._inventory.pod_changed)
        self._pods.append(watch)
        self._tasks[scope] = _spawn(watch.run(), f"watch pods in {namespace or 'all namespaces'}")

    def doubt(self, kind: Kind) -> None:
        """A request was told that an optional API is not there: it is asked for anew soon."""
        if kind.optional:
            self._doubted.set()

    async def _rediscover(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), self._discovery_seconds)
                # Not more often than this, however many requests fail meanwhile.
                await asyncio.sleep(DOUBT_SECONDS)
                self.discovery.forget()
            self._doubted.clear()
            before = self.discovery.served
            try:
                served = await self.discovery.refresh()
            except KubeError as error:
                logger.info("APIs are not discovered for now: %s", error)
                continue
            if served != before:
                logger.info("optional APIs: %s", ", ".join(sorted(kind.name for kind in served)) or "none")
                for namespace in self.namespaces:
                    for kind in served:
                        self._watch(kind, namespace)
                self._forget(before - served)
                self._on_apis()

    def _forget(self, gone: Iterable[Kind]) -> None:
        """With its definition an API's objects are gone, whether their deletion was seen or not: no ghost of them stays."""
        kinds_gone = frozenset(gone)
        for place in [place for place in self._children if place[0] in kinds_gone]:
            watch = self._children.pop(place)
            self._tasks.pop(place).cancel()
            for key, child in watch.cache.items():
                self._inventory.child_changed(Change(place[0], key, child, None))


def _spawn(work: Any, name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name=name)
