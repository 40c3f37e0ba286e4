"""A router's view of the members: who lives, under which epoch; read again several times a second, and void when it can't be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import CorruptRecordError, IndexUnavailableError
from kvcommons_core.index import schema
from kvcommons_core.index.connection import CommandError, IndexConnection
from kvcommons_core.index.schema import Member, Names
from kvcommons_core.settings import IndexSettings

POLL_SECONDS: Final = 0.25
FULL_READ_POLLS: Final = 40  # every 10 s even if nothing says that it changed


class MembersView:
    """Polls the members' hash (only when its version moved) and the leases. `run` until cancelled, or call `poll` yourself."""

    def __init__(
        self,
        connection: IndexConnection,
        settings: IndexSettings,
        *,
        on_void: Callable[[str], None] = lambda reason: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param on_void: called when everything that was read before may be wrong ("redis_changed", "flushed")."""
        self.members: Mapping[int, Member] = {}
        """Those that live."""
        self.epoch_of: Mapping[int, int] = {}
        self.by_name: Mapping[str, Member] = {}
        self.reachable = False
        self.last_error = ""
        self.corrupt_records = 0
        self._connection = connection
        self._names = Names(settings.prefix)
        self._on_void = on_void
        self._monotonic = monotonic
        self._known: dict[int, Member] = {}
        self._farthest: dict[int, tuple[str, int]] = {}  # slot -> (incarnation, distance used); at most 65,536
        self._run_ids: frozenset[str] | None = None
        self._marks: tuple[object, object] | None = None
        self._polls = 0
        self._answered = float("-inf")

    @property
    def recorded(self) -> Mapping[int, Member]:
        """Those that have a record, also where their lease has ended: they may be down."""
        return self._known

    async def run(self) -> None:
        while True:
            await self.poll()
            await asyncio.sleep(POLL_SECONDS)

    async def poll(self) -> None:
        """One look. Redis being away is no error: after the length of a lease nobody is believed to live."""
        try:
            await self._notice_other_server()
            await self._read_members()
            await self._read_leases()
        except IndexUnavailableError as error:
            self.reachable, self.last_error = False, str(error)
            if self._monotonic() - self._answered > limits.LEASE_SECONDS:
                self._show({})
            return
        self._answered = self._monotonic()
        self.reachable, self.last_error = True, ""

    async def _notice_other_server(self) -> None:
        found = await self._connection.run_ids()
        if self._run_ids is not None and found != self._run_ids:
            self._marks = None
            self._on_void("redis_changed")
        self._run_ids = found

    async def _read_members(self) -> None:
        reply = await self._connection.one(("HMGET", self._names.members, "#g", "#v"))
        marks = (reply[0], reply[1])
        self._polls += 1
        if self._marks is not None and marks[0] != self._marks[0]:
            self._on_void("flushed")
        if marks == self._marks and self._polls % FULL_READ_POLLS:
            return
        fields = await self._connection.one(("HGETALL", self._names.members))
        pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
        known = {}
        for slot, record in pairs:
            if not slot.isdigit() or record.endswith(b" - {}"):  # a name, a mark or a resting slot
                continue
            try:
                member = schema.decode_member(int(slot), record)
            except CorruptRecordError:
                self.corrupt_records += 1
                continue
            if not self._falls_back(member):
                known[int(slot)] = member
        self._known, self._marks = known, marks

    def _falls_back(self, member: Member) -> bool:
        """A stale copy of Redis shows an epoch that the member has left: nothing of it is believed until the member says where it is."""
        incarnation, used = self._farthest.get(member.slot, ("", -1))
        if incarnation == member.incarnation and member.used < used:
            return True
        self._farthest[member.slot] = (member.incarnation, member.used)
        return False

    async def _read_leases(self) -> None:
        slots = list(self._known)
        if not slots:
            self._show({})
            return
        leases = [self._names.lease(slot) for slot in slots]
        if self._connection.is_cluster:
            values = await self._connection.run([("GET", lease) for lease in leases])
        else:
            values = await self._connection.one(("MGET", *leases))
        alive = {}
        for slot, value in zip(slots, values, strict=True):
            if value is None or isinstance(value, CommandError):
                continue
            member = self._known[slot]
            if value == schema.lease_value(member.incarnation, member.epoch):
                alive[slot] = member
        self._show(alive)

    def _show(self, alive: dict[int, Member]) -> None:
        self.members = alive
        self.epoch_of = {slot: member.epoch for slot, member in alive.items()}
        self.by_name = {member.info.name: member for member in alive.values()}
