"""Some of the chunks, as a caller names them: where they are, and forgetting them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol

from kvcommons_core.keys import namespace_root, split_keys, token_keys

from kvcommons_node import fingerprints
from kvcommons_node.api import refusals_work
from kvcommons_node.api.base import Chain
from kvcommons_node.api.models_select import (
    RUNS_MAX,
    ChunkRun,
    ClearAnswer,
    ClearRequest,
    LookupAnswer,
    LookupRequest,
    NodePlace,
)
from kvcommons_node.engines import Engines
from kvcommons_node.model_names import ModelNames
from kvcommons_node.pinning import Pinning
from kvcommons_node.pool_view import KEYS_ASKED_MAX, Place, PoolView
from kvcommons_node.seam import MEMORY, Core, KnownFingerprint

NO_FINGERPRINT = bytes(32)
AGE_LIMIT = "of what is on a tier and not in memory no age is known: of that nothing was cleared by age"


NOT_TOLD = (
    "an engine tells nobody what its own cache holds; after a request it says how much it reused (`kvcommons why`)"
)


class Named(Protocol):
    """A request that means some chunks."""

    @property
    def fingerprint(self) -> str | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def keys(self) -> list[str] | None: ...
    @property
    def tokens(self) -> list[int] | None: ...
    @property
    def salt(self) -> str | None: ...
    @property
    def chunk_tokens(self) -> int: ...


def tenant_of(salt: str, secret: bytes) -> int:
    """The number that a tenant's chunks carry; engines make it the same way."""
    return int.from_bytes(namespace_root(NO_FINGERPRINT, secret, salt)[:8], "little") if salt else 0


class Selecting:
    """Lookup and clear, over the core, the pins and the pool."""

    def __init__(
        self,
        core: Core,
        pinning: Pinning,
        pool: PoolView,
        secret: bytes,
        known: Callable[[], list[KnownFingerprint]],
        models: ModelNames,
        engines: Engines,
    ) -> None:
        """:param known: the fingerprints that the core knows now."""
        self._core, self._pinning, self._pool, self._secret, self._known = core, pinning, pool, secret, known
        self._models = models
        self._engines = engines

    async def chain(self, request: Chain) -> tuple[bytes, bytes]:
        """The fingerprint that is meant, and the keys of the chain's whole chunks.

        :raises Refusal: if the fingerprint's digits mean none, or several; if no engine makes tokens of the text."""
        tokens = request.tokens
        if request.text is not None:
            model = {"model": request.model} if request.model is not None else {}
            tokens = await self._engines.tokens_of({"prompt": request.text, **model})
        return await asyncio.to_thread(self._chain, request, tokens)

    def _chain(self, request: Chain, tokens: list[int] | None) -> tuple[bytes, bytes]:
        fingerprint = fingerprints.resolve(request.fingerprint, self._known())
        if request.keys is not None:
            return fingerprint, b"".join(bytes.fromhex(key) for key in request.keys)
        root = namespace_root(fingerprint, self._secret, request.salt)
        return fingerprint, token_keys(root, tokens or [], request.chunk_tokens)

    async def lookup(self, request: LookupRequest) -> LookupAnswer:
        """:raises Refusal: as `chain`. :raises IndexUnavailableError: if it is to be asked and does not answer."""
        fingerprint, keys = await self.chain(request)
        names, bits = await asyncio.to_thread(self._core.places, fingerprint, keys)
        hit = await asyncio.to_thread(self._core.lookup, fingerprint, keys)
        held: list[tuple[Place, ...]] = []
        limits = []
        if request.nodes:
            held = await self._pool.holders(split_keys(keys))
            if len(bits) > KEYS_ASKED_MAX:
                limits.append(f"the index was asked for the first {KEYS_ASKED_MAX} chunks")
        if request.engines:
            limits += [f"{one.name}: {NOT_TOLD}" for one in await self._engines.all()]
        runs = runs_of(names, bits, held)
        return LookupAnswer(
            chunks=len(bits),
            hit_chunks=hit,
            hit_tokens=hit * request.chunk_tokens,
            here_chunks=next((at for at, one in enumerate(bits) if not one), len(bits)),
            places={name: sum(one >> at & 1 for one in bits) for at, name in enumerate(names)},
            runs=runs[:RUNS_MAX],
            runs_left=max(0, len(runs) - RUNS_MAX),
            limits=limits,
        )

    async def clear(self, request: ClearRequest) -> ClearAnswer:
        """Everything but the epoch, which is the index'. :raises Refusal: if what is named can't be cleared so."""
        self._check_places(request)
        chunks, shards = 0, dict[str, int]()
        for fingerprint, keys in await self.meant(request):
            removed, of_tiers = await asyncio.to_thread(
                self._core.clear_some,
                fingerprint=fingerprint,
                tenant=tenant_of(request.salt, self._secret) if request.salt is not None else None,
                keys=keys,
                age_ms_min=(request.older_than_seconds or 0) * 1_000,
                places=request.tiers,
            )
            chunks += removed
            shards = {name: shards.get(name, 0) + count for name, count in of_tiers.items()}
        engines = await self._engines.reset(partly=not request.all) if request.engines else []
        tiers = [name for name in shards if not request.tiers or name in request.tiers]
        in_memory = not request.tiers or MEMORY in request.tiers
        return ClearAnswer(
            chunks=chunks,
            tier_shards={name: shards[name] for name in tiers},
            pins=await self._pinning.cleared() if in_memory else 0,
            epoch=None,
            engines=engines,
            limits=[AGE_LIMIT] if request.older_than_seconds is not None and tiers else [],
        )

    async def meant(self, request: Named) -> list[tuple[bytes | None, bytes]]:
        """Fingerprints (None: any), each with the keys that are meant of it (empty: all).

        :raises Refusal: of a fingerprint or a model that is not known."""
        found = []
        for fingerprint in self._fingerprints(request):
            keys = await asyncio.to_thread(self._keys, request, fingerprint)
            # Of a text that is shorter than a chunk nothing is meant, which the core would take for all.
            if keys or (request.keys is None and request.tokens is None):
                found.append((fingerprint, keys))
        return found

    def check_tier(self, name: str | None) -> None:
        """:raises Refusal: of a tier that this node does not have; None stands for any."""
        if name is not None:
            self._known_places("tier", [name], self._tier_names())

    def check_source(self, name: str) -> None:
        """:raises Refusal: of a place that this node does not have."""
        self._known_places("source", [name], self._places())

    def check_move(self, source: str, target: str) -> None:
        """:raises Refusal: of a place that this node does not have, or of one place twice."""
        self.check_source(source)
        self._known_places("target", [target], self._places())
        if source == target:
            raise refusals_work.same_place(source)
        if MEMORY not in (source, target):
            raise refusals_work.not_past_memory(source, target)
        # What is written behind goes to the first tier that serves: another is not chosen.
        first = self._tier_names()[0]
        if target not in (MEMORY, first):
            raise refusals_work.not_written_to(target, first)

    def _tier_names(self) -> list[str]:
        return [tier[0] for tier in self._core.tiers()]

    def _places(self) -> list[str]:
        return [MEMORY, *self._tier_names()]

    def _known_places(self, field: str, names: Sequence[str], known: list[str]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise refusals_work.unknown_tier(unknown[0], known, field)

    def _check_places(self, request: ClearRequest) -> None:
        self._known_places("tiers", request.tiers, self._places())
        if request.older_than_seconds is not None and request.tiers and MEMORY not in request.tiers:
            raise refusals_work.age_without_memory(request.tiers)

    def _fingerprints(self, request: Named) -> list[bytes | None]:
        if request.fingerprint is not None:
            return [fingerprints.resolve(request.fingerprint, self._known())]
        if request.model is None:
            return [None]
        found = self._models.fingerprints(request.model)
        if not found:
            raise refusals_work.unknown_model(request.model, self._models.known())
        return [*found]

    def _keys(self, request: Named, fingerprint: bytes | None) -> bytes:
        if request.keys is not None:
            return b"".join(bytes.fromhex(key) for key in request.keys)
        if request.tokens is None or fingerprint is None:
            return b""
        root = namespace_root(fingerprint, self._secret, request.salt or "")
        return token_keys(root, request.tokens, request.chunk_tokens)


def runs_of(names: Sequence[str], bits: Sequence[int], held: Sequence[tuple[Place, ...]]) -> list[ChunkRun]:
    """Chunks one after another with the same places, as one. `held`: of the first chunks, what the index says."""
    runs: list[ChunkRun] = []
    at = 0
    each = ((one, held[number] if number < len(held) else ()) for number, one in enumerate(bits))
    for (places, nodes), same in groupby(each):
        count = sum(1 for _ in same)
        runs.append(
            ChunkRun(
                first=at,
                chunks=count,
                places=[name for number, name in enumerate(names) if places >> number & 1],
                nodes=[NodePlace(node=node, tier=tier) for node, tier in nodes],
            )
        )
        at += count
    return runs
