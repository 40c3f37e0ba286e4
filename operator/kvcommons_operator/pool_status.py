"""What is said about a pool. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kvcommons_operator import conditions, names, tier_status
from kvcommons_operator.api.pool import UpdateType
from kvcommons_operator.build import redis
from kvcommons_operator.conditions import Condition, no, unknown, yes
from kvcommons_operator.node_steps import member
from kvcommons_operator.observed import Manifest, NodeState, PoolObserved
from kvcommons_operator.pool_view import View

REFERENCES_MAX: Final = 16
UNHEALTHY_MAX: Final = 16
SHARE_STEP_PERCENT: Final = 5
"""A share that has moved by less is told as before."""
MIB: Final = 1 << 20
PER_NODE_NOTE: Final = (
    "placement perNode mounts a directory of the node (hostPath): the namespaces of the pool and of its engines must allow Pod "
    "Security level privileged"
)


def judge(view: View) -> list[Condition]:
    """All conditions of a pool."""
    accepted = yes(conditions.ACCEPTED, "Accepted", _accepted_message(view))
    told = [trouble for _, trouble in view.troubles]
    references = conditions.resolved_refs([*told, *view.refused("DaemonSet"), *view.refused("StatefulSet")])
    available = _available(view)
    parts = [accepted, references, available, *_whole(view, available)]
    return [
        accepted,
        references,
        _progressing(view),
        available,
        conditions.ready(parts),
        _index_consistent(view),
        *tier_status.judge(view),
    ]


def _accepted_message(view: View) -> str:
    notes = [*view.notes, *([PER_NODE_NOTE] if view.pool.per_node else [])]
    return ". ".join(notes) if notes else "everything that is asked for is built"


def _available(view: View) -> Condition:
    """Engines can use the pool: at least one cache node serves, or would as soon as an engine brings it."""
    kind = conditions.AVAILABLE
    up, index = len(view.up), _index_up(view)
    if view.pool.per_node:
        if view.is_new:
            return no(kind, "Creating", "the cache nodes are being made")
        if view.desired == 0:
            return no(
                kind,
                "NoNodes",
                "no Kubernetes node fits nodeSelector, tolerations and affinity: see their labels and taints",
            )
        if up == 0:
            return no(kind, "NoNodeReady", _none_ready(view))
        note = "" if index else "; the index is away, so that nodes serve their own machines alone"
        return yes(kind, "NodesReady", f"{up} of {view.desired} cache nodes serve{note}")
    if up == 0 and not index:
        return no(kind, "IndexNotReady", "the index is not ready yet, and no engine pod runs a cache node")
    if up == 0 and view.node_pods:
        return no(kind, "NoNodeReady", _none_beside_engines(view))
    told = (
        f"{up} of {view.desired} cache nodes serve in engine pods" if up else "cache nodes come with the engines' pods"
    )
    return yes(kind, "SidecarsServe" if up else "WaitingForEngines", told)


def _none_ready(view: View) -> str:
    problems = [problem.message for _, problem in view.node_troubles]
    problems += [problem.message for problem in view.refused("DaemonSet")]
    if problems:
        return conditions.listed(conditions.unique(problems))
    if not view.node_pods:
        return f"no pod could be made on {view.desired} nodes: {PER_NODE_NOTE}; `kubectl describe daemonset` says what is in the way"
    return f"none of {view.desired} cache nodes is ready yet"


def _none_beside_engines(view: View) -> str:
    """What keeps an engine's pod from starting is told by its deployment."""
    owners = sorted({pod.labels.get(names.DEPLOYMENT_LABEL, "") for pod in view.node_pods} - {""})
    return (
        f"none of {view.desired} cache nodes serves yet; they run in engines' pods: see "
        f"{conditions.listed([f'InferenceDeployment {name}' for name in owners])}"
    )


def _index_up(view: View) -> bool:
    """Redis serves, as far as its pods (managed) or the nodes (external) tell."""
    if view.pool.managed_index() is not None:
        return any(pod.ready for pod in view.index_pods)
    return view.observed.index_reachable is not False


def _index_message(view: View) -> str:
    effect = "engines still serve, but find no hits of others"
    if view.pool.managed_index() is None:
        return f"no cache node reaches the external index {_address(view, None)}: {effect}; see its address and credentials".replace(
            "  ", " "
        )
    problems = conditions.unique(view.index_troubles)
    return f"the index is not ready: {conditions.listed(problems) if problems else effect}"


def _whole(view: View, available: Condition) -> list[Condition]:
    """What Ready asks beside Available: the index, and every node but the one that is being rolled."""
    found = []
    if not _index_up(view):
        found.append(no(conditions.AVAILABLE, "IndexNotReady", _index_message(view)))
    lost = view.roll.lost if view.roll is not None else ()
    missing = view.desired - len(view.up) - len(lost)
    rolling = (
        1 if view.roll is not None and (view.roll.outdated or view.roll.waiting_for) and not view.roll.stuck else 0
    )
    if view.pool.per_node and missing > rolling:
        problems = [problem.message for _, problem in view.node_troubles]
        problems += [problem.message for problem in view.refused("DaemonSet")]
        message = f"{missing} of {view.desired} cache nodes do not serve"
        found.append(
            no(
                conditions.AVAILABLE,
                "NodesNotReady",
                ": ".join([message, *([conditions.listed(conditions.unique(problems))] if problems else [])]),
            )
        )
    gone = f"; not waited for, since their machines are gone: {', '.join(lost[:3])}" if lost else ""
    served = f"{len(view.up)} of {view.desired} cache nodes serve" if view.pool.per_node else available.message
    found.append(yes(conditions.AVAILABLE, "Ready", f"{served}{gone}"))
    return found


def _progressing(view: View) -> Condition:
    kind, roll = conditions.PROGRESSING, view.roll
    refused = [problem.message for problem in view.refused("DaemonSet")]
    if refused:
        return no(kind, "RolloutStuck", conditions.listed(refused))
    if view.pool.per_node and (roll is None or view.is_new):
        return yes(kind, "Creating", "the cache nodes are being made")
    if view.pool.managed_index() is not None and not _index_up(view):
        problems = conditions.unique(view.index_troubles)
        if problems:
            return no(kind, "RolloutStuck", f"the index is not ready: {conditions.listed(problems)}")
        if roll is None:
            return yes(kind, "WaitingForIndex", "waits for the index to be ready")
    if roll is None:
        return no(kind, conditions.COMPLETE, "cache nodes change with their engines' pods")
    if roll.stuck:
        return no(kind, "RolloutStuck", f"no further node is touched before {roll.waiting_for} is back: {roll.stuck}")
    if roll.outdated and (roll.waiting_for or roll.actions):
        return yes(
            kind,
            "RollingNodes",
            f"{roll.updated} of {roll.updated + roll.outdated} nodes are as wished; now {roll.waiting_for}",
        )
    if roll.outdated and view.pool.spec.update_strategy.type == UpdateType.ROLLING_ONE:
        return yes(
            kind, "RollingNodes", f"{roll.outdated} nodes are to follow the pool's change, which is being applied"
        )
    if roll.outdated:
        return no(
            kind,
            "WaitingForDeletion",
            f"{roll.outdated} pods of cache nodes take the change when you delete them (OnDelete)",
        )
    if roll.waiting_for:
        return yes(kind, "WaitingForNodes", f"waits for {roll.waiting_for}")
    return no(kind, conditions.COMPLETE, "every cache node is as the pool says")


def _index_consistent(view: View) -> Condition:
    kind = conditions.INDEX_CONSISTENT
    states = [
        state for pod in view.node_pods if (state := view.observed.nodes.get(pod.uid)) is not None and state.reachable
    ]
    if not states:
        return unknown(kind, "NoAnswer", "no cache node has said yet what it holds")
    apart = [state.member for state in states if not state.joined and not state.fenced]
    if apart:
        message = f"{len(apart)} of {len(states)} cache nodes do not reach the index: {', '.join(apart[:3])}"
        see = (
            "its pods"
            if view.pool.managed_index() is not None
            else "the address and the credentials in spec.index.external"
        )
        return no(kind, "NodesNotInIndex", f"{message}; see {see}")
    missing, stale = sum(s.index_missing for s in states), sum(s.index_stale for s in states)
    if stale:
        return no(kind, "StaleEntries", f"the index names {stale} chunks that are not there; each costs one lookup")
    if missing:
        return no(
            kind, "MissingEntries", f"{missing} chunks are not in the index yet; they are told again at a bounded rate"
        )
    return yes(kind, "Consistent", f"{len(states)} cache nodes are in the index with what they hold")


# The status -----------------------------------------------------------------------------------------------------------


def status(view: View, found: list[Condition], resource: Manifest) -> dict[str, Any]:
    """The whole status of a pool that is accepted."""
    pods, up = view.node_pods, view.up
    unhealthy = view.node_troubles
    index = view.pool.managed_index()
    updated = view.roll.updated if view.roll is not None else len(pods)
    told: dict[str, Any] = {
        **bare(found, resource, view.observed),
        "nodes": {"desired": view.desired, "ready": len(up), "updated": updated, "unhealthy": len(unhealthy)},
        "unhealthyNodes": [
            {
                "name": member(pod) if view.pool.per_node else pod.name,
                "reason": problem.reason,
                "message": problem.message[:1024],
            }
            for pod, problem in unhealthy[:UNHEALTHY_MAX]
        ],
        "index": {
            "replicas": index.replicas if index is not None else 0,
            "readyReplicas": sum(pod.ready for pod in view.index_pods),
            "address": _address(view, index),
            "members": sum(state.joined for state in view.observed.nodes.values()),
        },
        "memory": f"{view.pool.arena_bytes * len(up) // MIB}Mi",
        "tiers": tier_status.told(view),
    }
    return told | _used(view, resource.get("status") or {})


def _address(view: View, index: redis.ManagedIndex | None) -> str:
    if index is not None:
        return index.url[:1024]
    external = view.pool.spec.index.external
    return (external.url or "") if external is not None else ""


def _used(view: View, before: Mapping[str, Any]) -> dict[str, Any]:
    """Shares as they were told, unless they have moved by more than a little: a status is not written for each chunk."""
    states: list[NodeState] = [s for s in view.observed.nodes.values() if s.reachable and s.arena_bytes]
    total = sum(state.arena_bytes for state in states)
    used = sum(state.used_bytes for state in states)
    asked = sum(state.asked for state in states)
    found: dict[str, Any] = {}
    if total and used:
        found["memoryUsedPercent"] = _share(used, total, before.get("memoryUsedPercent"))
    if asked:
        found["hitPercent"] = _share(sum(state.hits for state in states), asked, before.get("hitPercent"))
    return found


def _share(part: int, whole: int, told: object) -> int:
    share = min(100, part * 100 // whole)
    return told if isinstance(told, int) and abs(share - told) < SHARE_STEP_PERCENT else share


def bare(found: list[Condition], resource: Manifest, observed: PoolObserved) -> dict[str, Any]:
    """What can be said of any pool: its conditions and who uses it."""
    return {
        "observedGeneration": resource["metadata"].get("generation", 0),
        "conditions": conditions.rendered(found, resource, observed.now),
        "references": len(observed.users),
        "referencedBy": [{"namespace": user.namespace, "name": user.name} for user in observed.users[:REFERENCES_MAX]],
    }


def refusal(reason: str, message: str) -> list[Condition]:
    """Conditions of a pool that can't be accepted."""
    said = "nothing is changed before the pool is accepted"
    return [
        no(conditions.ACCEPTED, reason, message),
        unknown(conditions.RESOLVED_REFS, "NotAccepted", said),
        no(conditions.PROGRESSING, "NotAccepted", said),
        unknown(conditions.AVAILABLE, "NotAccepted", said),
        no(conditions.READY, reason, message),
        unknown(conditions.INDEX_CONSISTENT, "NotAccepted", said),
    ]


def deletion(reason: str, message: str) -> list[Condition]:
    """Conditions of a pool that is to go."""
    return [
        no(conditions.PROGRESSING, reason, message)
        if reason == "PoolInUse"
        else yes(conditions.PROGRESSING, reason, message),
        no(conditions.READY, reason, message),
    ]
