"""Steps on one cache node that is to be changed: fenced, flushed, and then what is to become of it. Pure."""

from __future__ import annotations

from typing import Final

from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.outcome import ActionKind, PodAction

FLUSH_SECONDS_MAX: Final = 30.0
"""How long a fenced node may take to write down what it has in memory alone, where the pool does not say."""
UNANSWERED_MIN: Final = 3
UNANSWERED_SECONDS_MIN: Final = 10.0
"""A node that the kubelet calls ready is given up after so many questions without an answer, over so long."""
REPLACED: Final = "its pod is to be replaced"


def member(pod: Pod) -> str:
    """The node's name in the index."""
    return pod.node or pod.name


def action(kind: ActionKind, pod: Pod, reason: str) -> PodAction:
    """A step on that pod."""
    return PodAction(kind=kind, namespace=pod.namespace, pod=pod.name, uid=pod.uid, member=member(pod), reason=reason)


def given_up(state: NodeState) -> bool:
    """It was asked in vain for long enough: one lost answer is no proof that it is dead."""
    return state.unanswered >= UNANSWERED_MIN and state.unanswered_seconds >= UNANSWERED_SECONDS_MIN


def replace_step(pod: Pod, state: NodeState | None, flush_seconds_max: float) -> PodAction | None:
    """Fence, then flush, then delete. One that the kubelet does not call ready serves nobody; one that it does must have been asked in
    vain for a while. None: wait."""
    if not pod.ready or (state is not None and given_up(state)):
        return action(ActionKind.DELETE_POD, pod, REPLACED)
    if state is None or not state.reachable:
        return None
    return quiet_step(pod, state, flush_seconds_max, REPLACED) or action(ActionKind.DELETE_POD, pod, REPLACED)


def quiet_step(pod: Pod, state: NodeState, flush_seconds_max: float, reason: str) -> PodAction | None:
    """What comes before a node may be interrupted; None when nothing does any more."""
    if not state.fenced:
        return action(ActionKind.FENCE, pod, reason)
    if not state.flushed and state.fenced_seconds < flush_seconds_max:
        return action(ActionKind.FLUSH, pod, reason)
    return None
