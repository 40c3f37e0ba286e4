"""What the schema accepts but this version does not do yet, in one table: refused, or ignored with a word about it.

Refused is what would break a promise were it passed over in silence (isolation, capacity, another engine); ignored is what only makes
things slower or less exact. The operator shows the first as Accepted=False, the second in Accepted's message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from kvcommons_operator.api.common import quantity_bytes
from kvcommons_operator.api.deployment import InferenceDeploymentSpec
from kvcommons_operator.api.pool import KVCachePoolSpec
from kvcommons_operator.api.tiers import SecondaryTier

REASON: Final = "NotBuiltYet"


class Verdict(StrEnum):
    """What becomes of a resource that asks for it."""

    REFUSED = "Refused"
    IGNORED = "Ignored"


class Unbuilt(NamedTuple):
    """Something that a resource asks for and this version does not do."""

    field: str
    """Path, such as spec.engine.type."""
    reason: str
    message: str
    """What is not there, and what to write meanwhile."""
    verdict: Verdict


@dataclass(frozen=True)
class Gap:
    """One line of the table."""

    field: str
    asked: Callable[[Any], bool]
    message: str
    verdict: Verdict = Verdict.REFUSED


PREFIX_CHARACTERS_MAX: Final = 256
_FOLDERS: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)*([A-Za-z0-9][A-Za-z0-9._-]*)?")


def _has_redis(tier: SecondaryTier) -> bool:
    return tier.redis is not None


def _has_s3(tier: SecondaryTier) -> bool:
    return tier.s3 is not None


def _is_folders(prefix: str) -> bool:
    """As a cache node takes it, with a slash at its end."""
    return len(prefix) < PREFIX_CHARACTERS_MAX and _FOLDERS.fullmatch(prefix) is not None


def _disks_behind_stores(tiers: Sequence[SecondaryTier]) -> bool:
    types = [tier.type for tier in tiers]
    return types != sorted(types, key=lambda kind: kind != "disk")


def _kept_as_is(spec: KVCachePoolSpec) -> bool:
    """Something is to be made smaller that is not: where there is no such tier at all, nothing is."""
    there = {"memory", *(tier.type.value for tier in spec.tiers.secondary)}
    return {where.value for where in spec.compression.tiers} & there != {"disk"}


POOL_GAPS: Final = (
    Gap(
        "spec.tiers.secondary",
        lambda spec: _disks_behind_stores(spec.tiers.secondary),
        "a disk behind a store that nodes share is not built; put the disks first: they are nearer",
    ),
    Gap(
        "spec.tiers.secondary",
        lambda spec: any(sum(map(has, spec.tiers.secondary)) > 1 for has in (_has_redis, _has_s3)),
        "several stores of one kind are not built yet; give one Redis and one bucket at most",
    ),
    Gap(
        "spec.tiers.secondary[].s3.prefix",
        lambda spec: any(tier.s3 is not None and not _is_folders(tier.s3.prefix) for tier in spec.tiers.secondary),
        "a prefix must be folders such as team-a/kv, each of which begins with a letter or a digit, of 255 characters at most",
    ),
    Gap(
        "spec.tiers.secondary[].capacity",
        lambda spec: len({quantity_bytes(tier.capacity) for tier in spec.tiers.secondary if tier.type == "disk"}) > 1,
        "disks of several sizes are not built yet; give all disk tiers the same capacity: together they are one tier",
    ),
    Gap(
        "spec.tiers.secondary[].medium",
        lambda spec: any(tier.medium not in (None, "nvme") for tier in spec.tiers.secondary),
        "every disk is driven as an nvme is",
        Verdict.IGNORED,
    ),
    Gap(
        "spec.tiers.memory.hugePages",
        lambda spec: spec.tiers.memory.huge_pages == "1Gi",
        "huge pages of 1Gi are not built yet; use 2Mi",
    ),
    Gap(
        "spec.compression",
        lambda spec: spec.compression.codec != "none" and _kept_as_is(spec),
        "blocks are made smaller on disks alone; in memory and in stores that nodes share they are kept as they are",
        Verdict.IGNORED,
    ),
    Gap(
        "spec.transport.type",
        lambda spec: spec.transport.type == "nixl",
        "blocks go between cache nodes by TCP only; use tcp",
    ),
    Gap(
        "spec.tenancy.quotas",
        lambda spec: bool(spec.tenancy.quotas),
        "shares of single tenants are not built yet; give one for all of them (spec.tenancy.tenantPercentMax), or each tenant a pool",
    ),
)

DEPLOYMENT_GAPS: Final = (
    Gap(
        "spec.engine.type",
        lambda spec: spec.engine.type == "sglang",
        "the connector for SGLang is not built yet; use vllm",
    ),
    Gap(
        "spec.engine.nodesPerReplica",
        lambda spec: spec.engine.nodes_per_replica > 1 and spec.pool_ref is not None,
        "an engine spread over nodes can't use a pool yet; leave poolRef out, or keep each replica on one node",
    ),
    Gap(
        "spec.routing.failureMode",
        lambda spec: spec.routing.failure_mode == "FailClosed",
        "routers go on without the index; use FailOpen",
    ),
    Gap(
        "spec.gateway.inferencePool",
        lambda spec: spec.gateway is not None and spec.gateway.inference_pool is not None,
        "the endpoint picker is not built yet; use gateway.httpRoute, which goes through the router",
    ),
)


def unbuilt(spec: KVCachePoolSpec | InferenceDeploymentSpec) -> list[Unbuilt]:
    """What of this spec is not built yet, in the table's order; `refused` picks what the resource is not accepted for."""
    gaps = POOL_GAPS if isinstance(spec, KVCachePoolSpec) else DEPLOYMENT_GAPS
    return [Unbuilt(gap.field, REASON, gap.message, gap.verdict) for gap in gaps if gap.asked(spec)]


def refused(spec: KVCachePoolSpec | InferenceDeploymentSpec) -> list[Unbuilt]:
    """What of this spec is not built yet and stands in the way of accepting it."""
    return [found for found in unbuilt(spec) if found.verdict is Verdict.REFUSED]
