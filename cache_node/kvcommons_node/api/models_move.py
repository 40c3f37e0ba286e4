"""Requests that change where chunks are."""

from __future__ import annotations

from pydantic import Field

from kvcommons_node.api.base import Chain
from kvcommons_node.api.models_jobs import JobName
from kvcommons_node.api.models_select import PlaceName


class MoveRequest(Chain):
    """Chunks of one chain, given from its first chunk on, from one place of this node to another."""

    source: PlaceName = Field(description="memory, or a tier as /v1/stats lists it.")
    target: PlaceName = Field(description="The other one.")
    keep: bool = Field(default=False, description="Copy: the source keeps them.")
    name: JobName | None = Field(
        default=None,
        description="A job of this name that waits, runs or is done is answered with, and nothing is begun: a call may be repeated.",
    )
