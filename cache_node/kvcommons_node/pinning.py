"""Keeps the core's pinned chunks as the registry of pins says: over time, over clears, over lives of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kvcommons_core.limits import KEY_BYTES

from kvcommons_node import pins_file
from kvcommons_node.api import refusals
from kvcommons_node.api.models_pins import PinAnswer, PinEntry, PinsAnswer, UnpinAnswer
from kvcommons_node.pins import Pin, Pins, TooManyPinsError, name_of
from kvcommons_node.seam import INVENTORY_PAGE_ITEMS_MAX, InventoryPage

WAKE_SECONDS_MAX = 3_600.0
"""The clock may be set while we wait."""

logger = logging.getLogger(__name__)


class PinnableCore(Protocol):
    """What of the core is needed here."""

    def pin(self, keys: bytes, pinned: bool) -> int: ...
    def lookup(self, fingerprint: bytes, keys: bytes) -> int: ...
    def inventory(self, cursor: int, items_max: int) -> InventoryPage: ...
    def stats(self) -> dict[str, int]: ...


class Pinning:
    """One per daemon. Every change is written to `path` before it is answered; a crash leaves either state whole.

    :param bytes_max: what may be pinned in all."""

    def __init__(
        self, core: PinnableCore, path: Path | None, bytes_max: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._core = core
        self._path = path
        self._bytes_max = bytes_max
        self._clock = clock
        self._pins = Pins()
        self._order = asyncio.Lock()
        self._changed = asyncio.Event()

    async def restore(self) -> None:
        """At the core's start: pins of the life before go on, and chunks that were left pinned by none are let go."""
        async with self._order:
            for pin in await asyncio.to_thread(pins_file.read, self._path) if self._path is not None else []:
                self._pins.put(pin)
            self._pins.expire(self._clock())
            await asyncio.to_thread(self._settle)

    async def pin(self, fingerprint: bytes, keys: bytes, chunk_bytes: int, name: str | None, seconds: int) -> PinAnswer:
        """Pins the leading chunks that are here.

        :raises Refusal: if none is here (a pin of that name ends then), or if it would pass a limit (nothing is changed)."""
        async with self._order:
            here = await asyncio.to_thread(self._core.lookup, fingerprint, keys)
            called = name if name is not None else name_of(fingerprint, keys)
            former = self._pins.get(called)
            while here:
                now = self._clock()
                pin = Pin(called, fingerprint, keys[: here * KEY_BYTES], chunk_bytes * here, now, now + seconds)
                self._admit(pin, chunk_bytes)
                await self._put(pin)
                # Until the core held them, eviction was free to take some.
                still = await asyncio.to_thread(self._core.lookup, fingerprint, pin.keys)
                if still == here:
                    return PinAnswer(
                        pin=self._entry(pin),
                        asked_chunks=len(keys) // KEY_BYTES,
                        replaced=former is not None,
                        pinned_bytes=self._pins.bytes_pinned,
                        pinned_bytes_max=self._bytes_max,
                    )
                here = still
            await self._act(b"", self._pins.remove(called))
            raise refusals.nothing_to_pin(len(keys) // KEY_BYTES)

    async def unpin(self, name: str | None) -> UnpinAnswer:
        """Ends one pin, or all (None)."""
        return await self._end([pin for pin in self._pins.every() if name in (None, pin.name)])

    async def cleared(self) -> int:
        """Chunks were cleared: pins of which nothing is left end, the others keep what is. Returns how many ended."""
        async with self._order:
            ended, released = 0, []
            for pin in self._pins.every():
                left = await asyncio.to_thread(self._core.lookup, pin.fingerprint, pin.keys) * KEY_BYTES
                if left == len(pin.keys):
                    continue
                chunk_bytes = pin.bytes_pinned // max(1, pin.chunks)
                if left:
                    rest = replace(pin, keys=pin.keys[:left], bytes_pinned=chunk_bytes * (left // KEY_BYTES))
                    released.append(self._pins.put(rest)[1])
                else:
                    released.append(self._pins.remove(pin.name))
                    ended += 1
            if released:
                await self._act(b"", b"".join(released))
        return ended

    def page(self, after: str, most: int) -> PinsAnswer:
        pins, following = self._pins.page(after, most)
        return PinsAnswer(
            pins=[self._entry(pin) for pin in pins],
            next=following,
            total=len(self._pins),
            pinned_bytes=self._pins.bytes_pinned,
            pinned_bytes_max=self._bytes_max,
        )

    async def run(self) -> None:
        """Ends pins as their time comes, until cancelled."""
        while True:
            self._changed.clear()
            end = self._pins.next_end()
            if end is None or end > self._clock():
                wait = None if end is None else min(max(0.0, end - self._clock()), WAKE_SECONDS_MAX)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
                continue
            async with self._order:
                gone, released = self._pins.expire(self._clock())
                for pin in gone:
                    logger.info("the pin %s is over: %d chunks", pin.name, pin.chunks)
                await self._act(b"", released)

    def _admit(self, pin: Pin, chunk_bytes: int) -> None:
        total = self._pins.bytes_with(pin.name, chunk_bytes, pin.keys)
        if total > self._bytes_max:
            raise refusals.over_pin_quota(total, self._bytes_max)

    async def _put(self, pin: Pin) -> None:
        try:
            fresh, released = self._pins.put(pin)
        except TooManyPinsError as error:
            raise refusals.too_many_pins(error.what, error.asked, error.most) from error
        await self._act(fresh, released)

    async def _end(self, ending: list[Pin]) -> UnpinAnswer:
        async with self._order:
            released = b"".join([self._pins.remove(pin.name) for pin in ending])
            if ending:
                await self._act(b"", released)
        return UnpinAnswer(pins=len(ending), chunks=len(released) // KEY_BYTES)

    async def _act(self, fresh: bytes, released: bytes) -> None:
        # Written first: after a crash in between, `restore` puts the core right, in either direction.
        if self._path is not None:
            try:
                await asyncio.to_thread(pins_file.write, self._path, self._pins.every())
            except OSError as error:
                logger.warning("%s: %s: pins will not outlive this daemon", self._path, error.strerror)
        if released:
            await asyncio.to_thread(self._core.pin, released, False)
        if fresh:
            await asyncio.to_thread(self._core.pin, fresh, True)
        self._changed.set()

    def _settle(self) -> None:
        if self._core.stats().get("pinned_chunks", 0):
            cursor = 0
            while True:
                page, cursor = self._core.inventory(cursor, INVENTORY_PAGE_ITEMS_MAX)
                stale = b"".join(key for key, _, _ in page if not self._pins.holds(key))
                if stale:
                    self._core.pin(stale, False)
                if cursor == 0:
                    break
        for pin in self._pins.every():
            self._core.pin(pin.keys, True)

    def _entry(self, pin: Pin) -> PinEntry:
        now = self._clock()
        return PinEntry(
            name=pin.name,
            fingerprint=pin.fingerprint.hex(),
            chunks=pin.chunks,
            bytes=pin.bytes_pinned,
            age_seconds=round(max(0.0, now - pin.created), 3),
            ttl_seconds=round(max(0.0, pin.expires - now), 3),
        )
