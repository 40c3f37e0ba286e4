"""What the planners are given: from caches, but for what must not be stale."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import ForbiddenError, KubeError
from kvcommons_operator.kube.kinds import NAMESPACE
from kvcommons_operator.observed import DeploymentObserved, Install, Manifest, NodeState, Pod, PoolObserved
from kvcommons_operator.pod_memory import Refusal
from kvcommons_operator.reconcile.inventory import Inventory
from kvcommons_operator.reconcile.nodes import index_reachable
from kvcommons_operator.reconcile.owners import Owner, owner_of
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_operator.reconcile.world import World

LABELS_SECONDS: Final = 60.0
"""Labels of a namespace are this old at most."""
NAMESPACES_MAX: Final = 4_096


class Observer:
    """Makes the observed world of one resource."""

    def __init__(
        self,
        client: KubeClient,
        install: Install,
        world: World,
        inventory: Inventory,
        resources: Resources,
        state_of: Callable[[str], NodeState | None],
        routable_of: Callable[[str], int | None],
        warnings_of: Callable[[str], tuple[str, ...]] = lambda uid: (),
        unresizable: Callable[[str], Refusal | None] = lambda uid: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._install = install
        self._world = world
        self._inventory = inventory
        self._resources = resources
        self._state_of = state_of
        self._routable_of = routable_of
        self._warnings_of = warnings_of
        self._unresizable = unresizable
        self._clock = clock
        self._labels: dict[str, tuple[float, Mapping[str, str]]] = {}

    def pool(self, key: Id) -> PoolObserved:
        """Everything that a pool is planned from."""
        owner = owner_of(*key)
        pods, children = self._pods(owner), self._inventory.children(owner)
        nodes = self._nodes(pods)
        uids = [str(child["metadata"].get("uid") or "") for child in children.values()]
        return PoolObserved(
            install=self._install,
            now=now(),
            children=children,
            pods=pods,
            nodes=nodes,
            unresizable={pod.uid: why for pod in pods if (why := self._unresizable(pod.uid))},
            warnings={uid: said for uid in uids if (said := self._warnings_of(uid))},
            users=self._resources.users_of(key),
            apis=self._world.apis,
            index_reachable=index_reachable(nodes),
        )

    async def deployment(self, key: Id, resource: Manifest) -> DeploymentObserved:
        """Everything that a deployment is planned from. :raises KubeError: if labels that it needs are not to be had for now."""
        owner, pool_key = owner_of(*key), self._resources.pool_of(resource)
        pods = self._pods(owner)
        pool = self._resources.get(pool_key) if pool_key is not None else None
        pool_pods = self._inventory.pods(owner_of(*pool_key)) if pool_key is not None else ()
        return DeploymentObserved(
            install=self._install,
            now=now(),
            children=self._inventory.children(owner) | self._resources.roles_of(key),
            pods=pods,
            nodes={state.member: state for state in self._nodes(pool_pods).values()},
            pool=pool,
            namespace_labels=await self._labels_of(key, pool_key, pool),
            apis=self._world.apis,
            routable=self._routable(pods),
        )

    def _pods(self, owner: Owner) -> tuple[Pod, ...]:
        """With what their Events say, where somebody asked them."""
        pods = self._inventory.pods(owner)
        return tuple(replace(pod, warnings=said) if (said := self._warnings_of(pod.uid)) else pod for pod in pods)

    def _nodes(self, pods: tuple[Pod, ...]) -> dict[str, NodeState]:
        states = ((pod.uid, self._state_of(pod.uid)) for pod in pods)
        return {uid: state for uid, state in states if state is not None}

    def _routable(self, pods: tuple[Pod, ...]) -> int | None:
        """What the routers that answered say; the least of them, since a request may come to any."""
        routers = [pod for pod in pods if pod.labels.get(names.COMPONENT) == names.ROUTER and pod.ready]
        told = [count for pod in routers if (count := self._routable_of(pod.uid)) is not None]
        return min(told) if told else None

    async def _labels_of(self, key: Id, pool_key: Id | None, pool: Manifest | None) -> Mapping[str, str] | None:
        """Only where the pool is elsewhere and chooses namespaces by their labels. None: they may not be read."""
        if pool is None or pool_key is None or pool_key.namespace == key.namespace or not _selects(pool):
            return {}
        known = self._labels.get(key.namespace)
        if known is not None and self._clock() - known[0] < LABELS_SECONDS:
            return known[1]
        try:
            found = await self._client.get(NAMESPACE, None, key.namespace, metadata_only=True)
        except ForbiddenError:
            return None
        except KubeError:
            if known is not None:
                return known[1]
            raise
        labels: dict[str, str] = found["metadata"].get("labels") or {}
        if len(self._labels) >= NAMESPACES_MAX:
            self._labels.clear()
        self._labels[key.namespace] = (self._clock(), labels)
        return labels


def _selects(pool: Mapping[str, Any]) -> bool:
    allowed = ((pool.get("spec") or {}).get("tenancy") or {}).get("allowedNamespaces")
    return isinstance(allowed, Mapping) and bool(allowed.get("selector"))


def now() -> str:
    """RFC 3339, whole seconds, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
