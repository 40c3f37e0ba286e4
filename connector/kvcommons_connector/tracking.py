"""What the scheduler's side remembers of a request, and the seam to the node."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvcommons_connector.identity import RequestIdentity, TextHints
from kvcommons_connector.timings import Timings


class NodeClient(Protocol):
    """The part of `_native.Client` that the scheduler's side speaks to. Tests put a fake here, at the wire."""

    def ensure_connected(self) -> bool: ...
    @property
    def multi_tenant(self) -> bool: ...
    @property
    def has_tiers(self) -> bool: ...
    @property
    def namespace_secret(self) -> bytes: ...
    @property
    def fingerprint(self) -> bytes:
        """The session's, which the node's setting of codecs may have changed; empty: as it was declared."""
        ...

    @property
    def attach_count(self) -> int: ...
    def lookup(self, keys: bytes, tenant: int = ..., lease: bool = ...) -> tuple[str, int, int, int]: ...
    def release(self, lease: int) -> str: ...
    def feedback(self, json: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that decide where a hit may end."""

    chunk_tokens: int
    block_tokens: int
    fingerprint: bytes
    asynchronous: bool
    """Load between steps, never beside a forward: where a failed load beside it could not be taken back."""
    ranks: int = 1
    dp_rank: int | None = None
    """Which data-parallel rank this is, where there are several: a cache of its own beside the others'."""
    model: str = ""
    """As clients call it: what the node's control API goes by."""

    @property
    def blocks_per_chunk(self) -> int:
        """Engine blocks in a chunk."""
        return self.chunk_tokens // self.block_tokens


@dataclass(slots=True)
class Answer:
    """What the node last said about a request, and the lease that holds it."""

    lease: int
    hit_chunks: int
    pending_chunks: int
    asked_chunks: int
    at_ms: float
    attach_count: int


@dataclass(slots=True)
class Tracked:
    """One request, from its arrival to its end."""

    request_id: str
    prompt_tokens: int
    identity: RequestIdentity
    hints: TextHints
    eviction_hints: int = 0
    """What the request says of its chunks' future; see hints.py."""
    reason: str = ""
    """Why it can't be cached; empty if it can."""
    root: bytes = b""
    tenant: int = 0
    keys: bytearray = field(default_factory=bytearray)
    block_ids: list[int] = field(default_factory=list)
    stored_chunks: int = 0
    """Leading chunks that the node has, or that a store is under way for."""
    answer: Answer | None = None
    waiting_since_ms: float | None = None
    local_tokens: int = 0
    own_tokens: int | None = None
    commons_tokens: int = 0
    jobs: dict[int, array[int]] = field(default_factory=dict)
    allocations: int = 0
    """How often the engine has given it blocks since it last began to run: twice where it waited for a load."""
    expected_tokens: int = 0
    """Tokens from the engine's own cache and from this one at the last of these."""
    load_failed: bool = False
    """What was once offered could not be loaded: this request computes the rest by itself."""
    timings: Timings | None = None
    """Where the router traces it."""
    miss: str = ""
    """Why less than all of the prompt's whole chunks came from a cache, as far as is known."""


@dataclass(slots=True)
class ScheduledRequest:
    """What one step does with one request."""

    request_id: str
    tokens: Sequence[int]
    computed_tokens: int
    scheduled_tokens: int
    new_block_ids: Sequence[int]
    replaces_blocks: bool
