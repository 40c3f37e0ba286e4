"""What the API server did not take of our children, told in terms of the resource that asked for it. Pure.

The schemas of our resources refuse what is wrong everywhere. What depends on the cluster (the range of node ports, the load balancers and
plugins that there are) only its API server knows: it says so when a child is applied, and names a field of the child."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kvcommons_operator import names

_CONTAINER: Final = r"(?:spec\.template\.)?spec\.(?:init)?[cC]ontainers\[\d+\]"
_POD: Final = r"(?:spec\.template\.)?spec"
_OVERRIDES: Final = (
    r"(nodeSelector|tolerations|affinity|topologySpreadConstraints|volumes|securityContext|schedulerName"
    r"|serviceAccountName|priorityClassName|runtimeClassName|imagePullSecrets)"
)


def _workload(image: str, resources: str, pods: str, more: Iterable[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Fields of a pod template, and the fields of ours that they come from; `pods` is where overrides of pods are."""
    return [
        *more,
        (rf"{_CONTAINER}\.image", image),
        (rf"{_CONTAINER}\.resources", resources),
        (rf"{_CONTAINER}\.(env|volumeMounts)", rf"{pods}.\1"),
        (rf"{_CONTAINER}\.securityContext", f"{pods}.containerSecurityContext"),
        (rf"{_POD}\.{_OVERRIDES}", rf"{pods}.\1"),
        (r"spec\.template\.metadata\.(labels|annotations)", rf"{pods}.metadata.\1"),
    ]


_ENGINE: Final = _workload(
    "spec.engine.image",
    "spec.engine.resources",
    "spec.podTemplate",
    [
        (r"spec\.(?:strategy|rolloutStrategy)", "spec.rollout"),
        (r"spec\.replicas", "spec.replicas"),
        (rf"{_CONTAINER}\.(?:command|args)", "spec.engine.args"),
        (rf"{_CONTAINER}\.\w+Probe", "spec.probes"),
    ],
)
_OF_DEPLOYMENT: Final[Mapping[tuple[str, str], list[tuple[str, str]]]] = {
    ("Service", names.ROUTER): [
        (r"spec\.ports\[0\]\.(nodePort|port)", r"spec.service.\1"),
        (r"spec\.(type|loadBalancerClass)", r"spec.service.\1"),
        (r"metadata\.annotations", "spec.service.annotations"),
    ],
    ("Deployment", names.ENGINE): _ENGINE,
    ("LeaderWorkerSet", names.ENGINE): [(r"spec\.leaderWorkerTemplate\.size", "spec.engine.nodesPerReplica"), *_ENGINE],
    ("Deployment", names.ROUTER): _workload("spec.routing.image", "spec.routing.resources", "spec.routing.podTemplate"),
    ("PodDisruptionBudget", names.ENGINE): [
        (r"spec\.(minAvailable|maxUnavailable)", r"spec.disruption.\1"),
        ("", "spec.disruption"),
    ],
    ("HorizontalPodAutoscaler", names.ENGINE): [
        (r"spec\.(minReplicas|maxReplicas|metrics)", r"spec.autoscaling.\1"),
        ("", "spec.autoscaling"),
    ],
    ("ScaledObject", names.ENGINE): [("", "spec.autoscaling")],
    ("HTTPRoute", names.ROUTER): [
        (r"spec\.(parentRefs|hostnames)", r"spec.gateway.httpRoute.\1"),
        (r"spec\.rules\[0\]\.matches", "spec.gateway.httpRoute.pathPrefix"),
        (r"metadata\.(labels|annotations)", r"spec.gateway.httpRoute.\1"),
        ("", "spec.gateway.httpRoute"),
    ],
    ("NetworkPolicy", names.ENGINE): [("", "spec.networkPolicy.allowFrom")],
}
_OF_POOL: Final[Mapping[tuple[str, str], list[tuple[str, str]]]] = {
    ("DaemonSet", names.CACHE_NODE): _workload(
        "spec.images.node",
        "spec.resources",
        "spec.podTemplate",
        [
            (rf"{_POD}\.volumes", "spec.tiers.secondary"),
            (rf"{_CONTAINER}\.volumeMounts", "spec.tiers.secondary"),
            (rf"{_POD}\.(nodeSelector|tolerations|affinity)", r"spec.\1"),
        ],
    ),
    ("StatefulSet", names.INDEX): _workload(
        "spec.index.managed.image",
        "spec.index.managed.resources",
        "spec.index.managed",
        [(rf"{_POD}\.(nodeSelector|tolerations)", r"spec.index.managed.\1")],
    ),
    ("Certificate", names.CACHE_NODE): [("", "spec.security.tls.certManager")],
    ("NetworkPolicy", names.CACHE_NODE): [("", "spec.security.networkPolicy.allowFrom")],
}
_MONITORS: Final = frozenset({"ServiceMonitor", "PodMonitor", "PrometheusRule"})
FIELDS_MAX: Final = 3


def fields_of(owner_kind: str, child_kind: str, component: str, details: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of our resource that the causes of a refusal point to; empty where they can't be known.

    :param details: of the API server's Status: each cause names a field of the child."""
    causes = [str(cause.get("field") or "") for cause in details.get("causes") or () if isinstance(cause, Mapping)]
    if child_kind in _MONITORS:
        return ("spec.monitoring",)
    table = (_OF_POOL if owner_kind == names.POOL_KIND else _OF_DEPLOYMENT).get((child_kind, component), [])
    found = (_ours(table, cause) for cause in causes or [""])
    return tuple(dict.fromkeys(field for field in found if field))[:FIELDS_MAX]


def _ours(table: Iterable[tuple[str, str]], field: str) -> str:
    for pattern, ours in table:
        match = re.match(pattern, field)
        if match is not None:
            return match.expand(ours)
    return ""
