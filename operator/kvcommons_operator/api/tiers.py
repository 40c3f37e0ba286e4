"""What keeps KV blocks: memory, then disks and remote stores."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import (
    AbsolutePath,
    ListType,
    LocalRef,
    ObjectName,
    SecretKeyRef,
)
from kvcommons_operator.api.quantities import Size

SECONDARY_TIERS_MAX: Final = 4


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


class TierDirectory(Model):
    """An empty directory of the node for a disk tier, which goes with its pod."""

    size_limit: Annotated[str, Size("1Gi", "16Pi")] | None = None
    """Size at which the kubelet evicts the pod; a little more than the capacity when left out."""


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
    """All objects' names begin with it: folders. NAMESPACE.POOL/ when left out."""
    credentials_secret_ref: LocalRef | None = None
    """A Secret with the keys accessKeyId and secretAccessKey; the pod's own identity when left out."""


def _places(tier: SecondaryTier) -> int:
    return sum(place is not None for place in (tier.path, tier.pvc, tier.empty_dir))


class SecondaryTier(Model):
    """A tier behind memory. What engines store is written to it too, and read from the nearest one that has it."""

    type: TierType
    """disk is local to each cache node; remote is one store for the whole pool."""
    capacity: Annotated[str, Size("1Gi", "16Pi")]
    """How much it holds at most, of each cache node: for remote, what one node puts there before its oldest goes."""
    medium: DiskMedium | None = None
    """What kind of disk it is, for the number of operations that are kept under way."""
    path: AbsolutePath | None = None
    """A directory of the node (hostPath) for a disk tier, which must be there; only with placement perNode. Each pool has a folder
    of its own in it, and what is there outlives pods."""
    pvc: TierClaim | None = None
    """A volume for a disk tier. One that is made for each cache node goes with its pod; in an existing one each node has a folder of
    its own (placement perNode, and access mode ReadWriteMany where there are several)."""
    empty_dir: TierDirectory | None = None
    """The node's own disk for a disk tier; what is there goes with the pod."""
    redis: RemoteRedis | None = None
    """A Redis for a remote tier."""
    s3: RemoteS3 | None = None
    """A bucket for a remote tier."""

    RULES = (
        Rule(
            cel="self.type != 'disk' || ([has(self.path), has(self.pvc), has(self.emptyDir)].filter(it, it).size() == 1"
            " && !has(self.redis) && !has(self.s3))",
            message="a disk tier takes exactly one of path, pvc and emptyDir, and neither redis nor s3",
            holds=lambda it: it.type != "disk" or (_places(it) == 1 and it.redis is None and it.s3 is None),
        ),
        Rule(
            cel="self.type != 'remote' || (has(self.redis) != has(self.s3) && !has(self.path) && !has(self.pvc) && !has(self.emptyDir))",
            message="a remote tier takes exactly one of redis and s3, and none of path, pvc and emptyDir",
            holds=lambda it: it.type != "remote" or ((it.redis is None) != (it.s3 is None) and _places(it) == 0),
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
    secondary: Annotated[tuple[SecondaryTier, ...], Field(max_length=SECONDARY_TIERS_MAX), ListType("atomic")] = ()
    """Tiers behind memory, nearest first."""
