"""Disks behind a cache node's memory: their volumes, the folder that each node has on them, and what the node is told.

A volume may be shared by pools (a directory of the node) or by cache nodes (an existing claim), and its root is often root's. So the
init container makes a folder of the node's own there, and the daemon sees nothing but that folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from kvcommons_operator.api.common import quantity_bytes
from kvcommons_operator.api.pool import Codec, CompressedTier
from kvcommons_operator.api.tiers import SecondaryTier, TierType
from kvcommons_operator.build import pods
from kvcommons_operator.build.pool import Pool

DISK_PATH: Final = "/var/lib/kvcommons-disks"
VOLUME: Final = "kvcommons-disk"
OWN_FOLDER: Final = "kvcommons"
"""Where the volume is the pod's alone."""
NODE_VARIABLE: Final = "KVCOMMONS_NODE__KUBERNETES_NODE"
NODE_NAME: Final = pods.env_field(NODE_VARIABLE, "spec.nodeName")
MEMORY_PART: Final = 4_096
"""The node remembers where each shard is: 130 to 200 bytes, of shards of 1 MiB and more."""
CODEC_NAMES: Final = {Codec.FP8: "fp8-e4m3"}
"""Where the node's word for a codec is another."""
SIZE_LIMIT_BYTES_BESIDE: Final = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Disks:
    """What the disks add to a cache node's pod; nothing where there are none."""

    told: list[dict[str, Any]] = field(default_factory=list)
    """What the node is told of them: an entry of `node.tiers`."""
    mounts: list[dict[str, Any]] = field(default_factory=list)
    """Of the daemon: the node's own folders alone."""
    whole: list[dict[str, Any]] = field(default_factory=list)
    """Of the init container."""
    folders: list[str] = field(default_factory=list)
    """What that container makes, as PATH=FIELD."""
    volumes: list[dict[str, Any]] = field(default_factory=list)


def disks(pool: Pool) -> list[tuple[int, SecondaryTier]]:
    """(place in spec.tiers.secondary, tier) of the pool's disks."""
    return [(at, tier) for at, tier in enumerate(pool.spec.tiers.secondary) if tier.type == TierType.DISK]


def capacity_bytes(pool: Pool) -> int:
    """Of all disks of one cache node."""
    return sum(quantity_bytes(tier.capacity) for _, tier in disks(pool))


def memory_bytes(pool: Pool) -> int:
    """What a node needs to know what is on its disks."""
    return capacity_bytes(pool) // MEMORY_PART


def names_the_node(pool: Pool) -> bool:
    """Some folder is named after the Kubernetes node: the init container must know it."""
    return any(_is_shared(tier) for _, tier in disks(pool))


def parts(pool: Pool) -> Disks:
    """All disks of a node as one tier, each with a file of the same size: the first one's."""
    found, paths = Disks(), []
    for at, tier in disks(pool):
        name, place, folder = f"{VOLUME}-{at}", f"{DISK_PATH}/{at}", _folder(pool, tier)
        by_name = "subPathExpr" if _is_shared(tier) else "subPath"
        found.mounts.append(pods.mount(name, place) | {by_name: folder})
        found.whole.append(pods.mount(name, place))
        found.folders.append(f"{place}/{folder}=spec.tiers.secondary[{at}]")
        found.volumes.append({"name": name, **_source(tier)})
        paths.append(place)
    if paths:
        bytes_each = quantity_bytes(disks(pool)[0][1].capacity)
        found.told.append({"type": "disk", "paths": paths, "capacity_bytes": bytes_each, **_codec(pool)})
    return found


def _codec(pool: Pool) -> dict[str, str]:
    """How the disks' content is made smaller. Whoever chooses a codec with loss for a pool allows its answers."""
    asked = pool.spec.compression
    if asked.codec == Codec.NONE or CompressedTier.DISK not in asked.tiers:
        return {}
    name = CODEC_NAMES.get(asked.codec, asked.codec.value)
    return {"codec": name} | ({"lossy": "allow"} if asked.codec != Codec.LOSSLESS else {})


def _is_shared(tier: SecondaryTier) -> bool:
    """An existing claim: every cache node of the pool mounts it."""
    return tier.pvc is not None and tier.pvc.claim_name is not None


def _folder(pool: Pool, tier: SecondaryTier) -> str:
    """A namespace has no dot in it: no two pools meet."""
    if tier.path is not None:
        return f"{pool.owner.namespace}.{pool.owner.name}"
    return f"{pool.owner.name}/$({NODE_VARIABLE})" if _is_shared(tier) else OWN_FOLDER


def _source(tier: SecondaryTier) -> dict[str, Any]:
    """A directory must be there: made by itself it would be on the machine's own disk where the right one is not mounted."""
    if tier.path is not None:
        return {"hostPath": {"path": tier.path, "type": "Directory"}}
    claim = tier.pvc
    if claim is None:
        given = tier.empty_dir.size_limit if tier.empty_dir is not None else None
        limit = given or str(quantity_bytes(tier.capacity) + SIZE_LIMIT_BYTES_BESIDE)
        return {"emptyDir": {"sizeLimit": limit}}
    if claim.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": claim.claim_name}}
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": claim.size}}}
    if claim.storage_class_name is not None:
        spec["storageClassName"] = claim.storage_class_name
    return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}
