"""The instances of a router at run time: their connections, their load, what is learnt of them, who serves which model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kvcommons_router.health import Health
from kvcommons_router.picker import Candidate, Prefill
from kvcommons_router.pool import Pool
from kvcommons_router.rates import PrefillLearner, TokenRatio
from kvcommons_router.roster import Entry, Presence
from kvcommons_router.settings import InstanceSettings, RouterSection
from kvcommons_router.settings_instances import INSTANCES_MAX, Role
from kvcommons_router.tls import engine_tls

# Until requests are split into prefill and decode, who only prefills gets none.
ADAPTERS_MAX: Final = 16  # that an instance is believed to have loaded
SERVING_ROLES: Final = frozenset({Role.AGGREGATED, Role.DECODE})


class Instance:
    """One engine replica, or a rank of one."""

    pool: Pool
    host_lines = b""

    def __init__(self, entry: Entry, router: RouterSection, learner: PrefillLearner, *, shares: bool = False) -> None:
        self.index = entry.slot
        self.generation = entry.generation
        self.entry = entry
        self.settings = entry.settings
        self.name = entry.settings.name
        self.gone = False
        """Off the fleet: its index may be another's."""
        self._limits = router.limits
        self._authority = router.engine_ca
        self.learner = learner
        self._adapters: dict[str, None] = {}
        believed = dataclasses.replace(learner.prefill) if shares else learner.prefill
        self.candidate = Candidate(self.name.encode(), prefill=believed, adapters=self._adapters.keys())
        self._take(entry.settings)

    def uses(self, adapter: str) -> None:
        """An adapter is used here: it is loaded, as long as not too many others were used since."""
        used = self._adapters
        used.pop(adapter, None)
        used[adapter] = None
        if len(used) > ADAPTERS_MAX:
            del used[next(iter(used))]

    @property
    def ready(self) -> bool:
        """Whether it may get requests at all."""
        return self.entry.presence is Presence.READY

    def change(self, entry: Entry) -> bool:
        """Takes what became of it; whether it is another engine now, at another address."""
        before, self.entry = self.settings, entry
        moved = entry.settings.url != before.url
        if not self.ready:
            self.pool.close_idle()
        if entry.settings != before:
            self.settings = entry.settings
            if moved:
                self.pool.retire()
            self._take(entry.settings, keep_pool=not moved)
        return moved

    def _take(self, settings: InstanceSettings, *, keep_pool: bool = False) -> None:
        limits = self._limits
        if not keep_pool:
            self.pool = Pool(
                settings.host,
                settings.port,
                idle_max=limits.pool_idle_max,
                idle_seconds=limits.pool_idle_seconds,
                connect_seconds=limits.connect_seconds,
                tls=engine_tls(self._authority) if settings.https else None,
            )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        lines = b"Host: %s:%d\r\n" % (host.encode("ascii"), settings.port)
        if settings.api_key is not None:
            lines += b"Authorization: Bearer %s\r\n" % settings.api_key.encode("ascii")
        if settings.dp_rank is not None:
            lines += b"X-Data-Parallel-Rank: %d\r\n" % settings.dp_rank
        self.host_lines = lines


class Group:
    """The instances of one model, and those of them that get requests now."""

    def __init__(self, model: str, position: int) -> None:
        self.model = model
        self.position = position  # among all models; its column in the metrics
        self.members: tuple[Instance, ...] = ()
        self.usable: tuple[Instance, ...] = ()
        self.candidates: list[Candidate] = []
        self.ratio = TokenRatio()
        self.turn = 0
        self.adapter = ""
        """The model's name where it is one of several of its instances: a LoRA adapter, most likely."""

    def narrow(self, usable: Sequence[Instance]) -> None:
        """Sets who gets requests; if nobody should, everybody may: a wrong check must not stop all."""
        self.usable = tuple(usable) or self.members
        self.candidates = [member.candidate for member in self.usable]


@dataclasses.dataclass(frozen=True, slots=True)
class FleetChanges:
    """What a new roster did to the fleet."""

    added: list[Instance] = dataclasses.field(default_factory=list)
    moved: list[Instance] = dataclasses.field(default_factory=list)
    """They are at another address."""
    restarted: list[Instance] = dataclasses.field(default_factory=list)
    """They hold nothing any more."""
    gone: list[Instance] = dataclasses.field(default_factory=list)


class Fleet:
    """All instances, in the order of their slots, and by model."""

    def __init__(self, settings: RouterSection, *, shares: bool = False) -> None:
        """:param shares: whether others learn of the same replicas: then the picker believes what all have learnt."""
        self._settings = settings
        self._shares = shares
        self._by_slot: dict[int, Instance] = {}
        self._learnt: dict[str, PrefillLearner] = {}  # of those that are gone: they may come again
        self.instances: list[Instance] = []
        self.groups: dict[str, Group] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """The names that clients may ask for."""
        return tuple(self.groups)

    def follow(self, entries: Iterable[Entry], positions: Mapping[str, int], declared: Sequence[str]) -> FleetChanges:
        """Takes a roster: instances that are still there stay the same objects, and so do their models.

        Who of them is usable is to be looked at again after it, by `refresh`.
        """
        changes = FleetChanges()
        wanted = {entry.slot: entry for entry in entries}
        for slot, instance in list(self._by_slot.items()):
            entry = wanted.get(slot)
            if entry is None or entry.generation != instance.generation:
                self._remove(instance)
                changes.gone.append(instance)
            elif entry is not instance.entry:
                if entry.fences != instance.entry.fences:
                    changes.restarted.append(instance)
                if instance.change(entry):
                    changes.moved.append(instance)
        for slot, entry in wanted.items():
            if slot not in self._by_slot:
                instance = Instance(entry, self._settings, self._learner(entry.settings), shares=self._shares)
                self._by_slot[slot] = instance
                changes.added.append(instance)
        self.instances[:] = [self._by_slot[slot] for slot in sorted(self._by_slot)]
        self._regroup(positions, declared)
        return changes

    def _remove(self, instance: Instance) -> None:
        instance.gone = True
        instance.pool.retire()
        del self._by_slot[instance.index]
        self._learnt[instance.name] = instance.learner
        if len(self._learnt) > INSTANCES_MAX:
            del self._learnt[next(iter(self._learnt))]

    def _learner(self, settings: InstanceSettings) -> PrefillLearner:
        """What was learnt of it before; else a beginning: what was learnt of another replica of its model."""
        known = self._learnt.pop(settings.name, None)
        if known is not None:
            return known
        cost = self._settings.cost
        prefill = Prefill(cost.base_seconds, cost.token_seconds, known=False)
        for other in self._by_slot.values():
            if other.learner.taught and other.settings.names == settings.names:
                learnt = other.learner.prefill
                prefill = Prefill(learnt.base_seconds, learnt.token_seconds, learnt.pair_seconds)
                break
        return PrefillLearner(prefill)

    def _regroup(self, positions: Mapping[str, int], declared: Sequence[str]) -> None:
        serving: dict[str, list[Instance]] = {name: [] for name in declared}
        for instance in self.instances:
            for name in instance.settings.names if instance.entry.presence is not Presence.LEAVING else ():
                members = serving.setdefault(name, [])
                if instance.ready and instance.settings.role in SERVING_ROLES:
                    members.append(instance)
        for name in [name for name in self.groups if name not in serving]:
            left = self.groups.pop(name)
            left.members = ()
            left.narrow(())
        for name, members in serving.items():
            group = self.groups.get(name)
            if group is None:
                group = self.groups[name] = Group(name, positions.get(name, len(positions)))
            group.members = tuple(members)
            group.adapter = name if any(one.settings.model not in (None, name) for one in members) else ""
            group.narrow(members)

    def refresh(self, health: Health, now_ms: int) -> None:
        """Looks again at who is usable."""
        for group in self.groups.values():
            group.narrow([one for one in group.members if health.usable(one.index, now_ms)])

    def expire_idle(self, now: float) -> None:
        """Closes connections that were idle too long."""
        for instance in self.instances:
            instance.pool.expire(now)

    def close(self) -> None:
        """Closes every idle connection."""
        for instance in self.instances:
            instance.pool.close_idle()
