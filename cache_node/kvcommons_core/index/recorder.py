"""A router's words to the index: it keeps the engines registered as members and records at dispatch what each will hold.

Recording at dispatch, not when the engine says so: what arrives a second late costs several times the time to first token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from kvcommons_core.index import schema
from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.membership import Membership, MembershipKeeper
from kvcommons_core.index.reader import IndexReader
from kvcommons_core.index.schema import Holder, MemberInfo, MemberKind, Tier
from kvcommons_core.index.stream import ADD, KEEP, REMOVE, OpStream
from kvcommons_core.index.tasks import end_tasks, spawn
from kvcommons_core.settings import IndexSettings

LINGER_SECONDS: Final = 0.02  # a router under load dispatches many requests in this time, and tells of all at once


class EngineRecorder:
    """Members that several routers keep together, and one stream of intents for all of them. Nothing here waits or fails for Redis."""

    def __init__(
        self,
        settings: IndexSettings,
        reader: IndexReader,
        *,
        clock: Callable[[], float] = time.time,
        stream_connection: IndexConnection | None = None,
    ) -> None:
        """:param stream_connection: how intents reach Redis, where it is not the usual way."""
        self._reader = reader
        self._clock = clock
        self._keeper_connection = IndexConnection(settings)
        self._stream_connection = stream_connection or IndexConnection(settings)
        self.keeper = MembershipKeeper(self._keeper_connection, settings, clock=clock)
        self.stream = OpStream(self._stream_connection, settings, clock=clock, linger_seconds=LINGER_SECONDS)
        self._members: dict[str, Membership] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            spawn(self.keeper.run(), name="index-engines"),
            spawn(self.stream.run(), name="index-intents"),
        ]

    async def stop(self) -> None:
        """The engines live on, and other routers keep them; if there is none, their leases run out."""
        await end_tasks(self._tasks)
        await self._keeper_connection.close()
        await self._stream_connection.close()

    def add(self, info: MemberInfo) -> None:
        """Begins to keep an engine that is healthy."""
        if info.kind is not MemberKind.ENGINE:
            raise ValueError(f"member {info.name}: kind {info.kind}: nodes register themselves; a router keeps engines")
        if info.name not in self._members:
            self._members[info.name] = self.keeper.add(info, shared=True)

    async def remove(self, name: str, *, gone: bool) -> None:
        """Stops keeping an engine: `gone` for good (void at once), or only unhealthy here (its lease runs out unless others keep it)."""
        member = self._members.pop(name, None)
        if member is not None:
            await self.keeper.remove(member, leave=gone)

    def slot_of(self, name: str) -> int | None:
        """The slot under which lookups report an engine."""
        member = self._members.get(name)
        return member.tenure.slot if member is not None and member.tenure is not None and member.settled else None

    def fence(self, name: str, reason: str) -> None:
        """The engine restarted or its cache was reset: all that was recorded of it is void."""
        member = self._members.get(name)
        if member is not None:
            self.keeper.fence(member, reason)

    def record(self, name: str, keys: Iterable[bytes], tier: Tier = Tier.ENGINE) -> bool:
        """The engine is about to hold these 8-byte keys. False where it is not registered (yet)."""
        return self._say(name, ADD, list(keys), tier)

    def retract(self, name: str, keys: Iterable[bytes], tier: Tier = Tier.ENGINE) -> bool:
        """Feedback says that the engine does not hold these."""
        return self._say(name, REMOVE, list(keys), tier)

    def confirm(self, keys: Iterable[bytes]) -> None:
        """These were really hit: they are kept for another TTL (within the age cap)."""
        self.stream.put_all(list(keys), KEEP)

    def _say(self, name: str, word: bytes, keys: list[bytes], tier: Tier) -> bool:
        member = self._members.get(name)
        if member is None or member.tenure is None or not member.settled:
            return False
        self._reader.note(member.tenure, tier, keys, present=word == ADD)
        holder = word + Holder(member.tenure.slot, member.tenure.epoch, tier, 0, schema.born_of(self._clock())).pack()
        self.stream.put_all(keys, holder)
        return True
