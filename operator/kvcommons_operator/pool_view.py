"""A pool that is accepted, and how its parts stand: what its conditions are made from. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from kvcommons_operator import names
from kvcommons_operator.build import node
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.naming import NO_NAMING, Naming, missing_in
from kvcommons_operator.observed import Manifest, Pod, PoolObserved, Ref
from kvcommons_operator.rollout import Roll
from kvcommons_operator.troubles import Puzzle, Trouble, puzzles, refused_pods, troubles

NODE_CONTAINERS: Final = frozenset({node.NODE_CONTAINER, node.HOLDER_CONTAINER, node.PREPARE_CONTAINER})


@dataclass(frozen=True, kw_only=True)
class View:
    """A pool that is accepted, and how it stands."""

    pool: Pool
    observed: PoolObserved
    roll: Roll | None
    daemon_set: Manifest | None
    """The live one."""
    notes: tuple[str, ...] = ()
    """What was asked for and is passed over."""
    naming: Naming = NO_NAMING
    """Fields that name what its pods need."""

    @property
    def node_pods(self) -> list[Pod]:
        """Pods that hold a cache node."""
        component = names.CACHE_NODE if self.pool.per_node else names.ENGINE
        return [pod for pod in self.observed.pods if pod.labels.get(names.COMPONENT) == component]

    @property
    def index_pods(self) -> list[Pod]:
        """Pods of the managed index."""
        return [pod for pod in self.observed.pods if pod.labels.get(names.COMPONENT) == names.INDEX]

    @property
    def desired(self) -> int:
        """How many cache nodes there should be: with sidecar, as many as engine pods."""
        if not self.pool.per_node:
            return len(self.node_pods)
        return int(((self.daemon_set or {}).get("status") or {}).get("desiredNumberScheduled", 0))

    def is_up(self, pod: Pod) -> bool:
        """Its cache node serves: the pod is ready, or with sidecar the node in it answers."""
        if pod.deleting:
            return False
        if self.pool.per_node:
            return pod.ready
        state = self.observed.nodes.get(pod.uid)
        return state.reachable if state is not None else pod.ready

    @property
    def up(self) -> list[Pod]:
        """Those that serve."""
        return [pod for pod in self.node_pods if self.is_up(pod)]

    @property
    def own_pods(self) -> list[Pod]:
        """Pods that are the pool's to keep well, and its part of the engines' pods that hold the nodes of a sidecar pool."""
        if self.pool.per_node:
            return [*self.node_pods, *self.index_pods]
        return [*map(self._part, self.node_pods), *self.index_pods]

    def _part(self, pod: Pod) -> Pod:
        """What of an engine's pod the pool is to blame for; the rest is told by the engine's deployment."""
        mine = [said for said in pod.warnings if any(self.naming.of(one) for one in missing_in(said))]
        parts = tuple(one for one in pod.containers if one.name in NODE_CONTAINERS)
        return replace(pod, containers=parts, unschedulable="", warnings=tuple(mine), phase="Pending")

    @cached_property
    def troubles(self) -> list[tuple[Pod, Trouble]]:
        """Of its own pods, what is not well."""
        return troubles(self.own_pods, self.naming)

    @property
    def node_troubles(self) -> list[tuple[Pod, Trouble]]:
        """The same of its cache nodes alone."""
        return [one for one in self.troubles if one[0].labels.get(names.COMPONENT) != names.INDEX]

    @property
    def index_troubles(self) -> list[str]:
        """What keeps the managed index from serving."""
        found = [one for one in self.troubles if one[0].labels.get(names.COMPONENT) == names.INDEX]
        return [*(problem.message for _, problem in found), *(one.message for one in self.refused("StatefulSet"))]

    @property
    def workloads(self) -> list[Manifest]:
        """The live DaemonSet and StatefulSets."""
        live = sorted(self.observed.children.items())
        return [one for ref, one in live if ref.kind in ("DaemonSet", "StatefulSet")]

    def refused(self, kind: str) -> list[Trouble]:
        """Why workloads of a kind may not make their pods."""
        found = [
            refused_pods(live, self.observed.warnings.get(live["metadata"].get("uid", ""), ()), self.naming)
            for live in self.workloads
            if live["kind"] == kind
        ]
        return [problem for problem in found if problem is not None]

    @property
    def puzzles(self) -> tuple[Puzzle, ...]:
        """What its Events may explain; of engines' pods their deployments ask."""
        pods = [*(self.node_pods if self.pool.per_node else ()), *self.index_pods]
        return puzzles(pods, self.workloads)

    @property
    def is_new(self) -> bool:
        """The DaemonSet's controller has not looked at what it should do: its numbers say nothing yet."""
        if self.daemon_set is None:
            return True
        seen = (self.daemon_set.get("status") or {}).get("observedGeneration", 0)
        return bool(seen < self.daemon_set["metadata"].get("generation", 0) and not self.desired)

    @property
    def missing_secrets(self) -> tuple[Ref, ...]:
        """Secrets that its pods miss, by whoever they are made."""
        found = {
            Ref("v1", "Secret", pod.namespace, one.name)
            for pod, problem in self.troubles
            for one in problem.missing
            if one.kind == "Secret" and one.name
        }
        return tuple(sorted(found))
