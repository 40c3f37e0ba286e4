"""How deep each instance finds a chain, from the holders of its keys. Pure, and quick: it runs for each request.

A key's holders become four sets of instances, as bits by index: who has it in its own cache; or in its node's memory;
or on its node's disk; or could fetch it from another node. A chain is found as deep as an instance is in the set of
every key from the first one on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from kvcommons_core.errors import CorruptRecordError
from kvcommons_core.index import Member, Tier, schema
from kvcommons_core.members import engine_member

from kvcommons_router.fleet import Instance
from kvcommons_router.index import Depth

KNOWN_MAX: Final = 50_000


class Reach(NamedTuple):
    """Who finds one key; each set holds the one before it."""

    engine: int
    memory: int
    disk: int
    peer: int


NOWHERE: Final = Reach(0, 0, 0, 0)


def member_name(instance: str) -> str:
    """An instance's name in the pool; nodes have names of their own."""
    return engine_member(instance)


class Places:
    """Which slots of the index are our instances and their nodes, and what a key's holders mean by that."""

    def __init__(self, instances: Sequence[Instance], age_units_max: int) -> None:
        self._instances = instances
        self._age_units_max = age_units_max
        self._read: Mapping[str, Member] | None = None
        self._void: dict[str, tuple[int, int]] = {}  # engine -> (slot, epoch) of which nothing is believed
        self._now_born = -1
        self._epochs: dict[int, int] = {}
        self._engines: dict[int, int] = {}  # slot -> bit of the instance
        self._nodes: dict[int, int] = {}  # slot -> bits of the instances that are on this node
        self._attached = 0  # bits of the instances whose node lives
        self._node_slots: dict[int, int] = {}
        self._known: dict[bytes, Reach] = {b"": NOWHERE}
        self.corrupt = 0

    def follow(self, by_name: Mapping[str, Member], now_born: int) -> None:
        """Takes the members and the time as they are now; mostly nothing has changed."""
        if by_name is not self._read:
            self._read = by_name
            self._take(by_name)
        if now_born != self._now_born:
            self._now_born = now_born
            self._known = {b"": NOWHERE}

    def _take(self, by_name: Mapping[str, Member]) -> None:
        epochs = {member.slot: member.epoch for member in by_name.values()}
        engines: dict[int, int] = {}
        nodes = {member.slot: 0 for name, member in by_name.items() if not name.startswith(member_name(""))}
        attached = 0
        node_slots: dict[int, int] = {}
        for instance in self._instances:
            bit = 1 << instance.index
            engine = by_name.get(member_name(instance.name))
            if engine is not None and self._void.get(instance.name) != (engine.slot, engine.epoch):
                engines[engine.slot] = bit
            node = by_name.get(instance.settings.node) if instance.settings.node else None
            if node is not None:
                nodes[node.slot] = nodes.get(node.slot, 0) | bit
                attached |= bit
                node_slots[instance.index] = node.slot
        if (epochs, engines, nodes) != (self._epochs, self._engines, self._nodes):
            self._epochs, self._engines, self._nodes = epochs, engines, nodes
            self._known = {b"": NOWHERE}
        self._attached, self._node_slots = attached, node_slots

    def changed(self) -> None:
        """The instances are others now."""
        self._read = None
        names = {instance.name for instance in self._instances}
        self._void = {name: tenure for name, tenure in self._void.items() if name in names}

    def void(self, instance: Instance) -> None:
        """Believes nothing of what an engine's cache was said to hold, until it has another epoch."""
        member = (self._read or {}).get(member_name(instance.name))
        if member is not None:
            self._void[instance.name] = (member.slot, member.epoch)
        self._read = None

    def node_slot(self, index: int) -> int | None:
        """The slot of the node that an instance is attached to."""
        return self._node_slots.get(index)

    def reach(self, packed: bytes) -> Reach:
        """Who finds a key with these holders. Equal holders, the rule along a chain, are read once."""
        known = self._known.get(packed)
        if known is None:
            if len(self._known) >= KNOWN_MAX:
                self._known = {b"": NOWHERE}
            known = self._known[packed] = self._reach(packed)
        return known

    def _reach(self, packed: bytes) -> Reach:
        engine, memory, disk, anywhere = 0, 0, 0, False
        try:
            for slot, epoch, tier, _, born in schema.iter_holders(packed):
                if self._epochs.get(slot) != epoch:
                    continue
                if schema.age_units(born, self._now_born) > self._age_units_max:
                    continue
                bit = self._engines.get(slot)
                if bit is not None:
                    engine |= bit
                    continue
                near = self._nodes.get(slot)
                if near is not None:  # else an engine of another router's, whose cache nobody can fetch from
                    anywhere = True
                    memory |= near if tier == Tier.MEMORY else 0
                    disk |= near if tier == Tier.DISK else 0
        except CorruptRecordError:  # somebody else wrote under our prefix: as if nobody held it
            self.corrupt += 1
            return NOWHERE
        memory |= engine
        disk |= memory
        return Reach(engine, memory, disk, disk | (self._attached if anywhere else 0))

    def depths(self, chain: Sequence[bytes], positions: Sequence[int] | None = None) -> dict[int, Depth]:
        """The depth of every instance that finds anything, from the holders of a chain's keys.

        `positions` says which keys these are, where not all were read, in ascending order. One that is missing is as
        the next one that is there: who holds a text holds its beginning.
        """
        if not chain or not chain[0] or (positions is not None and positions[0] != 0):
            return {}
        found: dict[int, list[int]] = {}
        last = chain[0]
        alive: Sequence[int] = self.reach(last)
        depth = 1
        for at in range(1, len(chain)):
            packed = chain[at]
            if packed != last:
                last = packed
                here = self.reach(packed)
                if here != alive:
                    if here is NOWHERE:  # mostly: a text's new end
                        break
                    alive = _narrow(found, alive, here, depth)
                    if not alive[3]:
                        break
            depth = at + 1 if positions is None else positions[at] + 1
        if not found and alive[0] == alive[3]:  # the rule where no node is attached: one set, found equally deep
            whole = Depth(depth, depth, depth, depth)
            return dict.fromkeys(_indexes(alive[0]), whole)
        _narrow(found, alive, NOWHERE, depth)
        return {index: Depth(*depths) for index, depths in found.items()}


def _narrow(found: dict[int, list[int]], alive: Sequence[int], here: Reach, depth: int) -> tuple[int, ...]:
    """Who goes on; those who don't are found as deep as this."""
    still = tuple([before & now for before, now in zip(alive, here, strict=True)])
    for tier, (before, now) in enumerate(zip(alive, still, strict=True)):
        if before != now:
            _note(found, before ^ now, tier, depth)
    return still


def _note(found: dict[int, list[int]], bits: int, tier: int, depth: int) -> None:
    for index in _indexes(bits):
        found.setdefault(index, [0, 0, 0, 0])[tier] = depth


def _indexes(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
