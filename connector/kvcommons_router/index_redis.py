"""The shared index in Redis as this router uses it: lookups before the choice, intents at dispatch, truth by feedback."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Final

from kvcommons_core import limits
from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index import (
    EngineRecorder,
    FeedbackListener,
    Hit,
    IndexReader,
    Lookup,
    LookupStatus,
    MemberInfo,
    MemberKind,
    Tenure,
    Tier,
    schema,
)
from kvcommons_core.index.stream import REMOVE

from kvcommons_router.feedback import Expectations
from kvcommons_router.index import Depth, Index, OwnMemory
from kvcommons_router.usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvcommons_core.index import Member

    from kvcommons_router.app import App
    from kvcommons_router.exchange import Exchange
    from kvcommons_router.fleet import Instance

CORRECTIONS_AT_ONCE_MAX: Final = 16
SOURCES: Final = {
    LookupStatus.MIRROR: 0,
    LookupStatus.REDIS: 1,
    LookupStatus.LATE: 2,
    LookupStatus.AWAY: 3,
}


def make_index(app: App) -> Index:
    """The index of the settings: in Redis, or what this process remembers."""
    return RedisIndex(app) if app.index_settings.url else OwnMemory(app)


def member_name(instance: str) -> str:
    """An instance's name in the pool; nodes have names of their own."""
    return f"engine:{instance}"


class Reader(IndexReader):
    """A reader that answers from its mirror without a task."""

    def peek(self, keys: Sequence[bytes]) -> Lookup | None:
        """The whole answer, if the mirror has it or nothing else can be had."""
        probes, complete = self._from_mirror(keys)
        if complete:
            return self._answer(LookupStatus.MIRROR, probes)
        return None if self.view.reachable else self._answer(LookupStatus.AWAY, probes)

    async def holders(self, keys: Sequence[bytes]) -> list[bytes]:
        """What Redis holds now, past the mirror.

        :raises IndexUnavailableError: if Redis does not answer.
        """
        replies = await self._connection.run([("GET", self._names.holders(key8)) for key8 in keys])
        return [reply if isinstance(reply, bytes) else b"" for reply in replies]


class Places:
    """Which slots of the index are our instances, and which are the nodes that they are on."""

    def __init__(self, instances: list[Instance]) -> None:
        self._instances = instances
        self._read: Mapping[str, Member] | None = None
        self._engines: dict[int, int] = {}
        self._nodes: dict[int, list[int]] = {}
        self._attached: list[int] = []
        self._slots: dict[int, int] = {}

    def follow(self, by_name: Mapping[str, Member]) -> None:
        """Takes the members as they are now; nothing to do while they are the same object."""
        if by_name is self._read:
            return
        self._read = by_name
        self._engines, self._nodes, self._attached, self._slots = {}, {}, [], {}
        for instance in self._instances:
            engine = by_name.get(member_name(instance.name))
            if engine is not None:
                self._engines[engine.slot] = instance.index
            node = by_name.get(instance.settings.node) if instance.settings.node else None
            if node is not None:
                self._nodes.setdefault(node.slot, []).append(instance.index)
                self._attached.append(instance.index)
                self._slots[instance.index] = node.slot

    def node_slot(self, index: int) -> int | None:
        """The slot of the node that an instance is attached to."""
        return self._slots.get(index)

    def depths(self, hits: Mapping[int, Hit]) -> dict[int, Depth]:
        """What each instance finds, from what each member holds. Who has a node finds at it what any other node has."""
        engine: dict[int, int] = {}
        memory: dict[int, int] = {}
        disk: dict[int, int] = {}
        anywhere = 0
        for slot, hit in hits.items():
            index = self._engines.get(slot)
            if index is not None:
                engine[index] = hit.depth
                continue
            anywhere = max(anywhere, hit.depth)
            _, in_memory, on_disk, _ = hit.by_tier
            for index in self._nodes.get(slot, ()):
                memory[index] = in_memory
                disk[index] = in_memory + on_disk
        found: dict[int, Depth] = {}
        for index in self._attached if anywhere else ():
            own = engine.pop(index, 0)
            near = max(own, memory.get(index, 0))
            slow = max(near, disk.get(index, 0))
            found[index] = Depth(own, near, slow, max(slow, anywhere))
        for index, own in engine.items():
            found[index] = Depth(own, own, own, own)
        return found


class RedisIndex:
    """The index that all routers and nodes of a pool share. Nothing here makes a request wait but one bounded lookup."""

    def __init__(self, app: App) -> None:
        self._app = app
        settings = app.index_settings
        self.reader = Reader(settings)
        self.recorder = EngineRecorder(settings, self.reader)
        self._instances = app.fleet.instances
        self._places = Places(self._instances)
        self.expectations = Expectations(app, self)
        self._listener = FeedbackListener(settings, self.expectations.take)
        self._tasks: list[asyncio.Task[None]] = []
        self.corrections = 0  # under way

    async def start(self) -> None:
        """Begins; Redis may come later."""
        for instance in self._instances:
            one = instance.settings
            self.recorder.add(
                MemberInfo(
                    name=member_name(one.name),
                    kind=MemberKind.ENGINE,
                    address=one.url,
                    node=one.node,
                    zone=one.zone,
                    model=one.names[0],
                    dp_rank=-1 if one.dp_rank is None else one.dp_rank,
                )
            )
        await self.reader.start()
        await self.recorder.start()
        self._tasks = [asyncio.create_task(self._listener.run(), name="index-feedback")]

    async def close(self) -> None:
        """Ends; the engines stay members while other routers keep them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.close()
        await self.recorder.stop()
        await self.reader.stop()

    def subscribed(self) -> bool:
        """Whether reports of the connectors are heard."""
        return self._listener.subscribed.is_set()

    def observe(self) -> None:
        """Shows how the index is, in the metrics."""
        layout, row = self._app.layout, self._app.recorder.row
        row[layout.index_up] = int(self.reader.view.reachable)
        row[layout.mirror_entries] = len(self.reader.mirror)

    def revived(self, instance: Instance) -> None:
        """An instance that was down serves again: it has likely been started anew, and holds nothing."""
        self.recorder.fence(member_name(instance.name), "was_down")

    def locate(self, exchange: Exchange) -> None:
        """Asks the mirror, and Redis for the rest."""
        keys = keys8(exchange.text_keys)
        exchange.keys8 = keys
        answer = self.reader.peek(keys)
        if answer is not None:
            self._located(exchange, answer)
        else:
            self._app.spawn(self._ask(exchange, keys))

    async def _ask(self, exchange: Exchange, keys: Sequence[bytes]) -> None:
        begun = self._app.now()
        answer = await self.reader.lookup(keys)
        self._app.recorder.observe_lookup(self._app.now() - begun)
        self._located(exchange, answer)

    def _located(self, exchange: Exchange, answer: Lookup) -> None:
        app = self._app
        app.recorder.count(app.layout.lookups + SOURCES[answer.status])
        if answer.status is LookupStatus.AWAY:
            exchange.located(None)
            return
        self._places.follow(self.reader.view.by_name)
        exchange.located(self._places.depths(answer.hits))

    def dispatched(self, exchange: Exchange, instance: Instance) -> None:
        """The instance will hold the whole text: said now, not when it does."""
        keys = exchange.keys8 or keys8(exchange.text_keys)
        depth = exchange.depth
        fresh = keys[depth.engine :] if depth is not None else keys
        app = self._app
        if fresh:
            sent = self.recorder.record(member_name(instance.name), fresh)
            app.recorder.count(app.layout.intents + (0 if sent else 1), len(fresh))
        exchange.intended = fresh
        self.expectations.expect(exchange, instance, keys)

    def failed(self, exchange: Exchange, instance: Instance) -> None:
        """The instance did not begin to answer, so it does not hold what was said that it would."""
        if exchange.intended:
            self.recorder.retract(member_name(instance.name), exchange.intended)
        self.expectations.forget(exchange.request_id)

    def answered(self, exchange: Exchange, instance: Instance) -> None:
        """Where no connector reports, the answer itself may say how much was reused."""
        if self.expectations.reports:
            return
        usage = usage_of(exchange.tail)
        if usage is not None:
            self.expectations.take_usage(exchange.request_id, usage)

    def disbelieve(self, instance: Instance, keys: Sequence[bytes], dispatch_born: int) -> bool:
        """Takes back that an instance's node holds these, where it was said before a request that did not find them."""
        slot = self._places.node_slot(instance.index)
        if slot is None or self.corrections >= CORRECTIONS_AT_ONCE_MAX:
            return False
        self.corrections += 1
        self._app.spawn(self._take_back(slot, keys, dispatch_born))
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


def keys8(keys: Sequence[int]) -> list[bytes]:
    """Text keys as the index names them."""
    count = len(keys)
    packed = struct.pack(f"<{count}Q", *keys)
    return [packed[at : at + 8] for at in range(0, count * 8, 8)]


if limits.HOLDER_BYTES != 8:
    raise AssertionError("a key of the index has 8 bytes")
