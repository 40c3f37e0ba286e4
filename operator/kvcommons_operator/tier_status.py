"""What is said about the tiers behind a pool's memory. Pure."""

from __future__ import annotations

from typing import Any, Final

from kvcommons_operator import conditions
from kvcommons_operator.api.tiers import SecondaryTier, TierType
from kvcommons_operator.conditions import Condition, no, unknown, yes
from kvcommons_operator.observed import NodeState, TierState
from kvcommons_operator.pool_view import View

MIB: Final = 1 << 20
SERVING: Final = "serving"


def _answers(view: View) -> list[NodeState]:
    """Of the cache nodes that could be asked."""
    found = [view.observed.nodes.get(pod.uid) for pod in view.node_pods]
    return sorted((state for state in found if state is not None and state.reachable), key=lambda state: state.member)


def _wanted(view: View) -> list[str]:
    """Names of the tiers that the pool asks for, nearest first, as cache nodes call them."""
    return list(dict.fromkeys(map(_name, view.pool.spec.tiers.secondary)))


def _name(tier: SecondaryTier) -> str:
    if tier.type == TierType.DISK:
        return tier.type.value
    return "redis" if tier.redis is not None else "s3"


def judge(view: View) -> list[Condition]:
    """Whether all tiers serve on all nodes; nothing of a pool with memory alone. A tier that fails costs hits and no service, so that
    Ready does not ask for it."""
    wanted, kind = _wanted(view), conditions.TIERS_HEALTHY
    if not wanted:
        return []
    states = _answers(view)
    if not states:
        return [unknown(kind, "NoAnswer", "no cache node has said yet how its tiers are")]
    ill = [_ill(state, tier) for state in states for tier in state.tiers if tier.health != SERVING]
    if ill:
        effect = "what is not read from there is computed again"
        return [no(kind, "TierDegraded", f"{conditions.listed(ill)}; {effect}")]
    without = [state.member for state in states if not set(wanted) <= {tier.name for tier in state.tiers}]
    if without:
        shown = conditions.listed(without)
        return [no(kind, "TierMissing", f"cache nodes without {' and '.join(wanted)} yet: {shown}; a roll brings it")]
    return [yes(kind, "Serving", f"{' and '.join(wanted)} on {len(states)} cache nodes")]


def _ill(state: NodeState, tier: TierState) -> str:
    why = f": {tier.detail}" if tier.detail else ""
    return f"the {tier.name} of cache node {state.member} is {tier.health}{why}"


def _quantity(size_bytes: int) -> str:
    """In the largest unit that tells it to the unit."""
    mib = size_bytes // MIB
    units = (("Ti", 1 << 20), ("Gi", 1 << 10))
    return next((f"{mib // factor}{unit}" for unit, factor in units if mib and mib % factor == 0), f"{mib}Mi")


def told(view: View) -> list[dict[str, Any]]:
    """For the status: each tier that the pool asks for, over all cache nodes that answer."""
    states, found = _answers(view), []
    for name in _wanted(view):
        tiers = [tier for state in states for tier in state.tiers if tier.name == name]
        capacity = sum(tier.capacity_bytes for tier in tiers)
        entry: dict[str, Any] = {
            "type": name,
            "capacity": _quantity(capacity),
            "serving": sum(tier.health == SERVING for tier in tiers),
            "degraded": sum(tier.health != SERVING for tier in tiers),
        }
        shares = [tier.used_percent for tier in tiers if tier.used_percent is not None]
        if shares:
            entry["usedPercent"] = sum(shares) // len(shares)
        found.append(entry)
    return found
