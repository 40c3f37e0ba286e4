"""Being a member: registering, holding the lease, and taking a new epoch whenever what was published may no longer be believed.

Redis being away is never an error here: the keeper says so in `reachable` and goes on trying. One keeper serves all members of a process: a
node has one, a router those of its engines (shared: several routers keep the same member).
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from kvcommons_core import limits
from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index import schema, scripts
from kvcommons_core.index.connection import Command, CommandError, IndexConnection, evalsha
from kvcommons_core.index.schema import MemberInfo, Names, Tenure
from kvcommons_core.settings import IndexSettings

CANDIDATES: Final = 16
REGISTER_ATTEMPTS_MAX: Final = 4
SWEEP_TICKS: Final = 60
SWEEP_SLOTS: Final = 8
EPOCHS_USED_UP: Final = -2


class MemberState(StrEnum):
    """Where a member stands with the index."""

    AWAY = "away"
    """Not registered yet, or Redis does not answer."""
    JOINED = "joined"
    CONFLICT = "conflict"
    """Another living process has registered the same name: give one of them another."""


@dataclass(slots=True, eq=False)
class Membership:
    """One member as its keeper sees it. Its owner reads `tenure` and `state`, and asks the keeper for everything else."""

    info: MemberInfo
    shared: bool
    on_epoch: Callable[[str], None]
    """Called with the reason when a new epoch holds: whatever was published before is void."""
    incarnation: str = ""
    tenure: Tenure | None = None
    state: MemberState = MemberState.AWAY
    fence_reason: str = ""
    """Why a new epoch is due; empty when none is."""
    announce: str = ""
    """Why a new epoch was taken that its owner has not heard of yet: the lease under it is being put up."""
    epochs: dict[str, int] = field(default_factory=dict)
    """How often a new epoch was taken, by reason."""

    @property
    def settled(self) -> bool:
        """What is published now will count: registered, and no other epoch on its way."""
        return (
            self.state is MemberState.JOINED and self.tenure is not None and not self.fence_reason and not self.announce
        )

    @property
    def lease(self) -> bytes:
        return schema.lease_value(self.incarnation, self.tenure.epoch) if self.tenure else b""


class MembershipKeeper:
    """Keeps members registered. `run` until cancelled, or call `tick` yourself."""

    def __init__(
        self,
        connection: IndexConnection,
        settings: IndexSettings,
        *,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.reachable = False
        self.last_error = ""
        self.run_ids: frozenset[str] | None = None
        self.members: list[Membership] = []
        self._connection = connection
        self._names = Names(settings.prefix)
        self._rest_seconds = schema.slot_rest_seconds(settings.holder_age_seconds_max)
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._ticks = 0

    def add(
        self, info: MemberInfo, *, shared: bool = False, on_epoch: Callable[[str], None] | None = None
    ) -> Membership:
        """Registers a member with the next tick. A shared one joins what another process registered under its name."""
        schema.encode_info(info)
        member = Membership(info, shared, on_epoch or (lambda reason: None))
        self.members.append(member)
        self._wake.set()
        return member

    async def remove(self, member: Membership, *, leave: bool) -> None:
        """Stops keeping a member. `leave` voids it at once for everybody; else its lease runs out."""
        async with self._lock:
            self.members.remove(member)
            if leave and member.state is MemberState.JOINED:
                try:
                    await self._connection.run([self._leave(member), ("DEL", self._names.lease(_slot(member)))])
                except IndexUnavailableError as error:  # its lease runs out by itself
                    self._away(error)
            member.tenure, member.state = None, MemberState.AWAY

    def fence(self, member: Membership, reason: str) -> None:
        """Voids all that the member published, as soon as Redis can be told."""
        member.fence_reason = member.fence_reason or reason
        self._wake.set()

    async def void(self, names: Iterable[str]) -> list[str]:
        """Fences members by name, whoever keeps them: all that they published is void. Returns those that Redis knows.

        :raises IndexUnavailableError: if Redis does not answer."""
        known = []
        async with self._lock:
            for name in names:
                slot = await self._connection.one(("HGET", self._names.members, b"@" + name.encode()))
                if not slot:
                    continue
                reply = await self._connection.script(
                    scripts.FENCE, [self._names.members], [int(slot), "", "", limits.EPOCHS_PER_SLOT_MAX]
                )
                if int(reply[0]) >= 0:
                    known.append(name)
                elif int(reply[0]) == EPOCHS_USED_UP:  # its lease goes instead, and whoever keeps it takes another slot
                    await self._connection.one(("DEL", self._names.lease(int(slot))))
                    known.append(name)
        return known

    async def run(self) -> None:
        """Ticks every second, and at once after `add` and `fence`."""
        while True:
            await self.tick()
            try:
                await asyncio.wait_for(self._wake.wait(), limits.LEASE_RENEW_SECONDS)
            except TimeoutError:
                continue

    async def tick(self) -> None:
        """One round: notice what happened to Redis, register, renew, fence, hold the leases; then tell the owners of new epochs."""
        self._wake.clear()
        async with self._lock:
            try:
                await self._round()
            except IndexUnavailableError as error:
                self._away(error)
                return
        self.reachable, self.last_error = True, ""
        for member in [m for m in self.members if m.announce and m.state is MemberState.JOINED]:
            reason, member.announce = member.announce, ""
            member.epochs[reason] = member.epochs.get(reason, 0) + 1
            member.on_epoch(reason)

    async def _round(self) -> None:
        await self._notice_other_server()
        for member in [m for m in self.members if m.tenure is None]:
            await self._register(member, "registered")
        await self._renew()
        for member in [m for m in self.members if m.fence_reason and m.state is MemberState.JOINED]:
            await self._new_epoch(member)
        await self._hold_leases()
        self._ticks += 1
        if self._ticks % SWEEP_TICKS == 1:
            await self._sweep()

    async def _notice_other_server(self) -> None:
        """Another run id: a restart or a failover, and what was published last may be missing there, or be back."""
        found = await self._connection.run_ids()
        if self.run_ids is not None and found != self.run_ids:
            for member in self.members:
                member.fence_reason = member.fence_reason or "redis_changed"
        self.run_ids = found

    async def _register(self, member: Membership, reason: str) -> None:
        for _ in range(REGISTER_ATTEMPTS_MAX):
            slot, epoch, used, incarnation, joined = await self._connection.script(
                scripts.REGISTER, [self._names.members], self._register_arguments(member)
            )
            if int(slot):
                member.incarnation = incarnation.decode()
                self._enter(member, Tenure(int(slot), int(epoch), int(used)), reason)
                if not joined:  # a joined member's lease may be missing: _hold_leases finds out, and fences
                    await self._connection.one(self._hold(member))
                return
        raise IndexUnavailableError(
            f"no free slot among {REGISTER_ATTEMPTS_MAX * CANDIDATES} random ones: the pool has too many members"
        )

    def _register_arguments(self, member: Membership) -> list[bytes | str | int | float]:
        own = member.tenure
        fresh_start = own is None and not member.incarnation
        jump = self._rng.randint(1, limits.EPOCH_JUMP_MAX) if fresh_start else 1
        candidates: list[bytes | str | int | float] = []
        for _ in range(CANDIDATES):
            candidates += (self._rng.randint(limits.SLOT_MIN, limits.SLOT_MAX), self._rng.randrange(2**16))
        return [
            "shared" if member.shared else "own",
            member.info.name,
            schema.encode_info(member.info),
            member.incarnation if member.incarnation and not member.shared else secrets.token_hex(8),
            int(self._clock()),
            self._rest_seconds,
            jump,
            limits.EPOCHS_PER_SLOT_MAX,
            own.slot if own else "",
            own.epoch if own else 0,
            own.used if own else 0,
            secrets.token_hex(8),
            *candidates,
        ]

    async def _renew(self) -> None:
        """Says that each member lives, and learns what others did to its record."""
        joined = [m for m in self.members if m.tenure is not None]
        now = int(self._clock())
        replies = (
            await self._connection.run(
                [
                    evalsha(
                        scripts.RENEW, [self._names.members], [_slot(m), m.incarnation, now, limits.MEMBER_SEEN_SECONDS]
                    )
                    for m in joined
                ]
            )
            if joined
            else []
        )
        for member, reply in zip(joined, replies, strict=True):
            status, *values = _reply(reply)
            if status == b"ok":
                self._compare(member, Tenure(_slot(member), int(values[0]), int(values[1])))
            elif status == b"taken" and not member.shared and await self._name_lives_elsewhere(member):
                member.state = MemberState.CONFLICT
            else:
                await self._register(member, "record_lost" if status == b"lost" else "slot_taken")

    def _compare(self, member: Membership, recorded: Tenure) -> None:
        """Others may have fenced the member; a stale copy of Redis may have forgotten that it was."""
        mine = member.tenure
        assert mine is not None
        member.state = MemberState.JOINED
        if recorded.used > mine.used:
            self._enter(member, recorded, "fenced_by_others")
        elif recorded != mine:
            member.fence_reason = member.fence_reason or "stale_copy"

    async def _name_lives_elsewhere(self, member: Membership) -> bool:
        """The name is another registration's now, and that one holds its lease."""
        slot = await self._connection.one(("HGET", self._names.members, b"@" + member.info.name.encode()))
        lease = await self._connection.one(("GET", self._names.lease(int(slot)))) if slot else None
        return lease is not None and not bytes(lease).startswith(member.incarnation.encode())

    async def _new_epoch(self, member: Membership) -> None:
        reason, mine = member.fence_reason, member.tenure
        assert mine is not None
        if not member.shared:
            await self._register(member, reason)
            return
        reply = await self._connection.script(
            scripts.FENCE, [self._names.members], [mine.slot, mine.epoch, mine.used, limits.EPOCHS_PER_SLOT_MAX]
        )
        if int(reply[0]) < 0:
            await self._connection.one(self._leave(member))
            member.tenure = None
            await self._register(member, reason)
            return
        self._enter(member, Tenure(mine.slot, int(reply[0]), int(reply[1])), reason)
        await self._connection.one(self._hold(member))

    async def _hold_leases(self) -> None:
        """Puts the leases up for another 3 s. One that was gone means that routers may have given the member up: a new epoch."""
        joined = [m for m in self.members if m.state is MemberState.JOINED]
        replies = await self._connection.run([self._hold(m) for m in joined]) if joined else []
        for member, old in zip(joined, replies, strict=True):
            if isinstance(old, CommandError):
                raise IndexUnavailableError(f"Redis refuses the lease: {old.message}")
            if old is None:
                member.fence_reason = "lease_lost"
                await self._new_epoch(member)

    async def _sweep(self) -> None:
        """Drops a few records of members long dead; each keeper does its share, so the hash stays small without anybody reading all of it."""
        fields = await self._connection.one(("HRANDFIELD", self._names.members, SWEEP_SLOTS))
        slots = [slot for slot in fields or [] if bytes(slot).isdigit()]
        if slots:
            await self._connection.script(
                scripts.SWEEP, [self._names.members], [int(self._clock()), self._rest_seconds, *slots]
            )

    def _hold(self, member: Membership) -> Command:
        return ("SET", self._names.lease(_slot(member)), member.lease, "PX", int(limits.LEASE_SECONDS * 1_000), "GET")

    def _leave(self, member: Membership) -> Command:
        return evalsha(scripts.LEAVE, [self._names.members], [_slot(member), member.incarnation, int(self._clock())])

    def _enter(self, member: Membership, tenure: Tenure, reason: str) -> None:
        """From here on the member speaks under this tenure; its owner hears of it when the lease is up."""
        member.tenure, member.state = tenure, MemberState.JOINED
        member.fence_reason, member.announce = "", member.announce or reason

    def _away(self, error: Exception) -> None:
        self.reachable, self.last_error = False, str(error)


def _slot(member: Membership) -> int:
    assert member.tenure is not None, "only a registered member has a slot"
    return member.tenure.slot


def _reply(reply: Any) -> Any:
    if isinstance(reply, CommandError):
        raise IndexUnavailableError(f"Redis refuses a renewal: {reply.message}")
    return reply
