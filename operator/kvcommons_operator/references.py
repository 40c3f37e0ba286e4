"""Whether a deployment may use the pool that it names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvcommons_operator import conditions, guests
from kvcommons_operator.api import InvalidResourceError, KVCachePool, parse_pool, refused
from kvcommons_operator.api.common import LabelSelector
from kvcommons_operator.api.deployment import InferenceDeploymentSpec, PoolRef
from kvcommons_operator.build.meta import Owner
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.conditions import Condition, no
from kvcommons_operator.observed import DeploymentObserved


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The pool, or why there is none; neither where none is named."""

    pool: Pool | None = None
    problem: Condition | None = None


def resolve(
    owner: Owner, ref: PoolRef | None, observed: DeploymentObserved, spec: InferenceDeploymentSpec | None = None
) -> Resolved:
    """The pool that a deployment names, if it may use it.

    :param spec: what else it says, since its router would stand beside the pool."""
    if ref is None:
        return Resolved()
    named = f"KVCachePool {ref.namespace or owner.namespace}/{ref.name}"
    manifest = observed.pool
    if manifest is None:
        return _problem("PoolNotFound", f"{named} does not exist; create it, or name another one in poolRef")
    if "deletionTimestamp" in manifest["metadata"]:
        return _problem("PoolGoing", f"{named} is being deleted; name another one in poolRef")
    try:
        parsed = parse_pool(manifest)
    except InvalidResourceError as error:
        return _problem("PoolNotAccepted", f"{named} can't be read: {error}")
    gaps = refused(parsed.spec)
    if gaps:
        return _problem("PoolNotAccepted", f"{named} is not accepted: {gaps[0].field}: {gaps[0].message}")
    return _permitted(owner, named, parsed, observed, spec)


def _permitted(
    owner: Owner,
    named: str,
    parsed: KVCachePool,
    observed: DeploymentObserved,
    spec: InferenceDeploymentSpec | None,
) -> Resolved:
    pool_owner = Owner.of(observed.pool or {})
    if observed.namespace_labels is None:
        return _problem(
            "NamespaceLabelsUnknown",
            f"{named} chooses by labels which namespaces may use it (tenancy.allowedNamespaces.from Selector), and the operator may not "
            f"read the labels of namespace {owner.namespace}: have the pool name it (from Names), or install the operator with "
            "rbac.scope cluster",
        )
    if not allows(parsed, owner.namespace, observed.namespace_labels):
        return _problem(
            "RefNotPermitted",
            f"{named} does not allow namespace {owner.namespace}; add it to the pool's tenancy.allowedNamespaces",
        )
    pool = Pool(owner=pool_owner, spec=parsed.spec, install=observed.install)
    if not pool.per_node and owner.namespace != pool_owner.namespace:
        return _problem(
            "SidecarInOtherNamespace",
            f"{named} has placement sidecar, whose cache nodes need the pool's Secrets, which never leave its namespace; "
            "create this InferenceDeployment there, or use a pool with placement perNode",
        )
    if owner.namespace != pool_owner.namespace and spec is not None:
        refusal = guests.refusal(spec, named, parsed.spec.tenancy.allowed_namespaces)
        if refusal is not None:
            return _problem(*refusal)
    return Resolved(pool=pool)


def allows(pool: KVCachePool, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether deployments of a namespace may use a pool. Its own namespace always may."""
    if namespace == pool.metadata.namespace:
        return True
    allowed = pool.spec.tenancy.allowed_namespaces
    match allowed.from_.value:
        case "All":
            return True
        case "Names":
            return namespace in allowed.names
        case "Selector":
            return allowed.selector is not None and matches(allowed.selector, labels)
        case _:
            return False


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether labels fulfil a selector, as Kubernetes decides it."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    for one in selector.match_expressions:
        there = one.key in labels
        fulfilled = {
            "In": there and labels.get(one.key) in one.values,
            "NotIn": not there or labels[one.key] not in one.values,
            "Exists": there,
            "DoesNotExist": not there,
        }[one.operator.value]
        if not fulfilled:
            return False
    return True


def _problem(reason: str, message: str) -> Resolved:
    return Resolved(problem=no(conditions.RESOLVED_REFS, reason, message))
