"""Compress and decompress as jobs: one run after another, with progress."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from typing import Any, Final

from kvcommons_node.jobs import JobError, Progress
from kvcommons_node.recode import RecodeError, RecodeProgress, recode
from kvcommons_node.seam import RecodeCore

BUSY_SECONDS_MAX: Final = 30.0
"""Until a run that was cancelled has ended its last batch."""
BUSY_POLL_SECONDS: Final = 0.2
COUNTED: Final = tuple(
    field.name for field in fields(RecodeProgress) if field.name not in ("state", "why", "shards_total", "shards_seen")
)


class Recode:
    """One job: what is meant, into one form. The core does one run at a time, so jobs take turns."""

    def __init__(
        self,
        core: RecodeCore,
        turn: asyncio.Lock,
        codec: str,
        meant: Sequence[tuple[bytes | None, bytes]],
        *,
        tier: str,
        from_memory: bool,
        bytes_per_second_max: int,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """:param turn: of all jobs of this core. :param meant: fingerprints (None: any) with their keys (empty: all)."""
        self._core, self._turn, self._codec, self._meant = core, turn, codec, meant
        self._tier, self._from_memory, self._rate = tier, from_memory, bytes_per_second_max
        self._pause = pause

    async def __call__(self, progress: Progress) -> dict[str, Any]:
        """:raises JobError: for what the node's settings do not allow, and if a run fails."""
        total = dict.fromkeys(COUNTED, 0)
        progress.detail = "waits for another run to end"
        async with self._turn:
            for at, (fingerprint, keys) in enumerate(self._meant):
                progress.detail = f"{at + 1} of {len(self._meant)} fingerprints" if len(self._meant) > 1 else ""
                told = await self._run(fingerprint, keys, progress)
                total = {name: count + getattr(told, name) for name, count in total.items()}
        return total

    async def _run(self, fingerprint: bytes | None, keys: bytes, progress: Progress) -> RecodeProgress:
        done, failed, before = progress.done, progress.failed, progress.total

        def show(told: RecodeProgress) -> None:
            ill = told.failed + told.refused
            progress.total = before + max(told.shards_total, told.shards_seen)
            progress.done, progress.failed = done + told.shards_seen - ill, failed + ill

        waited = 0.0
        while True:
            try:
                return await recode(
                    self._core,
                    self._codec,
                    fingerprint=fingerprint,
                    keys=keys,
                    tier=self._tier,
                    from_memory=self._from_memory,
                    bytes_per_second_max=self._rate,
                    on_progress=show,
                )
            except (RecodeError, ValueError) as error:
                raise JobError(str(error)) from error
            except RuntimeError as error:
                if waited >= BUSY_SECONDS_MAX:
                    raise JobError(str(error)) from error
            await self._pause(BUSY_POLL_SECONDS)
            waited += BUSY_POLL_SECONDS
