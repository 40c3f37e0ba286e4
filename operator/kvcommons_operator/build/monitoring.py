"""What Prometheus' operator reads, where it is installed and it is asked for."""

from __future__ import annotations

from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.shared import Monitoring
from kvcommons_operator.build.alerts import DEPLOYMENT_RULES, ENGINE_RULES, POOL_RULES, Rules
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
        found.append(_rule(pool.child(names.CACHE_NODE, "pool"), own, (POOL_RULES, labels)))
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
        of_router = f'namespace="{deployment.router_namespace}",service="{deployment.service_name}"'
        engines_service = deployment.engine_child("engines").name
        of_engines = f'namespace="{deployment.owner.namespace}",service="{engines_service}"'
        child = deployment.engine_child("deployment")
        found.append(_rule(child, own, (DEPLOYMENT_RULES, of_router), (ENGINE_RULES, of_engines)))
    return found


def _monitor(kind: str, child: Child, own: Monitoring, selector: dict[str, str], endpoint: dict[str, Any]) -> Manifest:
    """The Services of a component carry the labels that its pods are selected by."""
    endpoints = "endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"
    manifest = child.manifest(API, kind, {"spec": {"selector": {"matchLabels": selector}, endpoints: [endpoint]}})
    manifest["metadata"]["labels"] = {**own.labels, **manifest["metadata"]["labels"]}
    return manifest


def _rule(child: Child, own: Monitoring, *groups: tuple[Rules, str]) -> Manifest:
    """Of rules and the labels of what each is about."""
    made = [rule.rule(labels) for rules, labels in groups for rule in rules]
    manifest = child.manifest(API, "PrometheusRule", {"spec": {"groups": [{"name": child.name, "rules": made}]}})
    manifest["metadata"]["labels"] = {**own.labels, **manifest["metadata"]["labels"]}
    return manifest
