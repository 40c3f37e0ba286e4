"""Fencing: what a pod's members published is void once the pod is gone or one of its containers has begun anew.

EndpointSlices hide a fast restart, so the labelled pods themselves are watched: deletion, another uid, a restart count that rose, a pod that
failed. The index is told by any live node of the pool: the operator needs no Redis. A lost machine is the lease's affair (3 s)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kvcommons_core.members import engine_member

from kvcommons_operator import names
from kvcommons_operator.build.node import NODE_CONTAINER
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.observed import Pod
from kvcommons_operator.reconcile.nodes import Address, NodeClient

NODES_ASKED_AT_ONCE: Final = 3
ROUNDS_MAX: Final = 6
ROUND_SECONDS: Final = 0.25
WAITING_MAX: Final = 10_000
RANKS_MAX: Final = 256
MEMBERS_PER_CALL_MAX: Final = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fence:
    """Members that are to be voided, and why."""

    pod: Pod
    members: tuple[str, ...]
    reason: str
    since: float


def members_of(pod: Pod) -> tuple[str, ...]:
    """The members that live in a pod: a DaemonSet's node, named for its machine; or an engine, and the node beside it.

    Cache nodes are in their pool's namespace: a pod elsewhere that has such labels speaks for none."""
    component = pod.labels.get(names.COMPONENT)
    at_home = pod.labels.get(names.POOL_NAMESPACE_LABEL, pod.namespace) == pod.namespace
    if component == names.CACHE_NODE:
        return (pod.node,) if pod.node and at_home else ()
    if component != names.ENGINE:
        return ()
    ranks = pod.annotations.get(names.DATA_PARALLEL, "1")
    count = min(int(ranks), RANKS_MAX) if ranks.isdigit() else 1
    engines = [f"{pod.name}-dp{rank}" for rank in range(count)] if count > 1 else [pod.name]
    beside = (pod.name,) if at_home else ()
    return (*beside, *map(engine_member, engines))


def why(old: Pod | None, new: Pod | None) -> str:
    """Why the members of `old` are void now; empty if they are not."""
    if old is None:
        return ""
    if new is None:
        return "pod deleted"
    if new.uid != old.uid:
        return "pod replaced"
    if new.phase != old.phase and new.phase in ("Failed", "Succeeded"):
        return f"pod {new.phase.lower()}"
    before = {container.name: container.restarts for container in old.containers}
    for container in new.containers:
        if container.restarts > before.get(container.name, container.restarts):
            return f"container {container.name} restarted"
    return ""


class Fencer:
    """Takes changes of pods; fences in the background, at once, in parallel, a bounded number of times."""

    def __init__(
        self,
        client: NodeClient,
        metrics: OperatorMetrics,
        live_nodes: Callable[[Pod], Sequence[Address]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param live_nodes: nodes of the pool that the pod belongs to or uses, without the pod itself."""
        self._client = client
        self._metrics = metrics
        self._live_nodes = live_nodes
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """A pod came, changed or went: whether its members are void now."""
        reason = why(old, new)
        members = members_of(old) if old is not None and reason else ()
        if old is None or not members:
            return
        if len(self._tasks) >= WAITING_MAX:
            self._metrics.fences.labels("failed").inc()
            return
        fence = Fence(old, members, reason, self._clock())
        task = asyncio.get_running_loop().create_task(self._fence(fence), name=f"fence {old.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fence(self, fence: Fence) -> None:
        outcome = "no-node"
        for attempt in range(ROUNDS_MAX):
            nodes = list(self._live_nodes(fence.pod))
            random.shuffle(nodes)
            if nodes and await self.ask(nodes[:NODES_ASKED_AT_ONCE], fence.members, fence.reason):
                seconds = self._clock() - fence.since
                self._metrics.fences.labels("done").inc()
                self._metrics.fence_seconds.observe(seconds)
                logger.info("fenced %s: %s (%.3f s)", ", ".join(fence.members[:4]), fence.reason, seconds)
                return
            outcome = "failed" if nodes else outcome
            await asyncio.sleep(ROUND_SECONDS * 2**attempt)
        self._metrics.fences.labels(outcome).inc()
        logger.warning(
            "not fenced: %s (%s): %s; its lease runs out by itself", fence.members[:4], fence.reason, outcome
        )

    async def ask(self, nodes: Sequence[Address], members: Iterable[str], reason: str, *, hold: bool = False) -> bool:
        """Asks some nodes at once; one that did it is enough."""
        wanted = list(members)[:MEMBERS_PER_CALL_MAX]
        calls = [asyncio.ensure_future(self._client.fence(node, wanted, reason, hold=hold)) for node in nodes]
        try:
            for call in asyncio.as_completed(calls):
                if (await call).ok:
                    return True
            return False
        finally:
            for pending in calls:
                pending.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def stop(self) -> None:
        """Ends what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def addresses(pods: Iterable[Pod], token: str, without: Pod | None = None) -> list[Address]:
    """Live nodes among a pool's pods: cache nodes, and engines' pods that hold one."""
    return [
        Address(pod.ip, token)
        for pod in pods
        if pod.ip
        and pod.phase == "Running"
        and not pod.deleting
        and holds_node(pod)
        and (without is None or pod.uid != without.uid)
    ]


def holds_node(pod: Pod) -> bool:
    """Whether a cache node answers there: an engine beside a DaemonSet's nodes has none, and is nobody to show the pool's token to."""
    component = pod.labels.get(names.COMPONENT)
    return component == names.CACHE_NODE or (component == names.ENGINE and pod.container(NODE_CONTAINER) is not None)
