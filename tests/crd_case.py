"""What a rule of the resources is tried with: a spec that breaks it, one that keeps it, and where the fault is said to be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvcommons_operator.api import API_VERSION, InferenceDeployment, InferenceRole, KVCachePool, Resource

Spec = dict[str, Any]

POOL: Final[Spec] = {"tiers": {"memory": {"capacity": "1Gi"}}}
DEPLOYMENT: Final[Spec] = {"model": {"name": "m", "source": {"pvc": {"claimName": "models"}}}}
ROLE: Final[Spec] = {"deploymentRef": {"name": "d"}, "role": "prefill"}
BASES: Final[Mapping[type[Resource], Spec]] = {
    KVCachePool: POOL,
    InferenceDeployment: DEPLOYMENT,
    InferenceRole: ROLE,
}
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
ROLES: Final[Spec] = {"prefill": {}, "decode": {}}
KEY: Final = {"name": "s", "key": "k"}
CPU: Final = {"type": "Cpu", "target": 80}
QUERY: Final = {"type": "Prometheus", "query": "up", "target": 1}


def merged(base: Spec, patch: Spec) -> Spec:
    """A copy of `base` with `patch` in it; None takes a field away, a list replaces a list."""
    whole = copy.deepcopy(base)
    for name, value in patch.items():
        if value is None:
            whole.pop(name, None)
        elif isinstance(value, dict) and isinstance(whole.get(name), dict):
            whole[name] = merged(whole[name], value)
        else:
            whole[name] = copy.deepcopy(value)
    return whole


def body(kind: type[Resource], name: str, spec: Spec, namespace: str = "") -> dict[str, Any]:
    """A manifest."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": API_VERSION, "kind": kind.KIND, "metadata": metadata, "spec": spec}


def path_of(kind: type[Resource], namespace: str, name: str = "") -> str:
    """Where the API server has it."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{kind.PLURAL}" + (f"/{name}" if name else "")


@dataclass(frozen=True)
class Case:
    """A rule: part of its message, a patch of the kind's base that breaks it, one that keeps it."""

    message: str
    bad: Spec
    good: Spec
    field: str
    """Where the API server says that the fault is."""
    kind: type[Resource] = KVCachePool

    def __str__(self) -> str:
        return f"{self.kind.KIND}-{self.message[:40]}"


@dataclass(frozen=True)
class Change:
    """A rule about changes: what is there, what may not become of it, and what may."""

    message: str
    old: Spec
    bad: Spec
    good: Spec
    field: str
    kind: type[Resource] = KVCachePool

    def __str__(self) -> str:
        return f"{self.kind.KIND}-{self.message[:40]}"
