"""A node's side of the index: what it holds is told after the commit, what it frees is told in the same ordered stream, nobody waits.

Whenever the index may have lost or kept something wrong (a new server, a flush, a lost lease, too much waiting, missed events), the member
takes a new epoch and tells its whole inventory again, at a bounded rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from kvcommons_core import limits
from kvcommons_core.errors import LimitExceededError
from kvcommons_core.index import schema
from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.membership import MembershipKeeper, MemberState
from kvcommons_core.index.schema import Holder, MemberInfo, Tier
from kvcommons_core.index.stream import ADD, REMOVE, OpStream
from kvcommons_core.index.tasks import end_tasks, spawn
from kvcommons_core.settings import IndexSettings

PAGE_ITEMS_MAX: Final = 512
REFRESHES_PER_AGE: Final = (
    2  # the inventory is told twice within the age cap, so that what is still held never ages out
)


class Published(NamedTuple):
    """One chunk that the node holds."""

    token_key: bytes
    text_keys: Sequence[int]
    tier: Tier = Tier.MEMORY


class Inventory(Protocol):
    """A page of what the node holds now. `cursor` 0 begins; the returned one is 0 at the end. Must not wait."""

    def __call__(self, cursor: int, items_max: int) -> tuple[Sequence[Published], int]: ...


class NodeIndex:
    """Publishes one member. `start` never fails for Redis; `publish` and `unpublish` never wait."""

    def __init__(
        self, settings: IndexSettings, info: MemberInfo, inventory: Inventory, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._inventory = inventory
        self._clock = clock
        self._info = info
        self._keeper_connection = IndexConnection(settings)
        self._stream_connection = IndexConnection(settings)
        self.keeper = MembershipKeeper(self._keeper_connection, settings, clock=clock)
        self.member = self.keeper.add(info, on_epoch=self._new_epoch)
        self.stream = OpStream(self._stream_connection, settings, guard=self._guard, on_loss=self.fence, clock=clock)
        self.republished = 0
        self.held = False
        """Left on request: nothing is published until `release`, or a new start."""
        self._tell_all = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def joined(self) -> bool:
        """Registered, and Redis answered last time."""
        return self.keeper.reachable and self.member.state is MemberState.JOINED

    @property
    def last_error(self) -> str:
        return self.keeper.last_error or self.stream.last_error

    async def start(self) -> None:
        """Begins in the background; Redis may be away."""
        self._tasks = [
            spawn(self.keeper.run(), name="index-membership"),
            spawn(self.stream.run(), name="index-stream"),
            spawn(self._republish_loop(), name="index-inventory"),
        ]

    async def stop(self, *, leave: bool = True, flush_seconds_max: float = 1.0) -> None:
        """Ends it. `leave` voids the member at once (a clean shutdown whose content goes too); else a restart within the lease goes on."""
        if self.joined and flush_seconds_max:
            try:
                await asyncio.wait_for(self.stream.flushed(), flush_seconds_max)
            except TimeoutError:  # what was not told is found by nobody, which is no harm
                self.stream.clear()
        await end_tasks(self._tasks)
        if self.member in self.keeper.members:
            await self.keeper.remove(self.member, leave=leave)
        await self._keeper_connection.close()
        await self._stream_connection.close()

    async def hold(self) -> None:
        """Leaves at once, until `release`: what was published is void, and nothing follows. Redis being away is no error: the lease runs out."""
        self.held = True
        self.stream.clear()
        if self.member in self.keeper.members:
            await self.keeper.remove(self.member, leave=True)

    def release(self) -> None:
        """Joins again after a hold, under a new epoch, and tells what is there. Without a hold it changes nothing."""
        if self.held:
            self.held = False
            self.member = self.keeper.add(self._info, on_epoch=self._new_epoch)

    def publish(self, token_key: bytes, text_keys: Iterable[int], tier: Tier = Tier.MEMORY) -> None:
        """A chunk is there (or moved to another tier)."""
        self._put(ADD, token_key, text_keys, tier)

    def unpublish(self, token_key: bytes, text_keys: Iterable[int]) -> None:
        """A chunk is gone from every tier."""
        self._put(REMOVE, token_key, text_keys, Tier.MEMORY)

    def fence(self, reason: str) -> None:
        """All that was published is void (cleared cache, missed events); the inventory is told again."""
        self.stream.clear()
        self.keeper.fence(self.member, reason)

    def tell(self, feedback_json: str) -> None:
        """What a request really reused, to all routers.

        :raises LimitExceededError: if the message is over 16 KiB.
        """
        raw = feedback_json.encode()
        if len(raw) > limits.FEEDBACK_BYTES_MAX:
            raise LimitExceededError("feedback bytes", len(raw), limits.FEEDBACK_BYTES_MAX, "leave details out")
        self.stream.tell(raw)

    def _put(self, word: bytes, token_key: bytes, text_keys: Iterable[int], tier: Tier) -> None:
        tenure = self.member.tenure
        if tenure is None or not self.member.settled:
            return  # the inventory will say it, once there is an epoch to say it under
        holder = word + Holder(tenure.slot, tenure.epoch, tier, 0, schema.born_of(self._clock())).pack()
        self.stream.put(schema.token_key8(token_key), holder)
        for key in text_keys:
            self.stream.put(schema.text_key8(key), holder)

    def _guard(self) -> tuple[int, bytes] | None:
        return (
            (self.member.tenure.slot, self.member.lease)
            if self.member.tenure is not None and self.member.settled
            else None
        )

    def _new_epoch(self, reason: str) -> None:
        self.stream.clear()
        self._tell_all.set()

    async def _republish_loop(self) -> None:
        refresh_seconds = self._settings.holder_age_seconds_max / REFRESHES_PER_AGE
        while True:
            try:
                await asyncio.wait_for(
                    self._tell_all.wait(), min(refresh_seconds, self._settings.holder_ttl_seconds / 2)
                )
            except TimeoutError:
                if not self.member.settled:
                    continue
            self._tell_all.clear()
            await self._republish()

    async def _republish(self) -> None:
        """Tells the inventory page by page. A page is read and put without a pause, so that a later removal comes later in the stream."""
        cursor, first = 0, True
        while (first or cursor) and not self._tell_all.is_set():
            first = False
            items, cursor = self._inventory(cursor, PAGE_ITEMS_MAX)
            keys = 0
            for item in items:
                self._put(ADD, item.token_key, item.text_keys, item.tier)
                keys += 1 + len(item.text_keys)
            self.republished += len(items)
            await asyncio.sleep(keys / self._settings.republish_keys_per_second)
