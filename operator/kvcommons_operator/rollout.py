"""How changes reach cache nodes, one at a time, and which engine goes first when there are to be fewer. Pure.

A node goes: fence (nothing it published is believed any more, and it publishes nothing new), flush (what it has in memory alone
is written down), delete its pod, wait until the new one is ready and a member again; then the next. What does not come back stops
the roll."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kvcommons_operator import names
from kvcommons_operator.conditions import trouble
from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.outcome import ActionKind, PodAction

WAIT_SECONDS: Final = 2.0
COST_MAX: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Roll:
    """Where a roll of cache nodes stands, and its next step."""

    outdated: int
    updated: int
    actions: tuple[PodAction, ...] = ()
    waiting_for: str = ""
    """What must come back before the next node goes."""
    stuck: str = ""
    """Why it does not come back by itself."""
    requeue_seconds: float | None = None

    @property
    def done(self) -> bool:
        """Every node is as the pool now says, and well."""
        return not self.outdated and not self.waiting_for


def roll_nodes(
    pods: Sequence[Pod], template_hash: str, nodes: Mapping[str, NodeState], *, desired: int, rolling: bool = True
) -> Roll:
    """The next step of bringing all nodes to this template.

    :param nodes: by pod uid. A pod that did not answer counts as away; nothing is begun before all that are ready were asked.
    :param desired: how many nodes there should be.
    :param rolling: False (updateStrategy OnDelete): only count."""
    old = [pod for pod in pods if not pod.deleting and pod.annotations.get(names.TEMPLATE_HASH) != template_hash]
    new = [pod for pod in pods if not pod.deleting and pod not in old]
    away = _away(pods, new, nodes, desired)
    roll = Roll(outdated=len(old), updated=len(new))
    if away is not None:
        what, why = away
        return replace(roll, waiting_for=what, stuck=why, requeue_seconds=WAIT_SECONDS)
    if not old or not rolling:
        return roll
    unasked = sum(pod.ready and pod.uid not in nodes for pod in pods)
    if unasked:
        # A leader that has just begun: one of them may be held already, and none may go without its fence.
        return replace(roll, waiting_for=f"what {unasked} cache nodes say of themselves", requeue_seconds=WAIT_SECONDS)
    begun = [pod for pod in old if (state := nodes.get(pod.uid)) is not None and state.fenced]
    broken = [pod for pod in old if not pod.ready]
    # One that was begun first, then one that serves nobody anyway, then by name: the order is the same in every look.
    chosen = min(begun or broken or old, key=lambda pod: pod.name)
    step = next_step(chosen, nodes.get(chosen.uid))
    return replace(roll, actions=(step,), waiting_for=f"cache node {member(chosen)}", requeue_seconds=WAIT_SECONDS)


def _away(
    pods: Sequence[Pod], new: Sequence[Pod], nodes: Mapping[str, NodeState], desired: int
) -> tuple[str, str] | None:
    """(what is not back, why it does not come back by itself) if any node that was touched is not back yet."""
    leaving = next((pod for pod in sorted(pods, key=lambda pod: pod.name) if pod.deleting), None)
    if leaving is not None:
        return f"pod {leaving.name}, which is going", ""
    for pod in sorted(new, key=lambda pod: pod.name):
        state = nodes.get(pod.uid)
        if not pod.ready:
            problem = trouble(pod)
            return f"cache node {member(pod)}", problem.message if problem is not None and problem.stuck else ""
        if state is not None and state.reachable and state.fenced:
            return f"cache node {member(pod)}, which is fenced", ""
    if len(pods) < desired:
        return f"{desired - len(pods)} cache nodes that have no pod yet", ""
    return None


def next_step(pod: Pod, state: NodeState | None) -> PodAction:
    """Fence, then flush, then delete; a node that does not answer has nothing to flush."""
    reason = "its pod is to be replaced"
    if state is None or not state.reachable or not pod.ready:
        return _action(ActionKind.DELETE_POD, pod, reason)
    if not state.fenced:
        return _action(ActionKind.FENCE, pod, reason)
    if not state.flushed:
        return _action(ActionKind.FLUSH, pod, reason)
    return _action(ActionKind.DELETE_POD, pod, reason)


def member(pod: Pod) -> str:
    """The node's name in the index."""
    return pod.node or pod.name


def _action(kind: ActionKind, pod: Pod, reason: str) -> PodAction:
    return PodAction(kind=kind, namespace=pod.namespace, pod=pod.name, uid=pod.uid, member=member(pod), reason=reason)


# Scaling down ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """How much would be lost with an engine."""

    hits: int = 0
    """Chunks that it has reused lately."""
    chunks: int = 0
    """Chunks that it holds alone."""


def deletion_costs(pods: Iterable[Pod], warmth: Mapping[str, Warmth]) -> tuple[PodAction, ...]:
    """Annotations that make the ReplicaSet remove the coldest engine first: a rank, 0 the coldest. Only changes are written.

    :param warmth: by pod name.

    Ranks of orders of magnitude, not counts: counts change all the time, and each write costs a request."""
    alive = [pod for pod in pods if not pod.deleting]

    def key(pod: Pod) -> tuple[bool, int, int, int, str]:
        found = warmth.get(pod.name, Warmth())
        return (pod.ready, found.hits.bit_length(), found.chunks.bit_length(), _cost(pod), pod.name)

    actions = []
    for rank, pod in enumerate(sorted(alive, key=key)):
        wanted = str(min(rank, COST_MAX))
        if len(alive) > 1 and pod.annotations.get(names.DELETION_COST) != wanted:
            actions.append(
                PodAction(
                    kind=ActionKind.ANNOTATE_POD,
                    namespace=pod.namespace,
                    pod=pod.name,
                    uid=pod.uid,
                    reason="how warm its cache is",
                    annotations=((names.DELETION_COST, wanted),),
                )
            )
    return tuple(actions)


def _cost(pod: Pod) -> int:
    text = pod.annotations.get(names.DELETION_COST, "0")
    return int(text) if text.lstrip("-").isdigit() else 0
