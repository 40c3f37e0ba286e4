"""Chunks from one place of this node to another: what a move job does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from kvcommons_core.limits import KEY_BYTES

from kvcommons_node.jobs import JobError, Progress
from kvcommons_node.seam import MEMORY

POLL_SECONDS: Final = 0.05
ASK_SECONDS: Final = 1.0
"""Without progress it is asked for again: a queue had no room, or a tier was busy."""
STILL_SECONDS_MAX: Final = 10.0
"""A move of which nothing arrives for so long has ended."""


class PlacesCore(Protocol):
    """What tells where chunks are."""

    def places(self, fingerprint: bytes, keys: bytes) -> tuple[list[str], bytes]: ...


class MovableCore(PlacesCore, Protocol):
    """What of the core is needed here."""

    def write_behind(self, fingerprint: bytes, keys: bytes) -> int: ...
    def bring(self, fingerprint: bytes, keys: bytes) -> int: ...
    def let_go(self, fingerprint: bytes, keys: bytes) -> int: ...
    def remove_behind(self, tier: str, fingerprint: bytes, keys: bytes) -> int: ...


async def at_place(core: PlacesCore, fingerprint: bytes, keys: bytes, place: str) -> set[int]:
    """Numbers of the chunks that are there."""
    names, bits = await asyncio.to_thread(core.places, fingerprint, keys)
    bit = 1 << names.index(place)
    return {number for number, one in enumerate(bits) if one & bit}


async def carry(
    at_target: Callable[[], Awaitable[set[int]]],
    ask: Callable[[list[int]], Awaitable[None]],
    wanted: set[int],
    progress: Progress,
    *,
    ask_seconds: float,
    clock: Callable[[], float],
    pause: Callable[[float], Awaitable[None]],
) -> set[int]:
    """Asks until all have arrived, or none has for a while. Returns those that are there."""
    arrived = await at_target()
    since, asked = clock(), float("-inf")
    while wanted - arrived and clock() - since < STILL_SECONDS_MAX:
        if clock() - asked >= ask_seconds:
            asked = clock()
            await ask(sorted(wanted - arrived))
        await pause(POLL_SECONDS)
        now = await at_target()
        if now - arrived:
            since = asked = clock()  # on its way: to ask again would only fill the queue
        arrived = now
        progress.done = len(arrived & wanted)
    return arrived


class Move:
    """One job. Nothing leaves its place before it has arrived at the other."""

    def __init__(
        self,
        core: MovableCore,
        fingerprint: bytes,
        keys: bytes,
        *,
        source: str,
        target: str,
        keep: bool,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """:param keys: of one chain, from its first chunk on. :param keep: a copy: the source keeps them."""
        self._core, self._fingerprint, self._keys = core, fingerprint, keys
        self._source, self._target, self._keep = source, target, keep
        self._clock, self._pause = clock, pause

    async def __call__(self, progress: Progress) -> dict[str, Any]:
        """:raises JobError: if nothing was at the source, or nothing arrived."""
        at_source = await self._at(self._source)
        there = await self._at(self._target)
        wanted = at_source | there
        if not at_source:
            raise JobError(f"none of the {len(self._keys) // KEY_BYTES} chunks is in {self._source}")
        progress.total = len(at_source)
        arrived = await carry(
            lambda: self._at(self._target),
            self._ask,
            wanted,
            progress,
            ask_seconds=ASK_SECONDS,
            clock=self._clock,
            pause=self._pause,
        )
        moved = arrived & at_source
        if not moved:
            raise JobError(f"nothing arrived in {self._target}: no room there, or it takes no writes (see its health)")
        left = 0 if self._keep else await asyncio.to_thread(self._leave, moved)
        progress.done, progress.failed = len(moved), len(at_source) - len(moved)
        return {"chunks": len(moved), "were_there": len(there), "removed_from_source": left}

    async def _ask(self, missing: list[int]) -> None:
        if self._target == MEMORY:
            await asyncio.to_thread(self._core.bring, self._fingerprint, self._keys)
        else:
            await asyncio.to_thread(self._core.write_behind, self._fingerprint, self._some(missing))

    def _leave(self, moved: set[int]) -> int:
        keys = self._some(sorted(moved))
        if self._source == MEMORY:
            return self._core.let_go(self._fingerprint, keys)
        return self._core.remove_behind(self._source, self._fingerprint, keys)

    async def _at(self, place: str) -> set[int]:
        """Numbers of the chunks that are there."""
        return await at_place(self._core, self._fingerprint, self._keys, place)

    def _some(self, numbers: list[int]) -> bytes:
        return b"".join(self._keys[number * KEY_BYTES : (number + 1) * KEY_BYTES] for number in numbers)
