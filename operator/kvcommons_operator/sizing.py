"""Another size for a cache node that lives: more memory for its pod first, then the arena, which keeps what fits; then what memory is left
over goes back. Pure.

Only where the size is all that has changed. What a pod can't take where it is has it replaced, and what its node held is told as lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from kvcommons_operator import names
from kvcommons_operator.node_steps import action, given_up, member, quiet_step, replace_step
from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.outcome import ActionKind, PodAction
from kvcommons_operator.pod_memory import Memory, Refusal

REASON: Final = "the pool's capacity has changed"
BEGUN: Final = "memory"
GAVE_UP: Final = "gave-up"
"""Values of the annotation while only memory was asked for, and where the node could not take the size; else it is the size that the node is
told to take."""
MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Size:
    """What of a cache node's template a living pod can take."""

    template_hash: str
    """Of the whole template."""
    shape_hash: str
    """Of the rest of it."""
    arena_bytes: int
    memory: Memory


class Step(NamedTuple):
    """What is to be done with a node next, or what it waits for."""

    action: PodAction | None = None
    waiting_for: str = ""
    stuck: str = ""
    """Why that does not come by itself."""
    losing: str = ""
    """What is lost, and why."""


def differs_in_size(pod: Pod, wanted: Size | None) -> bool:
    """Nothing but its size keeps the pod from being as it should be."""
    return wanted is not None and pod.annotations.get(names.SHAPE_HASH) == wanted.shape_hash


def is_told_otherwise(pod: Pod, wanted: Size | None) -> bool:
    """It was told to take a size that is wished for no more, by an operator that did not live to write down whether it will."""
    told = pod.annotations.get(names.RESIZING, "")
    return wanted is not None and told.isdigit() and int(told) != wanted.arena_bytes


def under_way(pod: Pod, state: NodeState | None, wanted: Size | None) -> bool:
    """It will take this size, and has not said yet that it has."""
    if wanted is None or pod.annotations.get(names.RESIZING) != str(wanted.arena_bytes):
        return False
    agreed = pod.annotations.get(names.TEMPLATE_HASH) == wanted.template_hash
    return agreed and (state is None or state.arena_bytes != wanted.arena_bytes)


def given_up_size(new: Sequence[Pod], nodes: Mapping[str, NodeState], wanted: Size | None) -> PodAction | None:
    """Marks one that agreed to take this size and serves with the one before: there was no room for it after all."""
    for pod in sorted(new, key=lambda pod: pod.name):
        state = nodes.get(pod.uid)
        if state is not None and state.joined and under_way(pod, state, wanted):
            step = action(ActionKind.ANNOTATE_POD, pod, "it has kept its size")
            return replace(step, annotations=((names.TEMPLATE_HASH, None), (names.RESIZING, GAVE_UP)))
    return None


def next_step(
    pod: Pod, state: NodeState | None, wanted: Size, flush_seconds_max: float, unresizable: Mapping[str, Refusal]
) -> Step:
    """The next step of giving an outdated pod another size, for which all else is as it should be.

    :param unresizable: by pod uid, why it was refused."""
    node = f"cache node {member(pod)}"
    container = pod.container(names.CACHE_NODE_CONTAINER)
    if container is None or not container.running or (state is not None and given_up(state)):
        return Step(action(ActionKind.DELETE_POD, pod, REASON), node)
    if state is None or not state.reachable:
        return Step(None, f"{node}, which does not answer")
    asked, given = pod.memory.asked, pod.memory.given
    if given is None:
        return _replaced(pod, state, flush_seconds_max, "its kubelet does not tell what memory it has")
    room = given.joined(wanted.memory)
    refusal = unresizable.get(pod.uid)
    if refusal is not None and not refusal.final:
        return Step(None, node, refusal.why)
    why_not = refusal.why if refusal is not None else _impossible(pod, state, room, wanted)
    if why_not:
        return _replaced(pod, state, flush_seconds_max, why_not)
    if asked != room:
        step = action(ActionKind.RESIZE_POD, pod, REASON)
        begun = ((names.RESIZING, pod.annotations.get(names.RESIZING, BEGUN)),)
        return Step(replace(step, memory=room, annotations=begun), f"memory for {node}")
    if not given.is_as_good_as(room):
        return Step(None, f"{node} with {room.limit_bytes // MIB} MiB of memory", pod.memory.obstacle)
    step = action(ActionKind.RESIZE_ARENA, pod, REASON)
    agreed = ((names.TEMPLATE_HASH, wanted.template_hash),)
    last = replace(step, arena_bytes=wanted.arena_bytes, annotations=agreed)
    if state.arena_bytes == wanted.arena_bytes:
        return Step(last, node)
    return Step(quiet_step(pod, state, flush_seconds_max, REASON) or last, f"{node}, which takes another size")


def _impossible(pod: Pod, state: NodeState, room: Memory, wanted: Size) -> str:
    if pod.memory.infeasible and pod.memory.asked == room:
        return pod.memory.obstacle
    kept = pod.annotations.get(names.RESIZING) == GAVE_UP and state.arena_bytes != wanted.arena_bytes
    return "the cache node found no room for it; its log says why" if kept else ""


def _replaced(pod: Pod, state: NodeState, flush_seconds_max: float, why: str) -> Step:
    told = f"cache node {member(pod)} loses the {state.used_bytes // MIB} MiB of KV that it holds in memory"
    losing = f"{told}: its pod is replaced, since it could not be given another size where it is: {why}"
    return Step(
        replace_step(pod, state, flush_seconds_max),
        f"cache node {member(pod)}, which loses what it holds: {why}",
        "",
        losing,
    )


def left_over(new: Sequence[Pod], wanted: Size | None) -> PodAction | None:
    """Gives back what memory a node needs no more, now that its arena is as it should be."""
    if wanted is None:
        return None
    for pod in sorted(new, key=lambda pod: pod.name):
        if names.RESIZING in pod.annotations:
            step = action(ActionKind.RESIZE_POD, pod, "its arena has the size that it should have")
            return replace(step, memory=wanted.memory, annotations=((names.RESIZING, None),))
    return None
