"""What Prometheus' operator reads, where it is installed and it is asked for."""

from __future__ import annotations

from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.shared import Monitoring
from kvcommons_operator.build.deployment import Deployment
from kvcommons_operator.build.meta import Child
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.observed import Manifest

API: Final = "monitoring.coreos.com/v1"


def pool_monitors(pool: Pool) -> list[Manifest]:
    """Of cache nodes; those of a sidecar pool are read by their deployments' PodMonitors."""
    own = pool.spec.monitoring
    found = []
    if own.service_monitor and pool.per_node:
        child = pool.child(names.CACHE_NODE, "nodes")
        endpoint = {"port": "control", "path": "/metrics", "interval": own.interval}
        found.append(_monitor("ServiceMonitor", child, own, pool.owner.selector(names.CACHE_NODE), endpoint))
    if own.prometheus_rule:
        labels = f'namespace="{pool.owner.namespace}"'
        found.append(_rule(pool.child(names.CACHE_NODE, "pool"), own, POOL_ALERTS, labels))
    return found


def deployment_monitors(deployment: Deployment) -> list[Manifest]:
    """Of engines and routers; of the cache nodes in the engines' pods as well."""
    own = deployment.spec.monitoring
    found = []
    if own.service_monitor:
        endpoint = {"port": "http", "path": "/metrics", "interval": own.interval}
        engines = deployment.owner.selector(names.ENGINE)
        routers = deployment.owner.selector(names.ROUTER)
        found.append(_monitor("ServiceMonitor", deployment.engine_child("engines"), own, engines, endpoint))
        found.append(_monitor("ServiceMonitor", deployment.router_child("router"), own, routers, endpoint))
    pool = deployment.pool
    if pool is not None and not pool.per_node and (own.service_monitor or pool.spec.monitoring.service_monitor):
        endpoint = {"port": "control", "path": "/metrics", "interval": own.interval}
        engines = deployment.owner.selector(names.ENGINE)
        found.append(_monitor("PodMonitor", deployment.engine_child("nodes"), own, engines, endpoint))
    if own.prometheus_rule:
        labels = f'namespace="{deployment.router_namespace}",service="{deployment.service_name}"'
        found.append(_rule(deployment.engine_child("deployment"), own, DEPLOYMENT_ALERTS, labels))
    return found


def _monitor(kind: str, child: Child, own: Monitoring, selector: dict[str, str], endpoint: dict[str, Any]) -> Manifest:
    """The Services of a component carry the labels that its pods are selected by."""
    endpoints = "endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"
    manifest = child.manifest(API, kind, {"spec": {"selector": {"matchLabels": selector}, endpoints: [endpoint]}})
    manifest["metadata"]["labels"] = {**own.labels, **manifest["metadata"]["labels"]}
    return manifest


Alert = tuple[str, str, str, str, str]
"""(name, expression with %s for labels, for how long, severity, what it means and what to do)."""

POOL_ALERTS: Final[tuple[Alert, ...]] = (
    (
        "KvcommonsCacheNodeDown",
        'up{%s,container="cache-node"} == 0',
        "5m",
        "warning",
        "A cache node can't be read: engines on its node compute everything themselves. See `kubectl describe kvcp`.",
    ),
)
DEPLOYMENT_ALERTS: Final[tuple[Alert, ...]] = (
    (
        "KvcommonsRouterDown",
        "absent(up{%s} == 1)",
        "2m",
        "critical",
        "No router answers: clients are not served. See `kubectl describe ifd`.",
    ),
)


def _rule(child: Child, own: Monitoring, alerts: tuple[Alert, ...], labels: str) -> Manifest:
    rules = [
        {
            "alert": name,
            "expr": expression % labels,
            "for": after,
            "labels": {"severity": severity},
            "annotations": {"summary": text},
        }
        for name, expression, after, severity, text in alerts
    ]
    manifest = child.manifest(API, "PrometheusRule", {"spec": {"groups": [{"name": child.name, "rules": rules}]}})
    manifest["metadata"]["labels"] = {**own.labels, **manifest["metadata"]["labels"]}
    return manifest
