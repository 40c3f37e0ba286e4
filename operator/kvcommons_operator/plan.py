"""The plans: pure, and the same for the same wish and the same world.

Both take the resource as the API server has it (metadata, spec, status): what cannot be read becomes a condition, never an
exception."""

from __future__ import annotations

from kvcommons_operator import plan_deployments, plan_pools
from kvcommons_operator.observed import DeploymentObserved, Manifest, PoolObserved
from kvcommons_operator.outcome import ActionKind, Event, Finalizer, Plan, PodAction

__all__ = ["ActionKind", "Event", "Finalizer", "Plan", "PodAction", "plan_deployment", "plan_pool"]


def plan_pool(pool: Manifest, observed: PoolObserved) -> Plan:
    """What a KVCachePool needs done now."""
    return plan_pools.plan(pool, observed)


def plan_deployment(ifd: Manifest, observed: DeploymentObserved) -> Plan:
    """What an InferenceDeployment needs done now."""
    return plan_deployments.plan(ifd, observed)
