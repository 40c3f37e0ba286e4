"""Who may connect (NetworkPolicy), and how many may be away (PodDisruptionBudget)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcommons_operator import names
from kvcommons_operator.api.deployment import count_or_share
from kvcommons_operator.api.shared import NetworkAccess
from kvcommons_operator.build.deployment import Deployment, Group
from kvcommons_operator.build.meta import Child, Owner
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.observed import Install, Manifest

NAMESPACE_NAME = "kubernetes.io/metadata.name"
Peer = dict[str, Any]


def pods_of(labels: Mapping[str, str], namespace: str = "") -> Peer:
    """Pods with these labels, of the policy's own namespace or another one."""
    peer: Peer = {"podSelector": {"matchLabels": dict(labels)}}
    if namespace:
        peer["namespaceSelector"] = {"matchLabels": {NAMESPACE_NAME: namespace}}
    return peer


def operator(install: Install) -> Peer:
    """The operator's pods."""
    return pods_of(install.operator_labels, install.namespace)


def others(access: NetworkAccess, install: Install) -> list[Peer]:
    """Namespaces that the user or the installation lets in: those of Prometheus and of gateways."""
    found: list[Peer] = [{"namespaceSelector": selector.to_dict()} for selector in access.allow_from]
    if install.metrics_namespaces:
        found.append({"namespaceSelector": {"matchLabels": dict(install.metrics_namespaces)}})
    return found


def rule(peers: Sequence[Peer], *ports: int) -> dict[str, Any]:
    """These may connect to these ports."""
    return {"from": list(peers), "ports": [{"protocol": "TCP", "port": number} for number in ports]}


def policy(child: Child, selector: Mapping[str, str], rules: Sequence[dict[str, Any]]) -> Manifest:
    """Nobody but these may connect; where the pods themselves connect is not restricted."""
    spec = {
        "podSelector": {"matchLabels": dict(selector)},
        "policyTypes": ["Ingress"],
        "ingress": [one for one in rules if one["from"]],
    }
    return child.manifest("networking.k8s.io/v1", "NetworkPolicy", {"spec": spec})


def engines(deployment: Deployment) -> list[Manifest]:
    """Routers reach engines, the operator the cache nodes in their pods, and nobody else."""
    access = deployment.spec.network_policy
    if not access.enabled:
        return []
    routers = pods_of(deployment.owner.selector(names.ROUTER), deployment.router_namespace)
    allowed = others(access, deployment.install)
    rules = [rule([routers, *allowed], names.ENGINE_PORT)]
    pool = deployment.pool
    if pool is not None and not pool.per_node:
        mates = pods_of({names.COMPONENT: names.ENGINE, **deployment.pool_labels()})
        rules.append(rule([operator(deployment.install), mates, *allowed], names.CONTROL_PORT))
        rules.append(rule([mates], pool.spec.transport.port))
    found = []
    if deployment.spec.engine.nodes_per_replica > 1:
        own = {key: value for key, value in deployment.owner.selector("").items() if key != names.COMPONENT}
        among = {"from": [pods_of(own)]}
        rules.append(among)
        workers = deployment.owner.selector(names.ENGINE_WORKER)
        found.append(policy(deployment.engine_child("engine-workers"), workers, [among]))
    return [policy(deployment.engine_child("engines"), deployment.owner.selector(names.ENGINE), rules), *found]


def nodes(pool: Pool) -> list[Manifest]:
    """The operator reaches cache nodes' control API, they each other's (one may be asked for all) and each other's transport."""
    access = pool.spec.security.network_policy
    if not access.enabled or not pool.per_node:
        return []
    selector = pool.owner.selector(names.CACHE_NODE)
    rules = [
        rule([operator(pool.install), pods_of(selector), *others(access, pool.install)], names.CONTROL_PORT),
        rule([pods_of(selector)], pool.spec.transport.port),
    ]
    return [policy(pool.child(names.CACHE_NODE, "nodes"), selector, rules)]


def index(pool: Pool) -> list[Manifest]:
    """Cache nodes and routers of the pool reach its Redis; Redis and its sentinels each other."""
    if pool.managed_index() is None or not pool.spec.security.network_policy.enabled:
        return []
    mine = {names.POOL_LABEL: names.label_value(pool.owner.name), names.POOL_NAMESPACE_LABEL: pool.owner.namespace}
    kinds = [names.CACHE_NODE if pool.per_node else names.ENGINE, names.ROUTER, names.INDEX]
    peer = {
        "podSelector": {
            "matchLabels": mine,
            "matchExpressions": [{"key": names.COMPONENT, "operator": "In", "values": kinds}],
        }
    }
    rules = [rule([peer], names.REDIS_PORT, names.SENTINEL_PORT)]
    return [policy(pool.child(names.INDEX, "index"), pool.owner.selector(names.INDEX), rules)]


def budget(child: Child, selector: Mapping[str, str], spec: Mapping[str, Any]) -> Manifest:
    """How many pods a drain of nodes may take away at one time."""
    body = {"spec": {"selector": {"matchLabels": dict(selector)}, **spec}}
    return child.manifest("policy/v1", "PodDisruptionBudget", body)


def engine_budget(deployment: Deployment, group: Group) -> Manifest:
    """Of one group of engines."""
    own = deployment.spec.disruption
    if own.min_available is not None:
        spec: dict[str, Any] = {"minAvailable": count_or_share(own.min_available)}
    else:
        spec = {"maxUnavailable": count_or_share(own.max_unavailable or "1")}
    return budget(deployment.engine_child(group.role), deployment.group_labels(group), spec)


def router_budget(deployment: Deployment) -> Manifest:
    """Of the routers: one may go."""
    selector = deployment.owner.selector(names.ROUTER)
    return budget(deployment.router_child("router"), selector, {"maxUnavailable": 1})


def index_budget(pool: Pool) -> list[Manifest]:
    """Of three: two must stay to name a new primary."""
    found = pool.managed_index()
    if found is None or not found.sentinel:
        return []
    owner: Owner = pool.owner
    return [budget(pool.child(names.INDEX, "index"), owner.selector(names.INDEX), {"maxUnavailable": 1})]
