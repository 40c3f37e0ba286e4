"""Who belongs to the fleet: which slot each instance has, and when a slot may be another's. Pure.

Every worker counts an instance in cells that are named by its slot. The way of one through the roster:

1. It is wanted and ready: it takes the lowest free slot, under a generation of its own, and every worker uses it.
2. It is wanted and not ready (OUT): it keeps its slot and what was learnt of it, and gets nothing new.
3. It is no longer wanted (LEAVING): it gets nothing new, and what is under way ends.
4. Every worker has taken note of that, and nothing is under way there in any of them: it is off the roster, and
   workers forget it and clear its cells.
5. Every worker has taken note of that, too: the slot may be given away again.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

from kvcommons_router.settings_instances import InstanceSettings


class Presence(enum.IntEnum):
    """Where an instance stands."""

    READY = 0
    """It gets requests."""
    OUT = 1
    """It is there, and gets none."""
    LEAVING = 2
    """It will be gone once what is under way there has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a source says of an instance."""

    settings: InstanceSettings
    presence: Presence = Presence.READY
    incarnation: str = ""
    """Changes whenever the engine was started anew; empty where the source can't tell."""
    discovered: bool = False
    """Whether its end is seen by all routers alike, so that what it held is void for all."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An instance on the roster."""

    slot: int
    generation: int
    """Never the same for two tenants of one slot."""
    settings: InstanceSettings
    presence: Presence
    fences: int = 0
    """How often all that it was known to hold has become void."""
    incarnation: str = ""
    discovered: bool = False
    since: int = 0
    """The version in which it began to leave."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to an instance, for the log and the counters."""

    name: str
    what: str
    """added, changed, restarted, out, back, leaving, gone or dropped."""


class Roster:
    """The state; one process holds it, and publishes each version."""

    def __init__(self, slots_max: int, declared: Sequence[str] = (), models_max: int = 256) -> None:
        self.version = 0
        self.entries: dict[str, Entry] = {}
        self.dropped = 0
        """Instances that are wanted and found no slot."""
        self.models: dict[str, int] = {}
        """Model names and the columns they are counted in; the first that come keep theirs for good."""
        self._models_max = models_max
        self._declared = tuple(declared)
        self._slots_max = slots_max
        self._free = list(range(slots_max))
        self._resting: list[tuple[int, int]] = []  # (slot, the version without it)
        self._generation = 0
        self._name_models(self._declared)

    @property
    def declared(self) -> tuple[str, ...]:
        """Models that are served here even while nobody serves them."""
        return self._declared

    @property
    def settled(self) -> bool:
        """Whether nothing waits for the workers."""
        return not self._resting and all(entry.presence is not Presence.LEAVING for entry in self.entries.values())

    def advance(self, wanted: Iterable[Wanted]) -> list[Change]:
        """Goes on to what is wanted now."""
        changes: list[Change] = []
        before, self.entries = self.entries, dict(self.entries)
        by_name = {one.settings.name: one for one in reversed(list(wanted))}  # of two, the first counts
        for name, entry in before.items():
            self._go_on(entry, by_name.pop(name, None), changes)
        self._admit(sorted(by_name.items()), changes)
        self._count(before)
        return changes

    def release(self, applied: int, busy: Callable[[int], bool]) -> list[Change]:
        """Lets go of who is leaving, as far as the workers have followed.

        :param applied: the version that every worker has taken note of.
        :param busy: whether any worker has something under way at a slot.
        """
        changes: list[Change] = []
        before, self.entries = self.entries, dict(self.entries)
        self._rest_over(applied)
        for name, entry in before.items():
            if entry.presence is Presence.LEAVING and entry.since <= applied and not busy(entry.slot):
                del self.entries[name]
                self._resting.append((entry.slot, self.version + 1))
                changes.append(Change(name, "gone"))
        self._count(before)
        return changes

    def _count(self, before: Mapping[str, Entry]) -> None:
        same = len(before) == len(self.entries) and all(
            self.entries.get(name) is entry for name, entry in before.items()
        )
        if not same:
            self.version += 1

    def _go_on(self, entry: Entry, one: Wanted | None, changes: list[Change]) -> None:
        name = entry.settings.name
        if one is None or one.presence is Presence.LEAVING:
            if entry.presence is not Presence.LEAVING:
                self.entries[name] = dataclasses.replace(entry, presence=Presence.LEAVING, since=self.version + 1)
                changes.append(Change(name, "leaving"))
            return
        if one.presence is Presence.OUT and entry.presence is Presence.LEAVING:
            return  # a namesake that is not ready yet: it comes when it is
        restarted = bool(entry.incarnation) and one.incarnation != entry.incarnation
        if restarted:
            changes.append(Change(name, "restarted"))
        changed = one.settings is not entry.settings and one.settings != entry.settings
        if changed:
            changes.append(Change(name, "changed"))
        if one.presence is not entry.presence:
            changes.append(Change(name, "out" if one.presence is Presence.OUT else "back"))
        if not (changed or restarted or one.presence is not entry.presence or one.incarnation != entry.incarnation):
            return
        self._name_models(one.settings.names)
        self.entries[name] = dataclasses.replace(
            entry,
            settings=one.settings,
            presence=one.presence,
            fences=entry.fences + restarted,
            incarnation=one.incarnation,
            discovered=one.discovered,
            since=0,
        )

    def _rest_over(self, applied: int) -> None:
        for slot, version in self._resting:
            if version <= applied:
                heapq.heappush(self._free, slot)
        self._resting = [(slot, version) for slot, version in self._resting if version > applied]

    def _admit(self, fresh: Sequence[tuple[str, Wanted]], changes: list[Change]) -> None:
        dropped = 0
        for name, one in fresh:
            if one.presence is not Presence.READY:
                continue
            if not self._free:
                dropped += 1
                continue
            self._generation += 1
            slot = heapq.heappop(self._free)
            self._name_models(one.settings.names)
            self.entries[name] = Entry(
                slot,
                self._generation,
                one.settings,
                Presence.READY,
                incarnation=one.incarnation,
                discovered=one.discovered,
            )
            changes.append(Change(name, "added"))
        if dropped > self.dropped and not self._resting:
            changes.append(Change(f"{dropped} instances", "dropped"))
        self.dropped = dropped

    def _name_models(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.models and len(self.models) < self._models_max:
                self.models[name] = len(self.models)
