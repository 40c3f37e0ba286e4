"""KVCachePool: cache nodes that keep KV blocks, and the index that says which node has what."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule, Transition
from kvcommons_operator.api.common import (
    EMPTY,
    FailureMode,
    Image,
    Labels,
    ListType,
    Port,
    Seconds,
    StrictInt,
)
from kvcommons_operator.api.index import Index
from kvcommons_operator.api.pods import PodOverrides, Resources, Tolerations
from kvcommons_operator.api.scheduling import Affinity
from kvcommons_operator.api.shared import LogLevel, Monitoring
from kvcommons_operator.api.tenancy import PoolSecurity, Tenancy
from kvcommons_operator.api.tiers import Tiers


class Placement(StrEnum):
    """Where cache nodes run."""

    PER_NODE = "perNode"
    SIDECAR = "sidecar"


class PoolImages(Model):
    """Images of what the pool runs."""

    node: Image | None = None
    """Image of the cache node; the one of the operator's own version when left out."""


class EvictionPolicy(StrEnum):
    """Which block goes when there is no room."""

    LRU = "lru"
    S3FIFO = "s3fifo"
    COST = "cost"
    AUTO = "auto"


class Eviction(Model):
    """Which blocks go when there is no room."""

    policy: EvictionPolicy = EvictionPolicy.AUTO
    """lru: what was used longest ago. s3fifo: what was used but once. cost: what is cheap to compute again for its size. auto: the
    one of the built ones that would have hit most."""


class Codec(StrEnum):
    """How blocks are made smaller."""

    NONE = "none"
    LOSSLESS = "lossless"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    K16V8 = "k16v8"


class CompressedTier(StrEnum):
    """Where blocks are kept compressed."""

    MEMORY = "memory"
    DISK = "disk"
    REMOTE = "remote"


class Compression(Model):
    """How blocks are made smaller, and where."""

    codec: Codec = Codec.NONE
    """none keeps every bit, lossless too but smaller; the others lose precision: to choose one is the pool's consent to answers from
    what they kept, which an engine refuses by `exact: true` in its kv_connector_extra_config."""
    tiers: Annotated[tuple[CompressedTier, ...], Field(max_length=3), ListType("set")] = (
        CompressedTier.DISK,
        CompressedTier.REMOTE,
    )
    """Where it is done."""


class TransportType(StrEnum):
    """How cache nodes talk to each other."""

    TCP = "tcp"
    NIXL = "nixl"


class Transport(Model):
    """How blocks go from one cache node to another."""

    type: TransportType = TransportType.TCP
    """tcp works everywhere; nixl uses RDMA where the nodes have it."""
    port: Port = 9_471
    """Port of the cache nodes for each other; 9470 is their control API's."""
    sockets_per_peer: Annotated[StrictInt, Field(ge=1, le=32)] = 4
    """Connections between two cache nodes."""
    replicas_max: Annotated[StrictInt, Field(ge=1, le=16)] = 2
    """How many cache nodes may keep a copy of a block that is asked for often."""

    RULES = (
        Rule(
            cel="self.port != 9470",
            message="port 9470 is the control API's; take another one, such as 9471",
            holds=lambda it: it.port != 9_470,
            field=".port",
        ),
    )


class UpdateType(StrEnum):
    """How a change reaches cache nodes."""

    ROLLING_ONE = "RollingOne"
    ON_DELETE = "OnDelete"


class UpdateStrategy(Model):
    """How a change reaches cache nodes."""

    type: UpdateType = UpdateType.ROLLING_ONE
    """RollingOne: one node after the other, each fenced, flushed, restarted and ready before the next. OnDelete: a pod takes the
    change when you delete it."""
    max_unavailable: Literal[1] = 1
    """How many cache nodes may be away at one time. It is always 1."""
    drain_seconds: Annotated[Seconds, Field(le=3_600)] = 30
    """How long a cache node that is to be replaced may take to write down what it has in memory alone, once it is fenced."""


class KVCachePoolSpec(Model):
    """What the pool should be."""

    placement: Placement = Placement.SIDECAR
    """sidecar: a cache node in every engine pod; runs under Pod Security level restricted. perNode: one a Kubernetes node, shared by
    all engines on it; its namespaces must allow hostPath (level privileged). It can't be changed."""
    images: PoolImages = PoolImages()
    """Images of what the pool runs."""
    tiers: Tiers
    """What keeps KV blocks: memory first, then disks and remote stores."""
    chunk_tokens: Annotated[StrictInt, Field(ge=16, le=4_096)] = 256
    """How many tokens a chunk has, the unit that is kept and found; a multiple of 16 and of the engines' block size. It can't be
    changed."""
    eviction: Eviction = Eviction()
    """Which blocks go when there is no room."""
    compression: Compression = Compression()
    """How blocks are made smaller, and where."""
    index: Index = Index.model_validate({"managed": {}})
    """The Redis that says which cache node has what: run by the operator, or yours."""
    node_selector: Labels = EMPTY
    """Labels that a node must have to run a cache node (placement perNode)."""
    tolerations: Tolerations = ()
    """Taints of nodes that cache nodes put up with (placement perNode)."""
    affinity: Affinity | None = None
    """Which nodes cache nodes want (placement perNode)."""
    resources: Resources = Resources()
    """What a cache node asks for beside its tiers: the operator adds the memory tier to requests and limits."""
    transport: Transport = Transport()
    """How blocks go from one cache node to another."""
    tenancy: Tenancy = Tenancy()
    """Who shares the pool, and what keeps them apart."""
    security: PoolSecurity = PoolSecurity()
    """What keeps others out."""
    update_strategy: UpdateStrategy = UpdateStrategy()
    """How a change reaches cache nodes."""
    failure_mode: FailureMode = FailureMode.FAIL_OPEN
    """What becomes of engines while their cache node is away. FailOpen: they serve and compute everything themselves. FailClosed: they
    are not ready until it is back."""
    monitoring: Monitoring = Monitoring()
    """What is made for Prometheus."""
    log_level: LogLevel = LogLevel.INFO
    """How much cache nodes say."""
    pod_template: PodOverrides = PodOverrides()
    """Overrides for cache nodes' pods (perNode) or containers (sidecar: env and containerSecurityContext alone)."""

    RULES = (
        Rule(
            cel="self.chunkTokens % 16 == 0",
            message="chunkTokens must be a multiple of 16, such as 256",
            holds=lambda it: it.chunk_tokens % 16 == 0,
            field=".chunkTokens",
        ),
        Rule(
            cel="self.placement != 'sidecar' || self.tiers.secondary.all(tier, !has(tier.path))",
            message="placement sidecar can't use a directory of the node (Pod Security level restricted forbids hostPath); "
            "give the disk tier an emptyDir or a pvc instead of a path",
            holds=lambda it: it.placement != "sidecar" or all(tier.path is None for tier in it.tiers.secondary),
            field=".tiers.secondary",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.placement != 'sidecar' || self.tiers.secondary.all(tier, !has(tier.pvc) || !has(tier.pvc.claimName))",
            message="placement sidecar can't share an existing claim among engine pods that come and go; give pvc.size, so that each "
            "pod has a claim of its own, or an emptyDir",
            holds=lambda it: (
                it.placement != "sidecar"
                or all(tier.pvc is None or tier.pvc.claim_name is None for tier in it.tiers.secondary)
            ),
            field=".tiers.secondary",
            reason="FieldValueForbidden",
        ),
        Rule(
            cel="self.placement != 'sidecar' || (self.nodeSelector.size() == 0 && self.tolerations.size() == 0"
            " && !has(self.affinity))",
            message="with placement sidecar cache nodes run where the engines run; put nodeSelector, tolerations and affinity "
            "in the InferenceDeployment's podTemplate",
            holds=lambda it: it.placement != "sidecar" or not (it.node_selector or it.tolerations or it.affinity),
            field=".placement",
        ),
    )
    TRANSITIONS = (
        Transition(
            cel="self.placement == oldSelf.placement",
            message="placement can't be changed; create another pool and let the InferenceDeployments' poolRef name it",
            holds=lambda old, new: old.placement == new.placement,
            field=".placement",
        ),
        Transition(
            cel="self.chunkTokens == oldSelf.chunkTokens",
            message="chunkTokens can't be changed, since every key depends on it; create another pool and let the "
            "InferenceDeployments' poolRef name it",
            holds=lambda old, new: old.chunk_tokens == new.chunk_tokens,
            field=".chunkTokens",
        ),
    )
