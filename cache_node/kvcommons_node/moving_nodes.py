"""Chunks from one node of the pool to another: the one where they are to go fetches them as a peer, and then they leave.

Nothing leaves before it was verified and committed at the other node; whatever fails leaves it where it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from kvcommons_core.limits import KEY_BYTES
from pydantic import BaseModel

from kvcommons_node.api.models_cluster import NodeResult
from kvcommons_node.api.models_jobs import CancelRequest, JobsQuery
from kvcommons_node.api.models_move import ChunkLayout, FetchRequest, ShardPlace
from kvcommons_node.jobs import JobError, Progress
from kvcommons_node.moving import POLL_SECONDS, PlacesCore, at_place, carry
from kvcommons_node.seam import MEMORY, KnownLayout, KnownShard, KnownTier

PEER: Final = "peer"
"""How the core calls the tier of other nodes."""
OWN_TIERS: Final = ("disk",)
"""What is in these is this node's alone; a store that nodes share keeps what it has."""
FOLLOW_SECONDS: Final = 0.25
DEAF_MAX: Final = 8
"""So many answers in a row that do not come, and the other node counts as gone."""
LEAVE_SECONDS_MAX: Final = 0.5
"""What the kernel may still be sending is held for a moment."""


class FetchingCore(PlacesCore, Protocol):
    """What of the core a fetch needs."""

    def lookup(self, fingerprint: bytes, keys: bytes) -> int: ...
    def bring_from(
        self, peer: str, fingerprint: bytes, keys: bytes, chunk_tokens: int, tenant: int, shards: list[KnownShard]
    ) -> int: ...


class SendingCore(PlacesCore, Protocol):
    """What of the core a node needs whose chunks go to another."""

    def tiers(self) -> list[KnownTier]: ...
    def layout_of(self, fingerprint: bytes, key: bytes) -> KnownLayout | None: ...
    def let_go(self, fingerprint: bytes, keys: bytes) -> int: ...
    def remove_behind(self, tier: str, fingerprint: bytes, keys: bytes) -> int: ...


Ask = Callable[[str, str, BaseModel], Awaitable[NodeResult]]
"""A node's name, the operation, what is asked: what came of it."""


def told_layout(layout: KnownLayout) -> ChunkLayout:
    """As another node is told of it."""
    chunk_tokens, tenant, shards = layout
    return ChunkLayout(
        chunk_tokens=chunk_tokens,
        tenant=tenant,
        shards=[
            ShardPlace(
                layer_begin=layer_begin,
                layers=layer_end - layer_begin,
                head_begin=head_begin,
                heads=head_end - head_begin,
                slot_bytes=slot_bytes,
            )
            for (layer_begin, layer_end, head_begin, head_end), slot_bytes in shards
        ],
    )


def shards_of(layout: ChunkLayout) -> list[KnownShard]:
    """As the core takes them."""
    return [
        (
            (one.layer_begin, one.layer_begin + one.layers, one.head_begin, one.head_begin + one.heads),
            one.slot_bytes,
        )
        for one in layout.shards
    ]


class Fetch:
    """A job of the node where chunks are to go."""

    def __init__(
        self,
        core: FetchingCore,
        fingerprint: bytes,
        keys: bytes,
        *,
        node: str,
        layout: ChunkLayout,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """:param keys: of one chain, from its first chunk on. :param node: whose they are."""
        self._core, self._fingerprint, self._keys = core, fingerprint, keys
        self._node, self._layout = node, layout
        self._clock, self._pause = clock, pause

    async def __call__(self, progress: Progress) -> dict[str, Any]:
        """:raises JobError: if nothing arrived."""
        were_there = len(await self._here())
        await carry(
            self._here,
            self._ask,
            set(range(len(self._keys) // KEY_BYTES)),
            progress,
            ask_seconds=POLL_SECONDS,
            clock=self._clock,
            pause=self._pause,
        )
        leading = await asyncio.to_thread(self._core.lookup, self._fingerprint, self._keys)
        if not leading:
            raise JobError(
                f"nothing arrived from {self._node}: it has none of it any more, it is not reached "
                "(`kvcommons stats` shows its peers), or there is no room in memory"
            )
        progress.done, progress.failed = leading, progress.total - leading
        return {"chunks": leading, "were_there": were_there}

    async def _here(self) -> set[int]:
        return await at_place(self._core, self._fingerprint, self._keys, MEMORY)

    async def _ask(self, _missing: list[int]) -> None:
        layout = self._layout
        await asyncio.to_thread(
            self._core.bring_from,
            self._node,
            self._fingerprint,
            self._keys,
            layout.chunk_tokens,
            layout.tenant,
            shards_of(layout),
        )


class Send:
    """A job of the node that has the chunks: has the other one fetch them, follows that, and then drops them."""

    def __init__(
        self,
        core: SendingCore,
        ask: Ask,
        fingerprint: bytes,
        keys: bytes,
        *,
        own: str,
        node: str,
        source: str | None,
        keep: bool,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """:param keys: of one chain, from its first chunk on. :param own: this node's name. :param source: the only
        place that they leave; None: every place of this node."""
        self._core, self._ask, self._fingerprint, self._keys = core, ask, fingerprint, keys
        self._own, self._node, self._source, self._keep = own, node, source, keep
        self._clock, self._pause = clock, pause

    async def __call__(self, progress: Progress) -> dict[str, Any]:
        """:raises JobError: if nothing is here, or nothing arrived there."""
        held = await self._leading()
        if not held:
            raise JobError(
                f"the first of the {len(self._keys) // KEY_BYTES} chunks is not in {self._source or self._own}"
            )
        progress.total = held
        layout = await asyncio.to_thread(self._core.layout_of, self._fingerprint, self._keys[:KEY_BYTES])
        if layout is None:
            raise JobError(
                "this node does not know yet how an engine lays these chunks out: ask again after one has attached"
            )
        keys = [self._keys[at : at + KEY_BYTES].hex() for at in range(0, held * KEY_BYTES, KEY_BYTES)]
        asked = FetchRequest(fingerprint=self._fingerprint.hex(), keys=keys, node=self._own, layout=told_layout(layout))
        there = await self._follow(await self._begin(asked), progress)
        arrived = min(held, int(there["chunks"]))
        left = 0 if self._keep else await self._leave(arrived)
        progress.done, progress.failed = arrived, held - arrived
        return {"chunks": arrived, "were_there": int(there["were_there"]), "removed_from_source": left}

    def _places(self) -> list[str]:
        own = [MEMORY, *(name for name, *_ in self._core.tiers() if name in OWN_TIERS)]
        return [name for name in own if self._source in (None, name)]

    async def _leading(self) -> int:
        """How many leading chunks are in a place that is meant."""
        found: set[int] = set()
        for place in self._places():
            found |= await at_place(self._core, self._fingerprint, self._keys, place)
        return next((number for number in range(len(self._keys) // KEY_BYTES) if number not in found), len(found))

    async def _begin(self, asked: FetchRequest) -> str:
        result = await self._ask(self._node, "fetch", asked)
        if not result.ok:
            raise JobError(f"{self._node}: {result.error}")
        return str(result.answer["job"]["job"])

    async def _follow(self, job: str, progress: Progress) -> dict[str, Any]:
        """Until the other node's job has ended; this one's end ends it."""
        deaf = 0
        try:
            while True:
                result = await self._ask(self._node, "jobs", JobsQuery(job=job))
                found = result.answer.get("jobs") if result.ok else None
                deaf = 0 if found else deaf + 1
                if deaf >= DEAF_MAX:
                    raise JobError(f"{self._node}: {result.error or f'it knows no job {job} any more'}")
                if found:
                    told = found[0]
                    progress.done, progress.detail = told["progress"]["done"], f"{self._node}: {told['state']}"
                    if told["state"] == "done":
                        return dict(told["result"])
                    if told["state"] in ("failed", "cancelled"):
                        raise JobError(f"{self._node}: {told['error'] or told['state']}")
                await self._pause(FOLLOW_SECONDS)
        except asyncio.CancelledError:
            with suppress(asyncio.CancelledError):  # of the one who waits: what was asked goes on to its own time-out
                await asyncio.shield(self._ask(self._node, "cancel", CancelRequest(job=job)))
            raise

    async def _leave(self, chunks: int) -> int:
        """Out of every place that is meant. Returns how many chunks memory let go of, or the tier, where one is named."""
        keys, gone = self._keys[: chunks * KEY_BYTES], 0
        places = self._places()
        for tier in places:
            if tier != MEMORY:
                shards = await asyncio.to_thread(self._core.remove_behind, tier, self._fingerprint, keys)
                gone = shards if self._source == tier else gone
        if MEMORY not in places:
            return gone
        since = self._clock()
        gone = await asyncio.to_thread(self._core.let_go, self._fingerprint, keys)
        while self._clock() - since < LEAVE_SECONDS_MAX and await at_place(self._core, self._fingerprint, keys, MEMORY):
            await self._pause(POLL_SECONDS)
            gone += await asyncio.to_thread(self._core.let_go, self._fingerprint, keys)
        return gone
