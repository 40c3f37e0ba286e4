"""The node's events for whoever follows them: fanned out, bounded, and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from kvcommons_node.api import refusals

KINDS: Final = ("committed", "freed", "moved", "request", "session_opened", "session_closed", "job")
WATCHERS_MAX = 16
WAITING_MAX = 4_096
"""Events that may wait for one watcher; more are dropped, and the watcher is told how many."""

Word = tuple[str, dict[str, object]]


class Watcher:
    """One who follows. Ends when the feed is closed."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self._waiting: asyncio.Queue[Word | None] = asyncio.Queue(WAITING_MAX + 1)
        self._lost = 0

    def tell(self, word: Word) -> None:
        if self._waiting.qsize() >= WAITING_MAX:
            self._lost += 1
        else:
            self._waiting.put_nowait(word)

    def close(self) -> None:
        self._waiting.put_nowait(None)  # there is room: `tell` leaves one place

    async def words(self, idle_seconds: float) -> AsyncIterator[Word | None]:
        """Events in their order; None when nothing came for `idle_seconds`."""
        while True:
            try:
                word = await asyncio.wait_for(self._waiting.get(), idle_seconds)
            except TimeoutError:
                yield None
                continue
            if word is not None:
                yield word
            if self._lost and self._waiting.empty():  # what was dropped came behind all that waited
                lost, self._lost = self._lost, 0
                yield "gap", {"lost": lost}
            if word is None:
                return


class Feed:
    """All who follow."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    @property
    def followed(self) -> bool:
        return bool(self._watchers)

    @contextmanager
    def watch(self, kinds: str) -> Iterator[Watcher]:
        """:raises Refusal: of an unknown kind, or when too many follow."""
        wanted = [kind.strip() for kind in kinds.split(",") if kind.strip()]
        unknown = [kind for kind in wanted if kind not in KINDS]
        if unknown:
            raise refusals.unknown_kinds(", ".join(unknown), ", ".join(KINDS))
        if len(self._watchers) >= WATCHERS_MAX:
            raise refusals.too_many_watchers(WATCHERS_MAX)
        watcher = Watcher(frozenset(wanted or KINDS))
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def tell(self, kind: str, fields: dict[str, object]) -> None:
        for watcher in self._watchers:
            if kind in watcher.kinds:
                watcher.tell((kind, fields))

    def tell_all(self, kind: str, fields: dict[str, object]) -> None:
        """Whatever they asked for."""
        for watcher in self._watchers:
            watcher.tell((kind, fields))

    def close(self) -> None:
        """Everyone's stream ends."""
        for watcher in list(self._watchers):
            watcher.close()
