"""How changes reach cache nodes, one at a time, and which engine goes first when there are to be fewer. Pure.

A node goes: fence (nothing it published is believed any more, and it publishes nothing new), flush (what it has in memory alone
is written down, for as long as that may take), delete its pod, wait until the new one is ready and a member again; then the next. What does
not come back stops the roll, but for a machine that is gone with its pod. A node that is held and need not go any more is let back in.
One of which only the size is to change keeps its pod (sizing.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from kvcommons_operator import names, sizing
from kvcommons_operator.naming import NO_NAMING, Naming
from kvcommons_operator.node_steps import FLUSH_SECONDS_MAX, action, given_up, member, replace_step
from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.outcome import ActionKind, PodAction
from kvcommons_operator.pod_memory import Refusal
from kvcommons_operator.sizing import Size
from kvcommons_operator.troubles import trouble

WAIT_SECONDS: Final = 2.0
RELEASE_SECONDS_MAX: Final = 30.0
"""One that is held, need not be and can't be let back in (an older version) is replaced after so long."""
LOST_SECONDS: Final = 30.0
"""A pod that is still there so long after its last second is on a machine that nobody hears of."""
MAGNITUDES: Final = 64
"""As many orders of magnitude are told apart, by powers of two."""


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
    losing: str = ""
    """What the next step costs that another size could have kept, and why."""
    lost: tuple[str, ...] = ()
    """Cache nodes on machines that are gone: nobody waits for them."""
    requeue_seconds: float | None = None

    @property
    def done(self) -> bool:
        """Every node is as the pool now says, and well."""
        return not self.outdated and not self.waiting_for


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a pool's nodes are rolled."""

    desired: int
    """How many nodes there should be."""
    rolling: bool = True
    """False (updateStrategy OnDelete, or a template that is not in force yet): only count."""
    release_outdated: bool = False
    """Outdated nodes are left to the user: none of them is to be held."""
    flush_seconds_max: float = FLUSH_SECONDS_MAX
    now: str = ""
    """RFC 3339; empty where time plays no part."""
    naming: Naming = NO_NAMING
    """Fields that name what the nodes' pods need."""
    size: Size | None = None
    """What nodes that live can be given; None: a node is replaced whatever has changed."""
    unresizable: Mapping[str, Refusal] = field(default_factory=dict)
    """By pod uid: why it could not be given another size."""


def roll_nodes(pods: Sequence[Pod], template_hash: str, nodes: Mapping[str, NodeState], rules: Rules) -> Roll:
    """The next step of bringing all nodes to this template.

    :param nodes: by pod uid. A pod that did not answer counts as away; nothing is begun before all that are ready were asked."""
    lost = [pod for pod in pods if is_lost(pod, rules.now)]
    alive = [pod for pod in pods if pod not in lost]
    staying = [pod for pod in alive if not pod.deleting]
    old = [pod for pod in staying if _is_outdated(pod, template_hash, rules.size)]
    new = [pod for pod in staying if pod not in old]
    roll = Roll(outdated=len(old), updated=len(new), lost=tuple(sorted(member(pod) for pod in lost)))
    held = _held([*new, *old] if rules.release_outdated else new, nodes, rules)
    if held is not None:
        waiting = f"cache node {member(held)}, which is fenced"
        return replace(roll, actions=(_release(held, nodes),), waiting_for=waiting, requeue_seconds=WAIT_SECONDS)
    away = _away(alive, new, rules.desired - len(lost), rules.naming)
    if away is not None:
        what, why = away
        return replace(roll, waiting_for=what, stuck=why, requeue_seconds=WAIT_SECONDS)
    resizing = any(names.RESIZING in pod.annotations for pod in new)
    if not (old and rules.rolling) and not resizing:
        return roll
    apart = _apart(alive, new, nodes)
    if apart is not None:
        what, why = apart
        return replace(roll, waiting_for=what, stuck=why, requeue_seconds=WAIT_SECONDS)
    step = sizing.given_up_size(new, nodes, rules.size) or sizing.left_over(new, rules.size)
    if step is not None:
        waiting = f"cache node {step.member}, whose memory is settled"
        return replace(roll, actions=(step,), waiting_for=waiting, requeue_seconds=WAIT_SECONDS)
    return _next(roll, old, nodes, rules) if old and rules.rolling else roll


def _is_outdated(pod: Pod, template_hash: str, size: Size | None) -> bool:
    return pod.annotations.get(names.TEMPLATE_HASH) != template_hash or sizing.is_told_otherwise(pod, size)


def _next(roll: Roll, old: Sequence[Pod], nodes: Mapping[str, NodeState], rules: Rules) -> Roll:
    """The next step of one of those that are outdated."""
    begun = [pod for pod in old if (state := nodes.get(pod.uid)) is not None and state.fenced]
    broken = [pod for pod in old if not pod.ready]
    # One that was begun first, then one that serves nobody anyway, then by name: the order is the same in every look.
    chosen = min(begun or broken or old, key=lambda pod: pod.name)
    state = nodes.get(chosen.uid)
    if rules.size is not None and sizing.differs_in_size(chosen, rules.size):
        told = sizing.next_step(chosen, state, rules.size, rules.flush_seconds_max, rules.unresizable)
    else:
        step = replace_step(chosen, state, rules.flush_seconds_max)
        doubt = ", which does not answer" if step is None else ""
        told = sizing.Step(step, f"cache node {member(chosen)}{doubt}")
    return replace(
        roll,
        actions=(told.action,) if told.action is not None else (),
        waiting_for=told.waiting_for,
        stuck=told.stuck,
        losing=told.losing,
        requeue_seconds=WAIT_SECONDS,
    )


def is_lost(pod: Pod, now: str) -> bool:
    """It should be gone for long: its machine is off, or cut off. Kubernetes keeps such a pod until a person removes the machine."""
    if not (pod.deleting_since and now):
        return False
    return (datetime.fromisoformat(now) - datetime.fromisoformat(pod.deleting_since)).total_seconds() > LOST_SECONDS


def _held(pods: Sequence[Pod], nodes: Mapping[str, NodeState], rules: Rules) -> Pod | None:
    """One that is held though nothing is to become of it: its change was taken back. Not what was known of one before it began anew."""
    known = [(pod, state) for pod in pods if (state := nodes.get(pod.uid)) is not None]
    held = [
        pod for pod, state in known if state.reachable and state.fenced and not sizing.under_way(pod, state, rules.size)
    ]
    return min(held, key=lambda pod: pod.name, default=None)


def _release(pod: Pod, nodes: Mapping[str, NodeState]) -> PodAction:
    late = nodes[pod.uid].fenced_seconds > RELEASE_SECONDS_MAX
    return action(ActionKind.DELETE_POD if late else ActionKind.UNFENCE, pod, "it need not be replaced any more")


def _away(pods: Sequence[Pod], new: Sequence[Pod], desired: int, naming: Naming) -> tuple[str, str] | None:
    """(what is not back, why it does not come back by itself) if any node that was touched is not back yet."""
    leaving = next((pod for pod in sorted(pods, key=lambda pod: pod.name) if pod.deleting), None)
    if leaving is not None:
        return f"pod {leaving.name}, which is going", ""
    for pod in sorted(new, key=lambda pod: pod.name):
        if not pod.ready:
            problem = trouble(pod, naming)
            return f"cache node {member(pod)}", problem.message if problem is not None and problem.stuck else ""
    if len(pods) < desired:
        return f"{desired - len(pods)} cache nodes that have no pod yet", ""
    return None


def _apart(pods: Sequence[Pod], new: Sequence[Pod], nodes: Mapping[str, NodeState]) -> tuple[str, str] | None:
    """The same for what nodes say of themselves: whether they are members again, before the next one goes."""
    unasked = sum(pod.ready and pod.uid not in nodes for pod in pods)
    if unasked:
        # A leader that has just begun: one of them may be held already, and none may go without its fence.
        return f"what {unasked} cache nodes say of themselves", ""
    for pod in sorted(new, key=lambda pod: pod.name):
        state = nodes[pod.uid]
        if not state.reachable:
            why = f"it does not answer the operator on port {names.CONTROL_PORT}: see its logs and the NetworkPolicies"
            return f"cache node {member(pod)}, which does not answer", why if given_up(state) else ""
        if not state.joined:
            return f"cache node {member(pod)}, which is no member of the index yet", ""
    return None


def followed(before: NodeState | None, state: NodeState, seconds: float) -> NodeState:
    """What a node says now, with for how long it has been so.

    :param seconds: since it was asked before."""
    known = before if before is not None else NodeState(member=state.member)
    if not state.reachable:
        still = seconds if known.unanswered else 0.0
        unanswered_seconds = known.unanswered_seconds + still
        return replace(state, unanswered=known.unanswered + 1, unanswered_seconds=unanswered_seconds)
    if state.fenced and known.fenced:
        return replace(state, fenced_seconds=known.fenced_seconds + seconds)
    return state


# Scaling down ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """How much would be lost with an engine."""

    hits: int = 0
    """Chunks that it has reused lately."""
    chunks: int = 0
    """Chunks that it holds alone."""


def deletion_costs(pods: Iterable[Pod], warmth: Mapping[str, Warmth]) -> tuple[PodAction, ...]:
    """Annotations that make the ReplicaSet remove the coldest engine first. Only changes are written.

    :param warmth: by pod name.

    Orders of magnitude, not counts: counts change all the time, and each write costs a request. Not ranks either: one pod more
    would change those of all others. A pod that is not ready has no cost: the ReplicaSet takes it first whatever it says."""
    ready = [pod for pod in pods if pod.ready and not pod.deleting]
    actions = []
    for pod in ready if len(ready) > 1 else ():
        wanted = str(_cost(warmth.get(pod.name, Warmth())))
        if pod.annotations.get(names.DELETION_COST) != wanted:
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


def _cost(found: Warmth) -> int:
    """What was reused counts before what is there."""
    hits, chunks = (min(count.bit_length(), MAGNITUDES - 1) for count in (found.hits, found.chunks))
    return hits * MAGNITUDES + chunks
