"""What a driver needs of a store, and how a store says no. The client libraries' exceptions end in their modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvcommons_core.errors import KvCommonsError


class StoreError(KvCommonsError):
    """Base of what a store says instead of an answer. Messages hold addresses, and no credentials."""


class StoreAwayError(StoreError):
    """No connection, or no answer in time. Nothing more is asked of the store for a while."""


class StoreRefusedError(StoreError):
    """The store answers, and refuses this. A few in a row count as being away."""


class StoreFullError(StoreError):
    """The store has no room. It is written to again after a while."""


class Store(Protocol):
    """One store; used by several threads at once. Each call ends within the time-out that the store was opened with."""

    def put(self, name: str, content: bytes, ttl_ms: int) -> bool:
        """False: an object of this name and size is there already, and was left."""
        ...

    def get(self, name: str) -> bytes | memoryview | None:
        """None: it is not there."""
        ...

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Of each object in bytes, 0 where it is not there."""
        ...

    def remove(self, names: Sequence[str]) -> None: ...

    def clear(self, prefix: str, seconds_max: float) -> None:
        """Removes whatever begins with `prefix`.

        :raises StoreRefusedError: if time was up before the end; what was removed stays so."""
        ...

    def ping(self) -> None: ...

    def close(self) -> None: ...
