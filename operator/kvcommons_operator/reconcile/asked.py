"""Which pods are asked how they are, and what is made of their answers."""

from __future__ import annotations

from kvcommons_operator import names
from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.reconcile.fence import holds_node
from kvcommons_operator.reconcile.poller import with_shares
from kvcommons_operator.reconcile.resources import Id
from kvcommons_operator.rollout import followed


def is_pool(key: Id) -> bool:
    """A few pools are what hundreds of deployments wait for."""
    return key.kind == names.POOL_KIND


def is_node(pod: Pod) -> bool:
    """A cache node answers there."""
    return bool(pod.ip) and pod.phase == "Running" and holds_node(pod)


def is_router(pod: Pod) -> bool:
    """A router answers there."""
    return bool(pod.ip) and pod.phase == "Running" and pod.labels.get(names.COMPONENT) == names.ROUTER


def node_followed(before: NodeState | None, state: NodeState, seconds: float) -> NodeState:
    """What a node says now, with for how long it has been so, and with coarse shares."""
    return with_shares(before, followed(before, state, seconds))
