"""What the operator sees: plain data, made by reconcile/ from the API server and the cache nodes, read by the pure planners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvcommons_operator import names
from kvcommons_operator.pod_memory import NO_MEMORY, PodMemory, Refusal

Manifest = dict[str, Any]


class Ref(NamedTuple):
    """Which object: enough to get, apply or delete it."""

    api_version: str
    kind: str
    namespace: str
    """Empty for what has no namespace."""
    name: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Ref:
        """The reference of a manifest."""
        metadata = manifest["metadata"]
        return cls(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])


def replica_writers(metadata: Mapping[str, Any]) -> list[Manifest]:
    """Of `metadata.managedFields` only who has written `spec.replicas`: all that a planner asks of it, in its own shape."""
    return [
        {"manager": entry.get("manager", ""), "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        for entry in metadata.get("managedFields") or ()
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]


class Api(NamedTuple):
    """A kind that the API server serves."""

    api_version: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Container:
    """One container's state, of an init container too."""

    name: str
    init: bool = False
    image: str = ""
    ready: bool = False
    running: bool = False
    restarts: int = 0
    waiting_reason: str = ""
    """CreateContainerConfigError, ImagePullBackOff, CrashLoopBackOff, ..."""
    waiting_message: str = ""
    exit_code: int | None = None
    """Of its last end."""
    exit_reason: str = ""
    termination_message: str = ""


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What counts of a pod."""

    namespace: str
    name: str
    uid: str
    node: str = ""
    ip: str = ""
    phase: str = "Pending"
    ready: bool = False
    deleting: bool = False
    deleting_since: str = ""
    """When its last second was to be (deletionTimestamp), if it is going."""
    unschedulable: str = ""
    """The scheduler's words where it finds no node."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[Container, ...] = ()
    memory: PodMemory = NO_MEMORY
    """Of a DaemonSet's cache node: what it asks for and has."""
    warnings: tuple[str, ...] = ()
    """The pod's latest Warning events as "Reason: note", the newest first, where somebody read them."""

    @classmethod
    def parse(cls, manifest: Mapping[str, Any], warnings: Iterable[str] = ()) -> Pod:
        """A pod as the API server sends it."""
        metadata, status = manifest["metadata"], manifest.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or ()}
        scheduled = conditions.get("PodScheduled", {})
        unschedulable = scheduled.get("message", "") if scheduled.get("status") == "False" else ""
        labels = metadata.get("labels") or {}
        is_node = labels.get(names.COMPONENT) == names.CACHE_NODE
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata.get("uid", ""),
            node=(manifest.get("spec") or {}).get("nodeName", ""),
            ip=status.get("podIP", ""),
            phase=status.get("phase", "Pending"),
            ready=conditions.get("Ready", {}).get("status") == "True",
            deleting="deletionTimestamp" in metadata,
            deleting_since=metadata.get("deletionTimestamp", ""),
            unschedulable=unschedulable,
            labels=labels,
            annotations=metadata.get("annotations") or {},
            containers=(
                *(_container(s, init=True) for s in status.get("initContainerStatuses") or ()),
                *(_container(s, init=False) for s in status.get("containerStatuses") or ()),
            ),
            memory=PodMemory.parse(manifest, names.CACHE_NODE_CONTAINER) if is_node else NO_MEMORY,
            warnings=tuple(warnings),
        )

    def container(self, name: str) -> Container | None:
        """The container of that name, if the kubelet has told of it."""
        return next((c for c in self.containers if c.name == name), None)


def _container(status: Mapping[str, Any], *, init: bool) -> Container:
    state, last = status.get("state") or {}, status.get("lastState") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    return Container(
        name=status["name"],
        init=init,
        image=status.get("image", ""),
        ready=bool(status.get("ready")),
        running="running" in state,
        restarts=status.get("restartCount", 0),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason", ""),
        termination_message=ended.get("message", ""),
    )


class TierState(NamedTuple):
    """What a cache node says of a tier behind its memory."""

    name: str
    """disk."""
    health: str = "serving"
    """serving, degraded or gone."""
    detail: str = ""
    """Why, in words."""
    capacity_bytes: int = 0
    used_bytes: int = 0
    used_percent: int | None = None
    """In coarse steps, so that it can be told."""


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What a cache node says of itself (its control API)."""

    member: str
    reachable: bool = True
    joined: bool = False
    """It is a member of the index and its epoch is in force: not fenced."""
    unanswered: int = 0
    """Questions in a row that it did not answer, the last one among them."""
    unanswered_seconds: float = 0.0
    """From the first to the last of them."""
    fenced: bool = False
    """It publishes nothing and nothing of it is believed, until it is restarted or let back in."""
    fenced_seconds: float = 0.0
    """For how long it is known to be so."""
    flushed: bool = False
    """Nothing that it holds in memory alone is still to be written down."""
    chunks: int = 0
    hits: int = 0
    """Chunks that engines have reused lately."""
    asked: int = 0
    """Chunks that engines have asked for, in the same time."""
    arena_bytes: int = 0
    used_bytes: int = 0
    """Of its arena: what holds KV."""
    index_missing: int = 0
    """Chunks that it holds and the index does not name (a sample, scaled up)."""
    index_stale: int = 0
    """Chunks that the index names and it does not hold."""
    hit_percent: int | None = None
    """Of what was asked for, what was reused: in coarse steps, so that it can be told."""
    used_percent: int | None = None
    """Of its arena, likewise."""
    tiers: tuple[TierState, ...] = ()
    """What is behind its memory, in the order in which it is asked."""


@dataclass(frozen=True, kw_only=True)
class Install:
    """How this operator was installed: what every plan needs and no resource says."""

    version: str
    namespace: str
    """The operator's own."""
    root_secret: bytes
    """What every generated secret is derived from."""
    node_image: str
    router_image: str
    redis_image: str
    engine_images: Mapping[str, str] = field(default_factory=dict)
    """By engine name, with `{version}` where the version goes."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    operator_labels: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": "kvcommons-operator"})
    """Of the operator's pods: whom NetworkPolicies let reach control APIs."""
    identity: str = ""
    """Which of several operators this one is: its namespace and its Lease. Empty for the only one."""
    metrics_namespaces: Mapping[str, str] = field(default_factory=dict)
    """Labels of the namespaces whose pods may scrape metrics, besides those that a resource lets in; empty for none."""


@dataclass(frozen=True, kw_only=True)
class User:
    """An InferenceDeployment that names the pool."""

    namespace: str
    name: str
    uid: str = ""
    deleting: bool = False
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PoolObserved:
    """Everything that a pool's plan is made from, besides the pool."""

    install: Install
    now: str
    """RFC 3339, whole seconds, UTC: the time of transitions."""
    children: Mapping[Ref, Manifest] = field(default_factory=dict)
    """Live objects that carry the pool's labels and ours."""
    pods: tuple[Pod, ...] = ()
    """Of the pool: cache nodes (for `sidecar`, engine pods that hold one) and the index."""
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    """By uid of the pod that the node runs in; a pod that did not answer is absent, or not reachable."""
    users: tuple[User, ...] = ()
    apis: frozenset[Api] = frozenset()
    """Of the optional APIs, those that are served here."""
    index_reachable: bool | None = None
    """What the nodes say of Redis; None where no node has answered."""
    unresizable: Mapping[str, Refusal] = field(default_factory=dict)
    """By uid of a cache node's pod that could not be given another size where it is: why."""
    warnings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By uid of a workload that lacks pods: its latest Warning events as "Reason: note", the newest first."""


@dataclass(frozen=True, kw_only=True)
class DeploymentObserved:
    """Everything that a deployment's plan is made from, besides the deployment."""

    install: Install
    now: str
    children: Mapping[Ref, Manifest] = field(default_factory=dict)
    """Live objects that carry the deployment's labels and ours, in every namespace where they may be."""
    pods: tuple[Pod, ...] = ()
    """Of the deployment: engines and routers, in every namespace where they may be."""
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    """Cache nodes of the pool, by member name: for the order of scaling down."""
    pool: Manifest | None = None
    """The pool that poolRef names, as the API server has it; None where there is none, or none is named."""
    namespace_labels: Mapping[str, str] | None = field(default_factory=dict)
    """Of the deployment's namespace: for the pool's `allowedNamespaces` by selector. None where the operator may not read them."""
    apis: frozenset[Api] = frozenset()
    routable: int | None = None
    """Instances that the routers say they send to; None where no router has answered."""
