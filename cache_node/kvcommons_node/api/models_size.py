"""The arena's size, as the control API speaks of it."""

from __future__ import annotations

from pydantic import Field

from kvcommons_node.api.base import Model

ARENA_BYTES_MIN = 1 << 20


class ResizeRequest(Model):
    """Another size for the arena."""

    arena_bytes: int = Field(
        ge=ARENA_BYTES_MIN, lt=1 << 44, description="What the arena is to have; whole pages of 4096 bytes."
    )
    reason: str = Field(default="asked for", max_length=200, description="For logs.")


class ResizeAnswer(Model):
    """What becomes of it."""

    before_bytes: int = Field(description="What the arena has now.")
    arena_bytes: int = Field(description="What it is to have.")
    restarts: bool = Field(
        description="The node begins anew at once: what fits is moved, and engines attach again by themselves. False: it has that size already."
    )
