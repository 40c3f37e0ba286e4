"""Services: of the routers, where clients come; of the engines, for who scrapes them."""

from __future__ import annotations

from typing import Any

from kvcommons_operator import names
from kvcommons_operator.api.routing import ServiceType
from kvcommons_operator.build.deployment import Deployment
from kvcommons_operator.build.meta import Child
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.observed import Manifest


def build(deployment: Deployment) -> list[Manifest]:
    """All Services of a deployment."""
    found = [router(deployment), engines(deployment)]
    if deployment.is_foreign:
        found.append(alias(deployment))
    return found


def router(deployment: Deployment) -> Manifest:
    """The Service in front of the routers: with the deployment's name, where both are in one namespace."""
    own = deployment.spec.service
    port: dict[str, Any] = {"name": "http", "port": own.port, "targetPort": "http", "protocol": "TCP"}
    if own.node_port is not None:
        port["nodePort"] = own.node_port
    spec: dict[str, Any] = {
        "type": own.type.value,
        "selector": deployment.owner.selector(names.ROUTER),
        "ports": [port],
    }
    if own.type == ServiceType.LOAD_BALANCER and own.load_balancer_class is not None:
        spec["loadBalancerClass"] = own.load_balancer_class
    manifest = deployment.router_child("").manifest("v1", "Service", {"spec": spec})
    if own.annotations:
        manifest["metadata"]["annotations"] = dict(own.annotations)
    return manifest


def alias(deployment: Deployment) -> Manifest:
    """The deployment's name in its own namespace, for routers that are in another one."""
    host = f"{deployment.service_name}.{deployment.router_namespace}.svc.{deployment.install.cluster_domain}"
    child = Child(
        owner=deployment.owner, component=names.ROUTER, name=deployment.owner.name, labels=deployment.pool_labels()
    )
    port = {"name": "http", "port": deployment.spec.service.port, "protocol": "TCP"}
    return child.manifest("v1", "Service", {"spec": {"type": "ExternalName", "externalName": host, "ports": [port]}})


def engines(deployment: Deployment) -> Manifest:
    """Headless: each engine by its own address, for metrics."""
    spec = {
        "clusterIP": "None",
        "selector": deployment.owner.selector(names.ENGINE),
        "ports": [{"name": "http", "port": names.ENGINE_PORT, "targetPort": "http", "protocol": "TCP"}],
    }
    return deployment.engine_child("engines").manifest("v1", "Service", {"spec": spec})


def nodes(pool: Pool) -> Manifest:
    """Headless: each cache node by its own address, for metrics and for tools."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": pool.owner.selector(names.CACHE_NODE),
        "ports": [{"name": "control", "port": names.CONTROL_PORT, "targetPort": "control", "protocol": "TCP"}],
    }
    return pool.child(names.CACHE_NODE, "nodes").manifest("v1", "Service", {"spec": spec})
