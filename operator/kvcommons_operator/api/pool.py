"""KVCachePool: cache nodes that keep KV blocks, and the index that says which node has what."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from kvcommons_operator.api.common import (
    EMPTY,
    AbsolutePath,
    FailureMode,
    Image,
    Label,
    Labels,
    LabelSelector,
    LocalRef,
    Model,
    ObjectName,
    Percent,
    Port,
    Rule,
    Seconds,
    SecretKeyRef,
    Size,
    StrictBool,
    StrictInt,
    Transition,
    list_type,
)
from kvcommons_operator.api.index import Index
from kvcommons_operator.api.pods import PodOverrides, Resources, Tolerations
from kvcommons_operator.api.scheduling import Affinity
from kvcommons_operator.api.shared import LogLevel, Monitoring, NetworkAccess

SECONDARY_TIERS_MAX: Final = 4
QUOTAS_MAX: Final = 256


class Placement(StrEnum):
    """Where cache nodes run."""

    PER_NODE = "perNode"
    SIDECAR = "sidecar"


class PoolImages(Model):
    """Images of what the pool runs."""

    node: Image | None = None
    """Image of the cache node; the one of the operator's own version when left out."""


class HugePages(StrEnum):
    """A size of huge pages."""

    SIZE_2_MI = "2Mi"
    SIZE_1_GI = "1Gi"


class MemoryTier(Model):
    """The shared memory that engines copy from and to."""

    capacity: Annotated[str, Size("64Mi", "64Ti")]
    """Size of the memory of each cache node. The pod asks for it, and for a little more for itself."""
    huge_pages: HugePages | None = None
    """Takes huge pages of this size, which the nodes must have set aside; common pages when left out."""


class TierType(StrEnum):
    """What a secondary tier is."""

    DISK = "disk"
    REMOTE = "remote"


class DiskMedium(StrEnum):
    """How a disk behaves."""

    NVME = "nvme"
    SSD = "ssd"
    HDD = "hdd"


class TierClaim(Model):
    """A volume for a disk tier: an existing claim, or one made for each cache node."""

    claim_name: ObjectName | None = None
    """An existing PersistentVolumeClaim in the same namespace."""
    storage_class_name: ObjectName | None = None
    """StorageClass of the claim that is made for each cache node; the cluster's default when left out."""
    size: Annotated[str, Size("1Gi", "1Pi")] | None = None
    """Size of the claim that is made for each cache node."""

    RULES = (
        Rule(
            cel="has(self.claimName) != has(self.size)",
            message="give claimName for an existing claim, or size (and storageClassName) for one made for each cache node",
            holds=lambda it: (it.claim_name is None) != (it.size is None),
        ),
        Rule(
            cel="!has(self.storageClassName) || has(self.size)",
            message="storageClassName goes with size",
            holds=lambda it: it.storage_class_name is None or it.size is not None,
            field=".storageClassName",
        ),
    )


class RemoteRedis(Model):
    """A Redis or Valkey server that keeps KV blocks as values. It is not the pool's index."""

    url_secret_ref: SecretKeyRef
    """Key of a Secret whose value is the server's URL, redis:// or rediss://."""


class RemoteS3(Model):
    """A bucket of an S3-compatible store."""

    bucket: Annotated[str, Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")]
    """Name of the bucket, which must exist."""
    endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s/]+$")] | None = None
    """URL of the store; Amazon's when left out."""
    region: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")] | None = None
    """Region of the bucket."""
    prefix: Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9._/-]*$")] = ""
    """All objects' names begin with it."""
    credentials_secret_ref: LocalRef | None = None
    """A Secret with the keys accessKeyId and secretAccessKey; the pod's own identity when left out."""


class SecondaryTier(Model):
    """A tier behind memory. Blocks that memory evicts go to the first one, from there to the next."""

    type: TierType
    """disk is local to each cache node; remote is one store for the whole pool."""
    capacity: Annotated[str, Size("1Gi", "16Pi")]
    """How much it holds at most: of each cache node for disk, of all together for remote."""
    medium: DiskMedium | None = None
    """What kind of disk it is, for the number of operations that are kept under way."""
    path: AbsolutePath | None = None
    """A directory of the node (hostPath) for a disk tier; only with placement perNode."""
    pvc: TierClaim | None = None
    """A volume for a disk tier."""
    redis: RemoteRedis | None = None
    """A Redis for a remote tier."""
    s3: RemoteS3 | None = None
    """A bucket for a remote tier."""

    RULES = (
        Rule(
            cel="self.type != 'disk' || (has(self.path) != has(self.pvc) && !has(self.redis) && !has(self.s3))",
            message="a disk tier takes exactly one of path and pvc, and neither redis nor s3",
            holds=lambda it: (
                it.type != "disk" or ((it.path is None) != (it.pvc is None) and it.redis is None and it.s3 is None)
            ),
        ),
        Rule(
            cel="self.type != 'remote' || (has(self.redis) != has(self.s3) && !has(self.path) && !has(self.pvc))",
            message="a remote tier takes exactly one of redis and s3, and neither path nor pvc",
            holds=lambda it: (
                it.type != "remote" or ((it.redis is None) != (it.s3 is None) and it.path is None and it.pvc is None)
            ),
        ),
        Rule(
            cel="!has(self.medium) || self.type == 'disk'",
            message="medium goes with type disk",
            holds=lambda it: it.medium is None or it.type == "disk",
            field=".medium",
        ),
    )


class Tiers(Model):
    """What keeps KV blocks: memory first, then in this order."""

    memory: MemoryTier
    """The shared memory that engines copy from and to."""
    secondary: Annotated[
        tuple[SecondaryTier, ...], Field(max_length=SECONDARY_TIERS_MAX, json_schema_extra=list_type("atomic"))
    ] = ()
    """Tiers behind memory, nearest first."""


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
    """none keeps every bit, lossless too but smaller; the others lose precision, and what they kept answers only those who
    allow it."""
    tiers: Annotated[tuple[CompressedTier, ...], Field(max_length=3, json_schema_extra=list_type("set"))] = (
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


class NamespacesFrom(StrEnum):
    """Whose InferenceDeployments may use the pool."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"
    NAMES = "Names"


class AllowedNamespaces(Model):
    """Whose InferenceDeployments may use the pool."""

    from_: Annotated[NamespacesFrom, Field(alias="from")] = NamespacesFrom.SAME
    """Same: only those of the pool's own namespace. All: every one. Selector: namespaces with the labels of `selector`. Names: the
    namespaces in `names`. The pool's own namespace is always allowed."""
    selector: LabelSelector | None = None
    """Labels of namespaces, for from Selector."""
    names: Annotated[tuple[Label, ...], Field(max_length=64, json_schema_extra=list_type("set"))] = ()
    """Names of namespaces, for from Names."""

    RULES = (
        Rule(
            cel="has(self.selector) == (self.from == 'Selector')",
            message="selector goes with from Selector, and only with it",
            holds=lambda it: (it.selector is not None) == (it.from_ == "Selector"),
            field=".selector",
        ),
        Rule(
            cel="(self.names.size() > 0) == (self.from == 'Names')",
            message="names goes with from Names, and only with it",
            holds=lambda it: bool(it.names) == (it.from_ == "Names"),
            field=".names",
        ),
    )


class Quota(Model):
    """How much of the pool a tenant may fill; over it, its own blocks go first."""

    tenant: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")]
    """Name of the tenant, as in the router's file of keys."""
    memory_percent: Percent
    """Share of every cache node's memory."""


class Tenancy(Model):
    """Who shares the pool, and what keeps them apart."""

    salt_secret_ref: SecretKeyRef | None = None
    """Secret that tenants' salts are made with; one is made for the pool when left out. Changing it empties the cache."""
    quotas: Annotated[
        tuple[Quota, ...], Field(max_length=QUOTAS_MAX, json_schema_extra=list_type("map", "tenant"))
    ] = ()
    """Shares of tenants; a tenant without one may fill everything."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """Whose InferenceDeployments may use the pool."""


class IssuerRef(Model):
    """An issuer of cert-manager."""

    name: ObjectName
    """Name of the issuer."""
    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    """Issuer in the same namespace, or ClusterIssuer."""
    group: ObjectName = "cert-manager.io"
    """API group of the issuer."""


class CertManager(Model):
    """Certificates by cert-manager."""

    issuer_ref: IssuerRef
    """Who issues them."""


class PoolTls(Model):
    """TLS between cache nodes; exactly one source of certificates."""

    cert_manager: CertManager | None = None
    """Certificates are asked of cert-manager, which must be installed."""
    secret_ref: LocalRef | None = None
    """A Secret with the keys tls.crt, tls.key and ca.crt."""

    RULES = (
        Rule(
            cel="has(self.certManager) != has(self.secretRef)",
            message="give exactly one of certManager and secretRef",
            holds=lambda it: (it.cert_manager is None) != (it.secret_ref is None),
        ),
    )


class PoolSecurity(Model):
    """What keeps others out."""

    tls: PoolTls | None = None
    """TLS between cache nodes; plain TCP within the pool's NetworkPolicy when left out."""
    multi_tenant: StrictBool = False
    """Whether requests without a tenant's salt are not cached at all."""
    network_policy: NetworkAccess = NetworkAccess()
    """Who may connect to the pool's pods."""


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
    """How long a cache node may take to give back what engines hold, before it is restarted."""


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
            "give the disk tier a pvc instead of a path",
            holds=lambda it: it.placement != "sidecar" or all(tier.path is None for tier in it.tiers.secondary),
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
