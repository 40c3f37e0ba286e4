"""Requests and answers of the control API. The OpenAPI document is generated from these and from nothing else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from kvcommons_node.api.base import Model

MEMBERS_PER_FENCE_MAX = 256
FINGERPRINTS_SHOWN_MAX = 64
ENGINES_SHOWN_MAX = 64


class FenceRequest(Model):
    """Whose publications are void from now on."""

    members: list[Annotated[str, StringConstraints(min_length=1, max_length=253)]] = Field(
        default=[], max_length=MEMBERS_PER_FENCE_MAX, description="Names of nodes and engine instances in the index."
    )
    reason: str = Field(default="asked for", max_length=200, description="For logs.")
    hold: bool = Field(
        default=False,
        description="This node itself leaves the index: it goes on serving its engines and publishes nothing until it is restarted or let back in.",
    )
    release: bool = Field(
        default=False, description="This node takes its place in the index again after a hold. `hold` beside it wins."
    )


class FenceAnswer(Model):
    """What became of each."""

    fenced: list[str] = Field(description="Everything that these published is void.")
    unknown: list[str] = Field(description="Of these the index knows nothing: nothing had to be done.")
    held: bool = Field(description="Whether this node is out of the index until it is restarted or let back in.")


class IndexStatus(Model):
    """The node's place in the Redis index, which is a hint: the node serves without it."""

    state: Literal["off", "connected", "disconnected"] = Field(description="off: no Redis is configured.")
    detail: str = Field(description="In words: where the index is, how the node stands with it, since when, and why.")
    url: str = Field(default="", description="Address of the index, without its password.")
    since_seconds: float = Field(default=0.0, description="For how long the state has been what it is.")
    last_error: str = Field(default="", description="What Redis said, or did not, the last time that it failed.")
    slot: int | None = Field(default=None, description="The member's slot.")
    epoch: int | None = Field(default=None, description="The member's epoch; what was published under others is void.")
    published: int = Field(default=0, description="Chunks published since the start.")
    unpublished: int = Field(default=0, description="Chunks unpublished since the start.")
    pending: int = Field(default=0, description="Publications that wait for Redis.")
    lag_seconds: float = Field(default=0.0, description="For how long the oldest of them has waited, to within 0.1 s.")
    lost: int = Field(default=0, description="Publications given up because too many waited; a new epoch followed.")
    epochs: dict[str, int] = Field(default={}, description="How often a new epoch was begun, by reason.")
    held: bool = Field(default=False, description="Asked to leave the index until the next start (/v1/fence, hold).")


TierHealth = Literal["serving", "degraded", "gone"]
TIER_HEALTH: dict[str, TierHealth] = {"serving": "serving", "degraded": "degraded", "gone": "gone"}


class TierStatus(Model):
    """A place for chunks behind memory. Its failures reach an engine as misses only."""

    name: str = Field(description="disk")
    health: TierHealth = Field(description="degraded: reads but does not write, or is slow. gone: neither.")
    detail: str = Field(default="", description="Why, in words; empty while it serves.")
    counters: dict[str, int] = Field(default={}, description="Of this tier: sizes in bytes, shards, operations.")


class PeerStatus(Model):
    """Another node of the pool, as this one sees it."""

    name: str
    address: str = Field(description="Where it is asked.")
    usable: bool = Field(description="False: it failed, and nobody asks it for a while.")
    detail: str = Field(default="", description="What was wrong the last time; empty while all is well.")
    counters: dict[str, int] = Field(default={}, description="What was fetched from it, and how fast it came.")


class EngineProcess(Model):
    """A process that has a session with this node."""

    pid: int
    name: str = Field(description="As the process calls itself; empty where it cannot be seen from the node.")


class FingerprintAnswer(Model):
    """One kind of KV: a model's weights, layout and everything else that must agree."""

    fingerprint: str = Field(description="64 hexadecimal digits, for lookup and clear.")
    models: list[str] = Field(
        default=[], description="As its engines call the models they serve, once a request of one has ended."
    )
    chunks: int = Field(description="Chunks that can be hit.")
    used_bytes: int = Field(description="Of the arena.")
    engines: list[EngineProcess] = Field(description="Processes that have a session with it now; at most 64.")


class StatsAnswer(Model):
    """The node's counters and state."""

    node_id: str
    version: str
    adopted: bool = Field(description="True: the arena of the daemon before this one is being served.")
    uptime_seconds: float
    socket_path: str
    multi_tenant: bool
    index: IndexStatus
    fingerprints: list[FingerprintAnswer] = Field(
        default=[], description="What the node holds chunks or sessions of, the largest first; at most 64."
    )
    tiers: list[TierStatus] = Field(default=[], description="What is behind the memory, in the order it is asked.")
    peers: list[PeerStatus] = Field(
        default=[], description="Other nodes that it knows, those in use first; at most 64. Their bytes are fetched."
    )
    core: dict[str, int] = Field(description="Counters of the native core: bytes, slots by state, leases, outcomes.")


class HealthAnswer(Model):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyAnswer(Model):
    """Whether engines may attach. Without Redis the node is ready all the same: it serves locally, and says so."""

    ready: bool
    reason: str = Field(description="In words, when something is amiss; empty when all is well.")
    adopted: bool
    index: IndexStatus
    tiers: list[TierStatus] = Field(
        default=[], description="What is behind the memory: an ill one costs hits, no service."
    )


class ErrorDetail(Model):
    """What was wrong, where, and what to do about it."""

    type: str = Field(
        description="invalid_request, unauthorized, forbidden, not_found, too_large, quota, busy or internal."
    )
    message: str
    field: str | None = Field(default=None, description="The field that is wrong, as a dotted path.")
    value: str | None = Field(default=None, description="What it held, shortened.")
    remedy: str = Field(description="What to do.")


class ErrorAnswer(Model):
    """Every answer that is not 2xx, except of /readyz."""

    error: ErrorDetail
