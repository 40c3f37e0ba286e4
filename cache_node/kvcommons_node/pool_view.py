"""The pool as the index knows it: who is in it, and who holds a chunk. Read when somebody asks, never ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from kvcommons_core.index.schema import Member

from kvcommons_node.api import refusals_work

KEYS_ASKED_MAX: Final = 4_096
"""Of one lookup: an answer of Redis for each."""

Place = tuple[str, str]
"""A member's name and the tier."""


class PoolView(Protocol):
    """What is asked of the pool."""

    async def members(self) -> list[Member]:
        """Those that live, by name.

        :raises IndexUnavailableError: if Redis does not answer. :raises Refusal: without an index."""
        ...

    async def absent(self) -> list[str]:
        """Names of nodes that are in the index and whose lease has ended, as `members` last saw it."""
        ...

    async def holders(self, keys: Sequence[bytes]) -> list[tuple[Place, ...]]:
        """Who holds each of these token keys (KEYS_ASKED_MAX at most), by name.

        :raises IndexUnavailableError: if Redis does not answer. :raises Refusal: without an index."""
        ...

    async def close(self) -> None: ...


class NoPool:
    """A node without an index is alone."""

    async def members(self) -> list[Member]:
        raise refusals_work.no_index()

    async def absent(self) -> list[str]:
        return []

    async def holders(self, keys: Sequence[bytes]) -> list[tuple[Place, ...]]:
        raise refusals_work.no_index()

    async def close(self) -> None: ...
