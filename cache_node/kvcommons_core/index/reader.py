"""A router's side of the index: who holds how much of a chain, from a bounded mirror of hot keys or in one round trip of bounded time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import CorruptRecordError, IndexUnavailableError
from kvcommons_core.index import schema, scripts
from kvcommons_core.index.connection import Command, CommandError, IndexConnection, evalsha
from kvcommons_core.index.gallop import Hit, Probe, fold, gallop
from kvcommons_core.index.schema import Holder, Names, Tenure
from kvcommons_core.index.tasks import end_tasks, spawn
from kvcommons_core.index.view import MembersView
from kvcommons_core.settings import IndexSettings

WAITING_LOOKUPS_MAX: Final = 4_096
PIPELINE_LOOKUPS_MAX: Final = 64


class LookupStatus(StrEnum):
    """How a lookup ended; in every case the router picks."""

    MIRROR = "mirror"
    """Answered without Redis."""
    REDIS = "redis"
    LATE = "late"
    """Redis took longer than allowed; the hits are what the mirror knew."""
    AWAY = "away"
    """Redis does not answer; the hits are what the mirror knew."""


@dataclass(slots=True)
class Lookup:
    """The answer: for each member's slot, how much of the chain it holds."""

    status: LookupStatus
    hits: dict[int, Hit]
    probes: int = 0


@dataclass(slots=True)
class ReaderStats:
    """Counters for /metrics."""

    lookups: dict[str, int] = field(default_factory=lambda: {status.value: 0 for status in LookupStatus})
    mirror_voided: int = 0
    corrupt_holders: int = 0


class Mirror:
    """Holders of recently read keys, at most so many, believed for so long; the least recently written go first."""

    def __init__(self, keys_max: int, seconds_max: float) -> None:
        self._keys_max = keys_max
        self._seconds_max = seconds_max
        self._entries: dict[bytes, tuple[float, bytes]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key8: bytes, now: float) -> bytes | None:
        entry = self._entries.get(key8)
        return entry[1] if entry is not None and now - entry[0] <= self._seconds_max else None

    def beginning(self, keys: Sequence[bytes], now: float) -> tuple[list[bytes], bool]:
        """What is known of a chain from its beginning on without a gap, and whether that is the whole answer: it is when
        all keys are known, or when nobody holds the last one that is."""
        entries, oldest = self._entries, now - self._seconds_max
        found: list[bytes] = []
        for key8 in keys:
            entry = entries.get(key8)
            if entry is None or entry[0] < oldest:
                return found, False
            found.append(entry[1])
            if not entry[1]:
                break
        return found, True

    def put(self, key8: bytes, packed: bytes, now: float) -> None:
        self.put_all((key8,), (packed,), now)

    def put_all(self, keys: Iterable[bytes], values: Iterable[bytes], now: float) -> None:
        """What Redis said of some keys."""
        if not self._keys_max:
            return
        entries = self._entries
        for key8, packed in zip(keys, values, strict=True):
            entries.pop(key8, None)
            entries[key8] = (now, packed)
        if len(entries) > self._keys_max:
            # Many at once: to find a dict's first key takes as long as keys went before it. Never fewer than are too many.
            surplus = len(entries) - self._keys_max
            for key8 in list(itertools.islice(entries, max(surplus, self._keys_max // 16))):
                del entries[key8]

    def hold_first(self, keys: Iterable[bytes], holder: bytes) -> list[bytes]:
        """Adds a holder to those keys that nobody held; the known keys that somebody holds are left, and returned."""
        entries = self._entries
        held: list[bytes] = []
        for key8 in keys:
            entry = entries.get(key8)
            if entry is None:
                continue
            if entry[1]:
                held.append(key8)
            else:
                entries[key8] = (entry[0], holder)
        return held

    def amend(self, key8: bytes, packed: bytes) -> None:
        """Another content without another age: our own word makes the others' no fresher."""
        entry = self._entries.get(key8)
        if entry is not None:
            self._entries[key8] = (entry[0], packed)

    def clear(self) -> None:
        self._entries.clear()


class IndexReader:
    """Looks chains up. `start` never fails for Redis; `lookup` never raises and never takes longer than `lookup_ms_max`."""

    def __init__(
        self,
        settings: IndexSettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = ReaderStats()
        self.mirror = Mirror(settings.mirror_keys_max, settings.mirror_ms_max / 1_000)
        self._connection = IndexConnection(settings)
        self._view_connection = IndexConnection(settings)
        self.view = MembersView(self._view_connection, settings, on_void=self._void, monotonic=monotonic)
        self._names = Names(settings.prefix)
        self._age_max = schema.age_units_max(settings.holder_age_seconds_max)
        self._seconds_max = settings.lookup_ms_max / 1_000
        self._clock = clock
        self._monotonic = monotonic
        self._waiting: list[tuple[Sequence[bytes], asyncio.Future[list[Probe]]]] = []
        self._filled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._cluster_lookups: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Looks at the members once (bounded by the connection's timeouts), then goes on in the background."""
        await self.view.poll()
        self._tasks = [
            spawn(self.view.run(), name="index-members"),
            spawn(self._dispatch(), name="index-lookups"),
        ]

    async def stop(self) -> None:
        await end_tasks([*self._tasks, *self._cluster_lookups])
        for _, future in self._waiting:
            future.cancel()
        await self._connection.close()
        await self._view_connection.close()

    async def lookup(self, keys: Sequence[bytes], *, ms_max: float | None = None) -> Lookup:
        """Who holds how much of a chain of 8-byte keys (schema.text_key8, schema.token_key8), the beginning first."""
        keys = keys[: limits.LOOKUP_KEYS_MAX]
        probes, complete = self._from_mirror(keys)
        if complete:
            return self._answer(LookupStatus.MIRROR, probes)
        if not self.view.reachable or len(self._waiting) >= WAITING_LOOKUPS_MAX:
            return self._answer(LookupStatus.AWAY, probes)
        future: asyncio.Future[list[Probe]] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, future))
        self._filled.set()
        done, _ = await asyncio.wait((future,), timeout=self._seconds_max if ms_max is None else ms_max / 1_000)
        if not done:
            future.cancel()
            return self._answer(LookupStatus.LATE, probes)
        if future.cancelled() or future.exception() is not None:
            return self._answer(LookupStatus.AWAY, probes)
        return self._answer(LookupStatus.REDIS, future.result())

    def peek(self, keys: Sequence[bytes]) -> Lookup | None:
        """The answer if it takes no waiting: the mirror has all of it, or Redis is away. None: ask `lookup`."""
        probes, complete = self._from_mirror(keys)
        if complete:
            return self._answer(LookupStatus.MIRROR, probes)
        return None if self.view.reachable else self._answer(LookupStatus.AWAY, probes)

    async def holders(self, keys: Sequence[bytes]) -> list[bytes]:
        """The packed holders that Redis has now, past the mirror.

        :raises IndexUnavailableError: if Redis does not answer.
        """
        replies = await self._connection.run([("GET", self._names.holders(key8)) for key8 in keys])
        return [reply if isinstance(reply, bytes) else b"" for reply in replies]

    def note(self, tenure: Tenure, tier: schema.Tier, keys: Iterable[bytes], *, present: bool = True) -> None:
        """Our own intent or correction shows in the mirror at once; Redis is told by the recorder."""
        holder = Holder(tenure.slot, tenure.epoch, tier, 0, schema.born_of(self._clock())).pack()
        now = self._monotonic()
        for key8 in self.mirror.hold_first(keys, holder) if present else keys:
            packed = self.mirror.get(key8, now)
            if packed is None:
                continue
            kept: list[bytes] = [
                packed[at : at + 8] for at in range(0, len(packed), 8) if packed[at : at + 2] != holder[:2]
            ]
            if present:
                kept = [*kept[-(limits.HOLDERS_PER_KEY_MAX - 1) :], holder]
            ordered: list[bytes] = sorted(kept, key=_by_slot)
            self.mirror.amend(key8, b"".join(ordered))

    def _from_mirror(self, keys: Sequence[bytes]) -> tuple[list[Probe], bool]:
        """(what the mirror knows from the beginning on without a gap, whether that is the whole answer)."""
        known, complete = self.mirror.beginning(keys, self._monotonic())
        return list(enumerate(known)), complete

    def _answer(self, status: LookupStatus, probes: list[Probe]) -> Lookup:
        self.stats.lookups[status.value] += 1
        try:
            hits = fold(probes, self.view.epoch_of, schema.born_of(self._clock()), self._age_max)
        except CorruptRecordError:  # somebody else wrote under our prefix: as if nobody held it
            self.stats.corrupt_holders += 1
            hits = {}
        return Lookup(status, hits, len(probes))

    async def _dispatch(self) -> None:
        """Sends what waits, many lookups in one pipeline, so that a slow answer to one is never cut off in the middle of a connection."""
        while True:
            await self._filled.wait()
            batch = [item for item in self._waiting[:PIPELINE_LOOKUPS_MAX] if not item[1].done()]
            del self._waiting[:PIPELINE_LOOKUPS_MAX]
            if not self._waiting:
                self._filled.clear()
            if not batch:
                continue
            if self._connection.is_cluster:
                for keys, future in batch:
                    task = spawn(self._cluster_lookup(keys, future), "index-lookup")
                    self._cluster_lookups.add(task)
                    task.add_done_callback(self._cluster_lookups.discard)
                continue
            try:
                replies = await self._connection.run([self._command(keys) for keys, _ in batch])
            except IndexUnavailableError as error:
                _fail([future for _, future in batch], error)
                continue
            for (keys, future), reply in zip(batch, replies, strict=True):
                self._resolve(keys, future, reply)

    def _command(self, keys: Sequence[bytes]) -> Command:
        names = [self._names.holders(key8) for key8 in keys]
        if len(names) <= limits.LOOKUP_MGET_KEYS_MAX:
            return ("MGET", *names)
        return evalsha(scripts.LOOKUP, names, [limits.LOOKUP_PROBES_MAX])

    def _resolve(self, keys: Sequence[bytes], future: asyncio.Future[list[Probe]], reply: object) -> None:
        if not isinstance(reply, list):
            message = reply.message if isinstance(reply, CommandError) else repr(reply)
            _fail([future], IndexUnavailableError(f"Redis refuses a lookup: {message}"))
            return
        if len(keys) <= limits.LOOKUP_MGET_KEYS_MAX:
            probes = [(index, value or b"") for index, value in enumerate(reply)]
        else:
            probes = [(int(reply[i]), reply[i + 1]) for i in range(0, len(reply), 2)]
        self._remember(keys, probes)
        if not future.done():
            future.set_result(probes)

    async def _cluster_lookup(self, keys: Sequence[bytes], future: asyncio.Future[list[Probe]]) -> None:
        async def fetch(indices: list[int]) -> list[bytes]:
            replies = await self._connection.run([("GET", self._names.holders(keys[index])) for index in indices])
            return [reply if isinstance(reply, bytes) else b"" for reply in replies]

        try:
            if len(keys) <= limits.LOOKUP_MGET_KEYS_MAX:
                probes = list(enumerate(await fetch(list(range(len(keys))))))
            else:
                probes = await gallop(len(keys), fetch, limits.LOOKUP_PROBES_MAX)
        except IndexUnavailableError as error:
            _fail([future], error)
            return
        self._remember(keys, probes)
        if not future.done():
            future.set_result(probes)

    def _remember(self, keys: Sequence[bytes], probes: list[Probe]) -> None:
        self.mirror.put_all([keys[index] for index, _ in probes], [packed for _, packed in probes], self._monotonic())

    def _void(self, reason: str) -> None:
        self.stats.mirror_voided += 1
        self.mirror.clear()


def _by_slot(packed: bytes) -> bytes:
    """The slot's two bytes, the higher first: as the script orders holders."""
    return packed[1::-1]


def _fail(futures: Iterable[asyncio.Future[list[Probe]]], error: IndexUnavailableError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
