"""In which order a plan's objects are applied: what others need first, all else at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from kvcommons_operator.kube.kinds import (
    CONFIG_MAP,
    DAEMON_SET,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    LEADER_WORKER_SET,
    NETWORK_POLICY,
    ROLE,
    ROLE_BINDING,
    ROLE_OWN,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    STATEFUL_SET,
)
from kvcommons_operator.observed import Manifest

FOUNDATIONS: Final = (SECRET, CONFIG_MAP, SERVICE_ACCOUNT, SERVICE, ROLE, NETWORK_POLICY, DISRUPTION_BUDGET)
WORKLOADS: Final = (DAEMON_SET, DEPLOYMENT, STATEFUL_SET, LEADER_WORKER_SET)
WAVES: Final[Mapping[str, int]] = {
    **dict.fromkeys((kind.name for kind in FOUNDATIONS), 0),
    **dict.fromkeys((ROLE_BINDING.name, ROLE_OWN.name), 1),
    **dict.fromkeys((kind.name for kind in WORKLOADS), 2),
}
"""Pods begin with what they refer to; a binding names a role, and what scales or selects a workload comes after it."""
LAST_WAVE: Final = 3


def waves(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """What may be applied at once, in the order in which the one needs the other; within a wave as the plan has it."""
    found: dict[int, list[Manifest]] = {}
    for manifest in manifests:
        found.setdefault(WAVES.get(manifest["kind"], LAST_WAVE), []).append(manifest)
    return [found[number] for number in sorted(found)]
