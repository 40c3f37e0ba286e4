"""The pool, asked of Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kvcommons_core.errors import CorruptRecordError, IndexUnavailableError
from kvcommons_core.index import schema
from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.schema import Member, MemberKind, Names, Tier
from kvcommons_core.index.view import MembersView
from kvcommons_core.settings import IndexSettings

from kvcommons_node.pool_view import KEYS_ASKED_MAX, Place


class RedisPool:
    """Over connections of its own, so that a question never waits behind what is published."""

    def __init__(self, settings: IndexSettings, clock: Callable[[], float] = time.time) -> None:
        self._connection = IndexConnection(settings)
        self._names = Names(settings.prefix)
        self._view = MembersView(self._connection, settings)
        self._age_max = schema.age_units_max(settings.holder_age_seconds_max)
        self._clock = clock

    async def members(self) -> list[Member]:
        await self._view.poll()
        if not self._view.reachable:
            raise IndexUnavailableError(self._view.last_error)
        return sorted(self._view.members.values(), key=lambda member: member.info.name)

    async def absent(self) -> list[str]:
        alive = self._view.by_name
        recorded = [one.info for one in self._view.recorded.values()]
        return sorted(one.name for one in recorded if one.kind is MemberKind.NODE and one.name not in alive)

    async def holders(self, keys: Sequence[bytes]) -> list[tuple[Place, ...]]:
        names = {(one.slot, one.epoch): one.info.name for one in await self.members()}
        asked = [("GET", self._names.holders(schema.token_key8(key))) for key in keys[:KEYS_ASKED_MAX]]
        replies = await self._connection.run(asked) if asked else []
        return [self._places(reply if isinstance(reply, bytes) else b"", names) for reply in replies]

    async def close(self) -> None:
        await self._connection.close()

    def _places(self, packed: bytes, names: dict[tuple[int, int], str]) -> tuple[Place, ...]:
        now = schema.born_of(self._clock())
        try:
            held = schema.unpack_holders(packed)
        except CorruptRecordError:  # somebody else wrote under our prefix: as if nobody held it
            return ()
        return tuple(
            sorted(
                (names[holder.slot, holder.epoch], Tier(holder.tier).name.lower())
                for holder in held
                if (holder.slot, holder.epoch) in names
                and schema.age_units(holder.born, now) <= self._age_max
                and holder.tier in {tier.value for tier in Tier}
            )
        )
