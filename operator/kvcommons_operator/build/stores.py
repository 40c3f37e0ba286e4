"""Stores that all cache nodes of a pool share, behind their disks: what a node is told of them, and the Secrets that open them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.common import quantity_bytes
from kvcommons_operator.api.tiers import RemoteS3, SecondaryTier, TierType
from kvcommons_operator.build import pods
from kvcommons_operator.build.pool import Pool

STORES_PATH: Final = "/etc/kvcommons/stores"
VOLUME: Final = "kvcommons-store"
NAME_CHARACTERS_MAX: Final = 48
SHARD_BYTES: Final = 1 << 20
KNOWN_MAX: Final = 1 << 20
KNOWN_MIN: Final = 1 << 14
KNOWN_BYTES: Final = 400
"""A node remembers the name of every shard that it has met there."""
QUEUE_BYTES: Final = 64 << 20
"""Of writes that wait, and as much of reads."""


@dataclass(frozen=True, kw_only=True)
class Stores:
    """What the stores add to a cache node's pod; nothing where there are none."""

    told: list[dict[str, Any]] = field(default_factory=list)
    """Entries of `node.tiers`, nearest first."""
    mounts: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)


def memory_bytes(pool: Pool) -> int:
    """What a node needs to talk to them and to know what is there."""
    return sum(_known(tier) * KNOWN_BYTES + 2 * QUEUE_BYTES for _, tier in _stores(pool))


def parts(pool: Pool) -> Stores:
    """All stores, each with a folder of files of its Secret."""
    found = Stores()
    own = f"{pool.owner.namespace}.{names.shortened(pool.owner.name, NAME_CHARACTERS_MAX)}/"
    for at, tier in _stores(pool):
        volume, place = f"{VOLUME}-{at}", f"{STORES_PATH}/{at}"
        secret: tuple[str, list[tuple[str, str]]] | None = None
        if tier.redis is not None:
            ref = tier.redis.url_secret_ref
            secret = (ref.name, [(ref.key, "url")])
            entry = {"type": "redis", "url_file": f"{place}/url", "prefix": f"kvc/{own}"}
        elif tier.s3 is not None:
            entry = _bucket(tier.s3, own, place)
            if tier.s3.credentials_secret_ref is not None:
                keys = [(key, key) for key in ("accessKeyId", "secretAccessKey")]
                secret = (tier.s3.credentials_secret_ref.name, keys)
        else:
            continue
        numbers = {"known_shards_max": _known(tier), "queue_bytes_max": QUEUE_BYTES}
        found.told.append({**entry, "capacity_bytes": quantity_bytes(tier.capacity), **numbers})
        if secret is not None:
            found.mounts.append(pods.mount(volume, place, read_only=True))
            found.volumes.append(pods.secret_volume(volume, *secret))
    return found


def _stores(pool: Pool) -> list[tuple[int, SecondaryTier]]:
    return [(at, tier) for at, tier in enumerate(pool.spec.tiers.secondary) if tier.type == TierType.REMOTE]


def _known(tier: SecondaryTier) -> int:
    return min(KNOWN_MAX, max(KNOWN_MIN, quantity_bytes(tier.capacity) // SHARD_BYTES))


def _bucket(given: RemoteS3, own: str, place: str) -> dict[str, Any]:
    told: dict[str, Any] = {"type": "s3", "bucket": given.bucket, "prefix": f"{given.prefix.rstrip('/')}/" if given.prefix else own}
    if given.endpoint is not None:
        told["endpoint"] = given.endpoint
    if given.region is not None:
        told["region"] = given.region
    if given.credentials_secret_ref is not None:
        told |= {
            "access_key_id_file": f"{place}/accessKeyId",
            "secret_access_key_file": f"{place}/secretAccessKey",
        }
    return told
