"""Compress and decompress: what a tier holds already, brought into another form while engines are served.

The native core does the work on a thread of its own; here is one call that waits for it, tells how far it is and can be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

from kvcommons_core.codecs import parse_codec
from kvcommons_core.errors import KvCommonsError

from kvcommons_node.seam import RecodeCore

POLL_SECONDS: Final = 0.1
UNCODED: Final = "none"


class RecodeError(KvCommonsError):
    """The run ended early; the message says why. What was rewritten by then stays so."""


@dataclass(frozen=True, slots=True)
class RecodeProgress:
    """How far a run is. Counts are of shards: a chunk has one for each rank of its engine."""

    state: str
    """running, done, cancelled or failed."""
    why: str
    shards_total: int
    """An estimate: chunks come and go meanwhile."""
    shards_seen: int
    offered: int
    """Held by memory alone, and now on their way to the tier."""
    rewritten: int
    unchanged: int
    """In that form already, or nothing makes them smaller."""
    refused: int
    """Loss is not allowed where they are, or their layout is not known."""
    gone: int
    failed: int
    bytes_before: int
    """On the tier, of what was rewritten."""
    bytes_after: int


async def recode(
    core: RecodeCore,
    codec: str,
    *,
    fingerprint: bytes | None = None,
    keys: bytes = b"",
    tier: str = "",
    from_memory: bool = True,
    bytes_per_second_max: int = 0,
    on_progress: Callable[[RecodeProgress], None] = lambda progress: None,
) -> RecodeProgress:
    """Compress to ``codec``, or decompress with ``"none"``. Cancelling the task ends the run between two batches.

    :param keys: token keys, concatenated; empty: all that `fingerprint` has, or all.
    :param tier: its name; empty: the first.
    :param from_memory: also what only memory holds: it is written behind it first, in the tier's own form.
    :raises ConfigurationError: for a codec that is not known.
    :raises ValueError: for what the node's settings do not allow, naming the one to change.
    :raises RuntimeError: while another run is under way.
    :raises RecodeError: if the run fails.
    """
    if codec != UNCODED:
        codec = str(parse_codec(codec))
    run = core.recode_start(
        codec=codec,
        fingerprint=fingerprint,
        keys=keys,
        tier=tier,
        from_memory=from_memory,
        bytes_per_second_max=bytes_per_second_max,
    )
    try:
        while (progress := _progress(core, run)).state == "running":
            on_progress(progress)
            await asyncio.sleep(POLL_SECONDS)
    except asyncio.CancelledError:
        core.recode_cancel(run)
        raise
    on_progress(progress)
    if progress.state == "failed":
        raise RecodeError(progress.why)
    return progress


def _progress(core: RecodeCore, run: int) -> RecodeProgress:
    told = core.recode_progress(run)
    if told is None:
        raise RecodeError("another run has begun since")
    return RecodeProgress(**{field.name: told[field.name] for field in fields(RecodeProgress)})  # type: ignore[arg-type]  # the core gives the fields by name
