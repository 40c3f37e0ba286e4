"""What a deployment may not choose when its pool, and so its router, is in a namespace of others. Pure.

Whoever may make a deployment would else run any image there, as any account, with any Secret of that namespace, open its nodes'
ports, or have hosts routed that belong to others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kvcommons_operator.api.deployment import InferenceDeploymentSpec
from kvcommons_operator.api.pods import PodOverrides
from kvcommons_operator.api.routing import HttpRoute, ServiceSpec
from kvcommons_operator.api.tenancy import AllowedNamespaces

ELSE: Final = "leave it out, or create this InferenceDeployment beside the pool"


def refusal(spec: InferenceDeploymentSpec, named: str, allowed: AllowedNamespaces) -> tuple[str, str] | None:
    """(reason, message) of what a guest asks for and may not have; None where all is well.

    :param named: the pool, for the message. :param allowed: what its owner lets guests do."""
    there = f"{named} is in another namespace, and so is the router that uses it"
    if spec.routing.image is not None or spec.routing.pod_template != PodOverrides():
        what = "routing.image and routing.podTemplate are not for you to choose there"
        return "RouterOverrideNotPermitted", f"{there}: {what}; {ELSE}"
    if spec.service != ServiceSpec(port=spec.service.port):
        what = "its Service is of type ClusterIP, and service.annotations are not for you to choose there"
        return (
            "ServiceNotPermitted",
            f"{there}: {what}; leave out of service all but port, or create it beside the pool",
        )
    route = spec.gateway.http_route if spec.gateway is not None else None
    if route is not None:
        return _route(route, there, allowed.hostnames)
    return None


def _route(route: HttpRoute, there: str, hostnames: Iterable[str]) -> tuple[str, str] | None:
    known = tuple(hostnames)
    if route.annotations:
        return "RouteNotPermitted", f"{there}: gateway.httpRoute.annotations are not for you to choose there; {ELSE}"
    if not route.hostnames:
        what = "gateway.httpRoute needs hostnames that the pool's tenancy.allowedNamespaces.hostnames has"
        return "RouteNotPermitted", f"{there}: {what}; {ELSE}"
    foreign = [name for name in route.hostnames if not any(covers(pattern, name) for pattern in known)]
    if foreign:
        what = f"the pool's tenancy.allowedNamespaces.hostnames does not have {', '.join(foreign[:3])}"
        return "RouteNotPermitted", f"{there}: {what}; have it added there, or leave gateway.httpRoute out"
    return None


def covers(pattern: str, name: str) -> bool:
    """Whether a host name, or all that a wildcard means, is within a pattern: itself, or below the domain of `*.domain`."""
    if pattern == name:
        return True
    return pattern.startswith("*.") and name.removeprefix("*.").endswith(pattern[1:])
