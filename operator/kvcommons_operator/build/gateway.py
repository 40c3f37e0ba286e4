"""Ways in through the Gateway API, where it is installed and they are asked for."""

from __future__ import annotations

from typing import Any

from kvcommons_operator.build.deployment import Deployment
from kvcommons_operator.observed import Manifest


def http_route(deployment: Deployment) -> list[Manifest]:
    """A route to the routers, beside their Service: a route to another namespace would need a grant there."""
    own = deployment.spec.gateway.http_route if deployment.spec.gateway is not None else None
    if own is None:
        return []
    parents = []
    for ref in own.parent_refs:
        # Where the router is in another namespace, so is the route: "its own" namespace is still the deployment's.
        namespace = ref.namespace or deployment.owner.namespace
        parent: dict[str, Any] = {"name": ref.name, "namespace": namespace}
        if ref.section_name is not None:
            parent["sectionName"] = ref.section_name
        if ref.port is not None:
            parent["port"] = ref.port
        parents.append(parent)
    match = {"path": {"type": "PathPrefix", "value": own.path_prefix}}
    backend = {"name": deployment.service_name, "port": deployment.spec.service.port}
    spec: dict[str, Any] = {"parentRefs": parents, "rules": [{"matches": [match], "backendRefs": [backend]}]}
    if own.hostnames:
        spec["hostnames"] = list(own.hostnames)
    manifest = deployment.router_child("router").manifest("gateway.networking.k8s.io/v1", "HTTPRoute", {"spec": spec})
    manifest["metadata"]["labels"] = {**own.labels, **manifest["metadata"]["labels"]}
    if own.annotations:
        manifest["metadata"]["annotations"] = dict(own.annotations)
    return [manifest]
