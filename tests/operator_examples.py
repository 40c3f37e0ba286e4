"""Resources and worlds that the operator's tests begin from, and a stand-in for the API server's part: what is applied, exists."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from kvcommons_operator import names
from kvcommons_operator.observed import (
    Api,
    Container,
    DeploymentObserved,
    Install,
    Manifest,
    NodeState,
    Pod,
    PoolObserved,
    Ref,
)

NOW = "2026-11-23T06:00:00Z"
LATER = "2026-11-23T06:05:00Z"
INSTALL = Install(
    version="1.0.0",
    namespace="kvcommons-system",
    root_secret=b"r" * 32,
    node_image="kvcommons-node:1.0.0",
    router_image="kvcommons-router:1.0.0",
    redis_image="valkey:8",
)
OPTIONAL = (
    Api("monitoring.coreos.com/v1", "ServiceMonitor"),
    Api("monitoring.coreos.com/v1", "PodMonitor"),
    Api("monitoring.coreos.com/v1", "PrometheusRule"),
    Api("keda.sh/v1alpha1", "ScaledObject"),
    Api("gateway.networking.k8s.io/v1", "HTTPRoute"),
    Api("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"),
    Api("cert-manager.io/v1", "Certificate"),
)


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on it, table by table."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def resource(kind: str, name: str, namespace: str, spec: Mapping[str, Any]) -> Manifest:
    """A live resource."""
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "generation": 1}
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def pool(name: str = "commons", namespace: str = "llm", **spec: Any) -> Manifest:
    """A pool with a cache node on each Kubernetes node."""
    base = {"placement": "perNode", "tiers": {"memory": {"capacity": "8Gi"}}}
    return resource(names.POOL_KIND, name, namespace, merged(base, spec))


def deployment(name: str = "chat", namespace: str = "llm", **spec: Any) -> Manifest:
    """Two engines of one model that use the pool."""
    base = {
        "model": {"name": "smol", "source": {"pvc": {"claimName": "models", "path": "smol"}}},
        "engine": {"image": "vllm:0.32.0", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
        "replicas": 2,
        "poolRef": {"name": "commons"},
    }
    return resource(names.DEPLOYMENT_KIND, name, namespace, merged(base, spec))


def live(manifests: Iterable[Manifest], **status: Any) -> dict[Ref, Manifest]:
    """What exists after these were applied."""
    found = {}
    for manifest in manifests:
        one = copy.deepcopy(manifest)
        one.setdefault("status", {}).update(status.get(one["kind"], {}))
        one["metadata"].setdefault("resourceVersion", "7")
        one["metadata"].setdefault("generation", 1)
        found[Ref.of(one)] = one
    return found


def pool_world(**more: Any) -> PoolObserved:
    """What is seen of a pool."""
    return PoolObserved(**{"install": INSTALL, "now": NOW, **more})


def world(**more: Any) -> DeploymentObserved:
    """What is seen of a deployment."""
    return DeploymentObserved(**{"install": INSTALL, "now": NOW, "pool": pool(), **more})


def node_pod(number: int, template_hash: str, **more: Any) -> Pod:
    """The pod of a DaemonSet's cache node."""
    given = {
        "namespace": "llm",
        "name": f"commons-node-{number}",
        "uid": f"pod-{number}",
        "node": f"node-{number}",
        "phase": "Running",
        "ready": True,
        "labels": {names.COMPONENT: names.CACHE_NODE, names.POOL_LABEL: "commons"},
        "annotations": {names.TEMPLATE_HASH: template_hash},
    }
    return Pod(**{**given, **more})


def node_state(number: int, **more: Any) -> NodeState:
    """What that node says."""
    return NodeState(**{"member": f"node-{number}", "joined": True, "arena_bytes": 8 << 30, **more})


def engine_pod(number: int, **more: Any) -> Pod:
    """The pod of an engine."""
    given = {
        "namespace": "llm",
        "name": f"chat-engine-{number}",
        "uid": f"engine-{number}",
        "node": f"node-{number}",
        "phase": "Running",
        "ready": True,
        "labels": {names.COMPONENT: names.ENGINE, names.DEPLOYMENT_LABEL: "chat", names.ROLE_LABEL: "engine"},
        "containers": (check(loaded=True),),
    }
    return Pod(**{**given, **more})


def router_pod(number: int = 0, **more: Any) -> Pod:
    """The pod of a router."""
    labels = {names.COMPONENT: names.ROUTER, names.DEPLOYMENT_LABEL: "chat"}
    given = {
        "namespace": "llm",
        "name": f"chat-router-{number}",
        "uid": f"router-{number}",
        "phase": "Running",
        "ready": True,
        "labels": labels,
    }
    return Pod(**{**given, **more})


def check(*, loaded: bool, reason: str = "Loaded", message: str = "") -> Container:
    """The container that has tried the connector."""
    text = f'{{"loaded": {str(loaded).lower()}, "reason": "{reason}", "message": "{message}"}}'
    return Container(name="check", init=True, exit_code=0, exit_reason="Completed", termination_message=text)


def condition(status: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """One condition of a status."""
    found: dict[str, Any] = next(one for one in status["conditions"] if one["type"] == kind)
    return found


def named(manifests: Iterable[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one manifest of that kind (and name)."""
    (found,) = [one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return found


def pod_specs(manifests: Iterable[Manifest]) -> list[dict[str, Any]]:
    """The specification of every pod that these would make."""
    found = []
    for one in manifests:
        spec = one.get("spec") or {}
        if "template" in spec:
            found.append(spec["template"]["spec"])
        if "leaderWorkerTemplate" in spec:
            found += [spec["leaderWorkerTemplate"][part]["spec"] for part in ("leaderTemplate", "workerTemplate")]
    return found
