"""The shared index in Redis as this router uses it: lookups before the choice, intents at dispatch, truth by feedback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index import (
    EngineRecorder,
    FeedbackListener,
    IndexReader,
    LookupStatus,
    Tenure,
    Tier,
    schema,
)
from kvcommons_core.index.stream import REMOVE

from kvcommons_router.chains import Places, member_name
from kvcommons_router.context import Context
from kvcommons_router.feedback import Expectations
from kvcommons_router.fleet import Instance
from kvcommons_router.index import Index, Inquiry
from kvcommons_router.index_memory import OwnMemory
from kvcommons_router.link import Links, Values
from kvcommons_router.members import Members
from kvcommons_router.stream_link import StreamConnection
from kvcommons_router.usage import usage_of

CORRECTIONS_AT_ONCE_MAX: Final = 16
TELL_SECONDS_MAX: Final = 1.0
TELL_AGAIN_SECONDS: Final = 5.0
"""After Redis did not take, or refused, what was said to other routers."""
MIRROR, REDIS, LATE, AWAY = range(4)  # columns of the metric
SOURCES: Final = {
    LookupStatus.MIRROR: MIRROR,
    LookupStatus.REDIS: REDIS,
    LookupStatus.LATE: LATE,
    LookupStatus.AWAY: AWAY,
}


def make_index(context: Context) -> Index:
    """The index of the settings: in Redis, or what this process remembers."""
    return RedisIndex(context) if context.index_settings.url else OwnMemory(context)


class Reader(IndexReader):
    """A reader that also answers without a task: from its mirror, and through a lean link where there can be one."""

    def known(self, keys: Sequence[bytes]) -> tuple[list[bytes], bool]:
        """What the mirror has of a chain from its beginning on, and whether that is the whole answer."""
        return self.mirror.beginning(keys, self._monotonic())

    def remember(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Takes what Redis said."""
        self.mirror.put_all(keys, values, self._monotonic())

    def name(self, key8: bytes) -> bytes:
        """A key's name in Redis."""
        return self._names.holders(key8)

    async def holders(self, keys: Sequence[bytes]) -> list[bytes]:
        """What Redis holds now, past the mirror.

        :raises IndexUnavailableError: if Redis does not answer.
        """
        replies = await self._connection.run([("GET", self._names.holders(key8)) for key8 in keys])
        return [reply if isinstance(reply, bytes) else b"" for reply in replies]

    async def read(self, keys: Sequence[bytes]) -> tuple[LookupStatus, list[int], list[bytes]]:
        """A chain's holders through the core's lookup, which knows every kind of Redis and long chains."""
        answer = await self.lookup(keys)
        now = self._monotonic()
        positions: list[int] = []  # a long chain was probed, not read, so there may be gaps
        chain: list[bytes] = []
        for position, key8 in enumerate(keys):
            packed = self.mirror.get(key8, now)
            if packed is not None:
                positions.append(position)
                chain.append(packed)
                if not packed:
                    break
        return answer.status, positions, chain


class RedisIndex:
    """The index that all routers and nodes of a pool share. Nothing here makes a request wait but one bounded lookup."""

    def __init__(self, context: Context) -> None:
        self._context = context
        settings = context.index_settings
        self.reader = Reader(settings)
        self._stream_connection = StreamConnection(settings)
        self.recorder = EngineRecorder(settings, self.reader, stream_connection=self._stream_connection)
        self._instances = context.fleet.instances
        self._places = Places(self._instances, schema.age_units_max(settings.holder_age_seconds_max))
        self._links = Links(settings) if Links.can_serve(settings) else None
        self.expectations = Expectations(context, self)
        sharing = context.sharing
        self._listener = FeedbackListener(settings, self.expectations.take, sharing.take if sharing else None)
        if sharing is not None:
            sharing.send = self._tell
        self._routers = schema.Names(settings.prefix).routers
        self._telling = False
        self._tell_after = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._members = Members(self.recorder)
        self.corrections = 0  # under way

    async def start(self) -> None:
        """Begins; Redis may come later."""
        await self._members.keep(self._instances)
        await self.reader.start()
        await self.recorder.start()
        self._tasks = [asyncio.create_task(self._listener.run(), name="index-feedback")]
        if self._links is not None:
            self._tasks.append(asyncio.create_task(self._links.run(), name="index-link"))
        if self._stream_connection.links is not None:
            self._tasks.append(asyncio.create_task(self._stream_connection.links.run(), name="index-intents-link"))

    async def close(self) -> None:
        """Ends; the engines stay members while other routers keep them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._links is not None:
            self._links.close()
        if self._stream_connection.links is not None:
            self._stream_connection.links.close()
        await self._listener.close()
        await self.recorder.stop()
        await self.reader.stop()

    def _tell(self, text: bytes) -> None:
        """Says something to all routers; what can't be said at once is not said, since the next is said soon."""
        link = self._stream_connection.links.link if self._stream_connection.links is not None else None
        if self._context.loop_time() < self._tell_after:
            return
        if link is not None and link.up:
            link.ask_all([("PUBLISH", self._routers, text)], self._told, TELL_SECONDS_MAX)
        elif self.reader.view.reachable and not self._telling:
            self._telling = True
            self._context.spawn(self._tell_slowly(text))

    def _told(self, values: Values | None) -> None:
        if values is None:
            self._tell_after = self._context.loop_time() + TELL_AGAIN_SECONDS

    async def _tell_slowly(self, text: bytes) -> None:
        try:
            with contextlib.suppress(IndexUnavailableError):
                await self._stream_connection.run([("PUBLISH", self._routers, text)])
        finally:
            self._telling = False

    def subscribed(self) -> bool:
        """Whether reports of the connectors are heard."""
        return self._listener.subscribed.is_set()

    def observe(self) -> None:
        """Shows how the index is, in the metrics."""
        layout, row = self._context.layout, self._context.recorder.row
        row[layout.index_up] = int(self.reader.view.reachable)
        row[layout.mirror_entries] = len(self.reader.mirror)

    def revived(self, instance: Instance, reason: str = "was_down") -> None:
        """An instance that was down serves again: it has likely been started anew, and holds nothing."""
        self._places.void(instance)
        self.recorder.fence(member_name(instance.name), reason)

    def follow(self, gone: Sequence[Instance]) -> None:
        """Keeps those that there are now, and lets the others go."""
        self._places.changed()
        self._members.void(gone)
        if self._tasks:
            self._context.spawn(self._members.keep(self._instances))

    def locate(self, inquiry: Inquiry) -> None:
        """Asks the mirror, and Redis for what that does not know."""
        keys = inquiry.keys8
        reader = self.reader
        chain, complete = reader.known(keys)
        if complete:
            self._located(inquiry, MIRROR, chain)
            return
        if not reader.view.reachable:
            self._located(inquiry, AWAY, None)
            return
        asked = keys[len(chain) :]
        link = self._links.link if self._links is not None else None
        begun = self._context.loop_time()

        def answered(values: Values | None) -> None:
            self._context.recorder.observe_lookup(self._context.loop_time() - begun)
            if values is None or len(values) != len(asked):
                self._located(inquiry, LATE, chain)
                return
            found = [value or b"" for value in values]
            reader.remember(asked, found)
            self._located(inquiry, REDIS, chain + found)

        short = len(asked) <= limits.LOOKUP_MGET_KEYS_MAX
        if not (short and link is not None and link.mget([reader.name(key8) for key8 in asked], answered)):
            self._context.spawn(self._ask(inquiry, keys))

    async def _ask(self, inquiry: Inquiry, keys: Sequence[bytes]) -> None:
        begun = self._context.loop_time()
        status, positions, chain = await self.reader.read(keys)
        self._context.recorder.observe_lookup(self._context.loop_time() - begun)
        self._located(inquiry, SOURCES[status], None if status is LookupStatus.AWAY else chain, positions)

    def _located(
        self,
        inquiry: Inquiry,
        source: int,
        chain: Sequence[bytes] | None,
        positions: Sequence[int] | None = None,
    ) -> None:
        context = self._context
        context.recorder.count(context.layout.lookups + source)
        if chain is None:
            inquiry.located(None)
            return
        self._places.follow(self.reader.view.by_name, schema.born_of(time.time()))
        inquiry.located(self._places.depths(chain, positions))

    def dispatched(self, inquiry: Inquiry, instance: Instance) -> None:
        """The instance will hold the whole text: said now, not when it does."""
        keys = inquiry.keys8
        depth = inquiry.depth
        fresh = keys[depth.engine :] if depth is not None else keys
        context = self._context
        if fresh:
            sent = self.recorder.record(member_name(instance.name), fresh)
            context.recorder.count(context.layout.intents + (0 if sent else 1), len(fresh))
        inquiry.intended = fresh
        self.expectations.expect(inquiry, instance, keys)

    def failed(self, inquiry: Inquiry, instance: Instance) -> None:
        """The instance did not begin to answer, so it does not hold what was said that it would."""
        if inquiry.intended:
            self.recorder.retract(member_name(instance.name), inquiry.intended)
        self.expectations.forget(inquiry.request_id)

    def answered(self, inquiry: Inquiry, instance: Instance) -> None:
        """Where no connector reports, the answer itself may say how much was reused."""
        if self.expectations.reports:
            return
        usage = usage_of(inquiry.tail)
        if usage is not None:
            self.expectations.take_usage(inquiry.request_id, usage)

    def account(self, request_id: str, tenant: str) -> dict[str, object] | None:
        """What was expected of a request, and what came of it."""
        return self.expectations.account(request_id, tenant)

    def accounts(self, tenant: str, count_max: int) -> list[dict[str, object]]:
        """The same of the last ones that are over, newest first."""
        return self.expectations.accounts(tenant, count_max)

    def members(self) -> Sequence[schema.Member]:
        """Who is in the members' hash, as it was last read."""
        return tuple(self.reader.view.by_name.values())

    def confirm(self, keys: Sequence[bytes]) -> None:
        """These were really hit."""
        self.recorder.confirm(keys)

    def disbelieve(self, instance: Instance, keys: Sequence[bytes], dispatch_born: int) -> bool:
        """Takes back that an instance's node holds these, where it was said before a request that did not find them."""
        slot = self._places.node_slot(instance.index)
        if slot is None or self.corrections >= CORRECTIONS_AT_ONCE_MAX:
            return False
        self.corrections += 1
        self._context.spawn(self._take_back(slot, keys, dispatch_born))
        return True

    async def _take_back(self, slot: int, keys: Sequence[bytes], dispatch_born: int) -> None:
        try:
            held = await self.reader.holders(keys)
        except IndexUnavailableError:
            return
        finally:
            self.corrections -= 1
        for key8, packed in zip(keys, held, strict=True):
            for holder in schema.unpack_holders(packed):
                if holder.slot == slot and schema.age_units(holder.born, dispatch_born) >= 1:
                    self.recorder.stream.put(key8, REMOVE + holder.pack())
                    self.reader.note(Tenure(slot, holder.epoch), Tier(holder.tier), [key8], present=False)


if limits.HOLDER_BYTES != 8:
    raise AssertionError("a key of the index has 8 bytes")
