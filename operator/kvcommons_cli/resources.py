"""What the API server and cache nodes say of the project's resources, as plain data. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Manifest = dict[str, Any]

GROUP: Final = "kvcommons.io"
VERSION: Final = "v1alpha1"
PLURALS: Final = ("kvcachepools", "inferencedeployments", "inferenceroles")
PART_OF: Final = "app.kubernetes.io/part-of=kvcommons"
COMPONENT: Final = "app.kubernetes.io/component"
POOL_LABEL: Final = f"{GROUP}/pool"
POOL_NAMESPACE_LABEL: Final = f"{GROUP}/pool-namespace"
DEPLOYMENT_LABEL: Final = f"{GROUP}/deployment"
DEPLOYMENT_NAMESPACE_LABEL: Final = f"{GROUP}/deployment-namespace"
NODE_CONTAINER: Final = "cache-node"
CONTROL_PORT: Final = 9470
_SAMPLE: Final = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Condition:
    """One thing that is so, is not so, or is not known."""

    type: str
    status: str
    reason: str
    message: str
    observed_generation: int


@dataclass(frozen=True)
class Resource:
    """A pool or a deployment."""

    kind: str
    namespace: str
    name: str
    generation: int
    created: str
    deleting: bool
    finalizers: tuple[str, ...]
    spec: Manifest
    status: Manifest
    conditions: tuple[Condition, ...]

    @property
    def shown(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    def condition(self, kind: str) -> Condition | None:
        return next((one for one in self.conditions if one.type == kind), None)

    @property
    def ready(self) -> str:
        """True, or why not, in one word."""
        found = self.condition("Ready")
        if found is None:
            return "not looked at"
        return "True" if found.status == "True" else f"{found.status}: {found.reason}"


def resource(manifest: Manifest, kind: str) -> Resource:
    """One item of a list."""
    metadata, status = manifest.get("metadata") or {}, manifest.get("status") or {}
    conditions = tuple(
        Condition(
            str(one.get("type", "")),
            str(one.get("status", "Unknown")),
            str(one.get("reason", "")),
            str(one.get("message", "")),
            int(one.get("observedGeneration") or 0),
        )
        for one in status.get("conditions") or ()
    )
    return Resource(
        kind,
        metadata.get("namespace", ""),
        metadata.get("name", ""),
        int(metadata.get("generation") or 0),
        metadata.get("creationTimestamp", ""),
        "deletionTimestamp" in metadata,
        tuple(metadata.get("finalizers") or ()),
        manifest.get("spec") or {},
        status,
        conditions,
    )


@dataclass(frozen=True)
class Container:
    """One container's state, of an init container too."""

    name: str
    ready: bool
    restarts: int
    waiting: str
    """Reason: CrashLoopBackOff, ImagePullBackOff, ..."""
    message: str
    ended: str
    """Why it ended last: OOMKilled, Error (exit code 1), ..."""


@dataclass(frozen=True)
class Pod:
    """What counts of a pod."""

    namespace: str
    name: str
    component: str
    labels: Mapping[str, str]
    node: str
    phase: str
    ready: bool
    deleting: bool
    created: str
    service_account: str
    unschedulable: str
    environment: Mapping[str, str]
    """Of all its containers, where a value stands in the pod itself."""
    containers: tuple[Container, ...] = field(default=())

    @property
    def shown(self) -> str:
        return f"pod {self.namespace}/{self.name}"

    @property
    def restarts(self) -> int:
        return sum(one.restarts for one in self.containers)

    @property
    def has_cache_node(self) -> bool:
        """A cache node runs in it: by itself, or beside an engine."""
        return self.component == NODE_CONTAINER or any(one.name == NODE_CONTAINER for one in self.containers)

    @property
    def pool(self) -> tuple[str, str]:
        return self.labels.get(POOL_NAMESPACE_LABEL, self.namespace), self.labels.get(POOL_LABEL, "")

    @property
    def deployment(self) -> tuple[str, str]:
        return self.labels.get(DEPLOYMENT_NAMESPACE_LABEL, self.namespace), self.labels.get(DEPLOYMENT_LABEL, "")


def pod(manifest: Manifest) -> Pod:
    """One item of a list of pods."""
    metadata, spec, status = (manifest.get(part) or {} for part in ("metadata", "spec", "status"))
    conditions = {one.get("type"): one for one in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    labels = metadata.get("labels") or {}
    environment = {
        str(one.get("name")): str(one["value"])
        for container in spec.get("containers") or ()
        for one in container.get("env") or ()
        if one.get("value") is not None
    }
    told = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return Pod(
        metadata.get("namespace", ""),
        metadata.get("name", ""),
        labels.get(COMPONENT, ""),
        labels,
        spec.get("nodeName", ""),
        status.get("phase", "Pending"),
        (conditions.get("Ready") or {}).get("status") == "True",
        "deletionTimestamp" in metadata,
        metadata.get("creationTimestamp", ""),
        spec.get("serviceAccountName", "default"),
        scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        environment,
        tuple(_container(one) for one in told),
    )


def _container(told: Manifest) -> Container:
    state, last = told.get("state") or {}, told.get("lastState") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    code = ended.get("exitCode")
    why = str(ended.get("reason", "")) + (f" (exit code {code})" if code and ended.get("reason") != "OOMKilled" else "")
    words = str(ended.get("message", "") or waiting.get("message", ""))
    return Container(
        str(told.get("name", "")),
        bool(told.get("ready")),
        int(told.get("restartCount") or 0),
        str(waiting.get("reason", "")),
        words.strip(),
        why if code else "",
    )


@dataclass(frozen=True)
class NodeReport:
    """What a cache node says of itself, by /readyz and /metrics; `error` where it could not be asked."""

    ready: bool = False
    reason: str = ""
    index_state: str = ""
    index_detail: str = ""
    capacity_bytes: float | None = None
    used_bytes: float | None = None
    chunks: float | None = None
    lookup_chunks: float | None = None
    hit_chunks: float | None = None
    engines: float | None = None
    index_pending: float | None = None
    held: bool = False
    """It has left the index on request, before a restart."""
    error: str = ""


def node_report(readyz: Manifest, exposition: str) -> NodeReport:
    """Of a node's two open answers."""
    index = readyz.get("index") or {}
    values: dict[str, float] = {}
    for sample in _SAMPLE.finditer(exposition):
        labels = sample["labels"] or ""
        try:
            values[sample["name"] + (f"{{{labels}}}" if 'use="' in labels else "")] = float(sample["value"])
        except ValueError:
            continue
    return NodeReport(
        readyz.get("ready") is True,
        str(readyz.get("reason", "")),
        str(index.get("state", "")),
        str(index.get("detail", "")),
        values.get("kvcommons_node_capacity_bytes"),
        values.get('kvcommons_node_arena_bytes{use="used"}'),
        values.get("kvcommons_node_chunks"),
        values.get("kvcommons_node_lookup_chunks_total"),
        values.get("kvcommons_node_hit_chunks_total"),
        values.get("kvcommons_node_engines"),
        values.get("kvcommons_node_index_pending"),
        index.get("held") is True,
    )


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
