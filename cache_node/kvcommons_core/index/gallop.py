"""How deep each member holds a chain, from probes at some of its depths. Pure, besides the caller's own way to fetch.

A chain is held from its beginning: who holds depth d holds all before it (nodes evict suffixes before prefixes). So a few probes tell all.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kvcommons_core import limits
from kvcommons_core.index import schema

TIERS: Final = len(schema.Tier)
FANOUT: Final = 8  # probes that split one interval in a round trip
Probe = tuple[int, bytes]


@dataclass(slots=True)
class Hit:
    """What one member holds of the chain."""

    depth: int = 0
    """Keys in a row from the first one."""
    by_tier: list[int] = field(default_factory=lambda: [0] * TIERS)
    """The same, split by where they lie."""


def fold(probes: Sequence[Probe], epoch_of: Mapping[int, int], now_born: int, age_max: int) -> dict[int, Hit]:
    """slot -> Hit, from (depth index, packed holders) in ascending order, the first index being 0.

    Only holders count whose (slot, epoch) is alive in `epoch_of` and that are not older than `age_max` units. What lies between two probes
    is as at the deeper one, for a member that is at both.
    """
    hits: dict[int, Hit] = {}
    alive: set[int] | None = None
    previous = -1
    for index, packed in probes:
        if previous < 0 and index != 0:
            break
        here = set()
        for slot, epoch, tier, _, born in schema.iter_holders(packed):
            if epoch_of.get(slot) != epoch or schema.age_units(born, now_born) > age_max:
                continue
            if alive is not None and slot not in alive:
                continue
            here.add(slot)
            hit = hits.setdefault(slot, Hit())
            hit.depth = index + 1
            hit.by_tier[tier if tier < TIERS else TIERS - 1] += index - previous
        alive = here
        previous = index
        if not alive:
            break
    return hits


async def gallop(count: int, fetch: Callable[[list[int]], Awaitable[list[bytes]]], probes_max: int) -> list[Probe]:
    """The lookup script's work, done by the client where a script may not read many keys (Redis Cluster): few round trips, more probes."""
    seen: dict[int, bytes] = {}

    async def probe(indices: Sequence[int]) -> None:
        wanted = sorted(set(indices) - seen.keys())[: max(0, probes_max - len(seen))]
        if wanted:
            seen.update(zip(wanted, await fetch(wanted), strict=True))

    if count <= 0:
        return []
    await probe([0, *(min(2**power - 1, count - 1) for power in range(1, count.bit_length() + 1))])
    for _ in range(
        count.bit_length() * 2
    ):  # each round shrinks every interval; twice the bits of the count is more than enough
        order = sorted(seen)
        pairs = [(a, b) for a, b in itertools.pairwise(order) if b - a > 1 and _shape(seen[a]) != _shape(seen[b])]
        if not pairs or len(seen) >= probes_max:
            break
        await probe(
            [
                a + (b - a) * step // FANOUT
                for a, b in pairs
                for step in range(1, FANOUT)
                if a < a + (b - a) * step // FANOUT < b
            ]
        )
    return sorted(seen.items())


def _shape(packed: bytes) -> bytes:
    """Holders without their age and flags."""
    return b"".join(packed[at : at + 5] for at in range(0, len(packed), limits.HOLDER_BYTES))
