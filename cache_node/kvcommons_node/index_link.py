"""The node's membership and publishing in Redis: the core's words for it, said by ``kvcommons_core.index``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from kvcommons_core.errors import LimitExceededError
from kvcommons_core.index.publisher import NodeIndex, Published
from kvcommons_core.index.schema import MemberInfo, MemberKind, Tier
from kvcommons_core.settings_values import without_password

from kvcommons_node.api.models import IndexStatus
from kvcommons_node.plan import StartPlan
from kvcommons_node.seam import INVENTORY_PAGE_ITEMS_MAX, Core

MARK_SECONDS = 0.1
MARKS_MAX = 1_024
WATCH_SECONDS = 0.5
TIERS = {"memory": Tier.MEMORY, "disk": Tier.DISK, "redis": Tier.PEER, "s3": Tier.PEER}
"""The core's names of tiers, in the index' words."""
BEHIND = 1 << 62
"""Set in a cursor of the inventory once memory was told whole, and tiers behind it are."""

logger = logging.getLogger(__name__)


class Lag:
    """How long the oldest waiting word has waited: a mark every 0.1 s says how many words had been put by then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque(maxlen=MARKS_MAX)

    def put(self, words: int) -> None:
        """:param words: how many have been put so far, with the one that is put now."""
        now = self._clock()
        if not self._marks or now - self._marks[-1][1] >= MARK_SECONDS:
            self._marks.append((words, now))

    def seconds(self, words: int, waiting: int) -> float:
        """:param words: how many have been put so far, of which so many wait."""
        while self._marks and (not waiting or self._marks[0][0] <= words - waiting):
            self._marks.popleft()
        return self._clock() - self._marks[0][1] if self._marks else 0.0


class Standing:
    """Whether the index is reached, since when, and what was wrong the last time that it was not."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = without_password(url)
        self.last_error = ""
        self._clock = clock
        self._connected = False
        self._since = clock()

    def see(self, connected: bool, error: str) -> None:
        """How it stands now; called often, so that the time of a change is known."""
        if connected != self._connected:
            self._connected, self._since = connected, self._clock()
        if error:
            self.last_error = error.removeprefix(f"Redis at {self.url}: ")  # where it is stands beside it

    @property
    def seconds(self) -> float:
        return self._clock() - self._since

    def words(self, place: str) -> str:
        """For a person. :param place: which member this is, once it is one."""
        if self._connected:
            return f"connected to {self.url} for {self.seconds:.0f} s, {place}"
        why = f" ({self.last_error})" if self.last_error else ""
        return f"{self.url} has not been reached for {self.seconds:.0f} s{why}; trying again every second"


class RedisIndex:
    """An index link to Redis. Nothing here waits for it: words queue up, and a full queue begins a new epoch."""

    def __init__(self, plan: StartPlan, core: Core) -> None:
        self._core = core
        self._published = 0
        self._unpublished = 0
        self._words = 0
        self._lag = Lag()
        address = plan.address or f"{plan.control_host}:{plan.control_port}"
        info = MemberInfo(
            name=plan.node_id,
            kind=MemberKind.NODE,
            address=address,
            node=plan.node_id,
            zone=plan.zone,
            capacity_bytes=plan.arena_bytes,
            peer=plan.peer_address,
        )
        self._index = NodeIndex(plan.index, info, self._inventory)
        self._standing = Standing(plan.index.url)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._index.start()
        self._watching = asyncio.create_task(self._watch(), name="index-standing")

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._index.stop()

    async def _watch(self) -> None:
        """See every change, and say it once in the log."""
        said: bool | None = None
        while True:
            state = self.status()
            connected = state.state == "connected"
            if connected != said and (connected or said is not None or self._standing.last_error):
                said = connected
                logger.log(logging.INFO if connected else logging.WARNING, "index: %s", state.detail)
            await asyncio.sleep(WATCH_SECONDS)

    def committed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None:
        self._published += 1
        self._index.publish(key, text_keys)
        self._count(1 + len(text_keys))

    def freed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None:
        self._unpublished += 1
        self._index.unpublish(key, text_keys)
        self._count(1 + len(text_keys))

    def placed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...], tier: str) -> None:
        self._index.publish(key, text_keys, TIERS.get(tier, Tier.DISK))
        self._count(1 + len(text_keys))

    def feedback(self, report: str) -> None:
        try:
            self._index.tell(report)
        except LimitExceededError as error:
            logger.warning("a report is not passed on: %s", error)

    def begin_epoch(self, reason: str) -> None:
        self._index.fence(reason)

    async def fence_members(self, members: list[str], reason: str) -> list[str]:
        known = await self._index.keeper.void(members)
        if known:
            logger.info("fenced %s: %s", ", ".join(known), reason)
        return known

    async def hold(self) -> None:
        await self._index.hold()

    def release(self) -> None:
        self._index.release()

    def status(self) -> IndexStatus:
        member, connected = self._index.member, self._index.joined
        self._standing.see(connected, self._index.last_error)
        slot = f" in slot {member.tenure.slot}, epoch {member.tenure.epoch}" if member.tenure is not None else ""
        return IndexStatus(
            state="connected" if connected else "disconnected",
            detail=(
                "left on request (/v1/fence): serving this machine's engines only, until the next start"
                if self._index.held
                else self._standing.words(f"as member {member.info.name}{slot}")
            ),
            url=self._standing.url,
            since_seconds=round(self._standing.seconds, 3),
            last_error=self._standing.last_error,
            slot=member.tenure.slot if member.tenure is not None else None,
            epoch=member.tenure.epoch if member.tenure is not None else None,
            published=self._published,
            unpublished=self._unpublished,
            pending=len(self._index.stream),
            lag_seconds=round(self._lag.seconds(self._words, len(self._index.stream)), 3),
            lost=self._index.stream.stats.lost,
            epochs=dict(member.epochs),
            held=self._index.held,
        )

    def _count(self, words: int) -> None:
        self._words += words
        self._lag.put(self._words)

    def _inventory(self, cursor: int, items_max: int) -> tuple[Sequence[Published], int]:
        page_max = min(items_max, INVENTORY_PAGE_ITEMS_MAX)
        if cursor & BEHIND:
            there, following = self._core.tier_inventory(cursor & ~BEHIND, page_max)
            told = [Published(key, text_keys, TIERS.get(tier, Tier.DISK)) for key, _, text_keys, tier in there]
            return told, following | BEHIND if following else 0
        items, following = self._core.inventory(cursor, page_max)
        return [Published(key, text_keys) for key, _, text_keys in items], following or BEHIND
