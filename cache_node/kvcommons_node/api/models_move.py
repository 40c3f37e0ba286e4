"""Requests that change where chunks are."""

from __future__ import annotations

from pydantic import Field

from kvcommons_node.api.base import CHUNK_TOKENS_MAX, Chain, Model, NodeName
from kvcommons_node.api.models_jobs import JobName
from kvcommons_node.api.models_select import PlaceName

SHARDS_MAX = 256
SLOT_BYTES_MAX = 1 << 30
REPEATED = (
    "A job of this name that waits, runs or is done is answered with, and nothing is begun: a call may be repeated."
)


class MoveRequest(Chain):
    """Chunks of one chain, given from its first chunk on, from one place to another, of this node or of another one."""

    source: PlaceName | None = Field(
        default=None,
        description="memory, or a tier as /v1/stats lists it. Left out: memory; with `node` every place of this node.",
    )
    target: PlaceName = Field(default="memory", description="The other one; with `node`: memory.")
    node: NodeName | None = Field(
        default=None,
        description="To this node of the pool, which fetches them from here as a peer and verifies them; what it has then leaves the source.",
    )
    keep: bool = Field(default=False, description="Copy: the source keeps them.")
    name: JobName | None = Field(default=None, description=REPEATED)


class ShardPlace(Model):
    """The part of a chunk that one rank of an engine computes."""

    layer_begin: int = Field(ge=0, lt=1 << 15)
    layers: int = Field(ge=1, le=1 << 15)
    head_begin: int = Field(ge=0, lt=1 << 15)
    heads: int = Field(ge=1, le=1 << 15)
    slot_bytes: int = Field(ge=1, le=SLOT_BYTES_MAX)


class ChunkLayout(Model):
    """How a node keeps the chunks of an engine."""

    chunk_tokens: int = Field(ge=1, le=CHUNK_TOKENS_MAX)
    tenant: int = Field(ge=0, lt=1 << 64, description="The number that a tenant's chunks carry.")
    shards: list[ShardPlace] = Field(min_length=1, max_length=SHARDS_MAX)


class FetchRequest(Chain):
    """Chunks of one chain, given from its first chunk on, from another node's memory or disk into this one's memory.

    What a node that is asked to move chunks asks of the one where they are to go."""

    node: NodeName = Field(description="Whose they are; it keeps them.")
    layout: ChunkLayout = Field(description="As that node keeps them.")
    name: JobName | None = Field(default=None, description=REPEATED)
