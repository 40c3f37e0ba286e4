"""Which replica gets a request. Pure: it reads what it is given and touches nothing.

The score of the default policy, in seconds of the fleet's time, lower is better:

    cost_i = wait_i + (1 + rho / (1 - rho)) * prefill_i(uncached_i, length) + d * decoding_i

`wait_i` is what is queued there already; `rho / (1 - rho)` is the price that this request's prefill puts on those that
come after it, so that a busy fleet saves work and an idle one saves time; `uncached_i` is the length less what the
replica finds in its own cache, on its node, on disk or at a peer, each worth less than the one before.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import xxhash

RHO_MAX: Final = 0.97
BOUNDED_LOAD_FACTOR: Final = 1.25
# Costs closer than this are the same: what we measure is not more exact.
TIE_SECONDS: Final = 0.0005
# However long a prefill has taken, a fifth of what waits is believed to be left.
PROGRESS_MAX: Final = 0.8


_xxh64 = xxhash.xxh3_64_intdigest


class Policy(enum.StrEnum):
    """How a replica is chosen."""

    COST = "cost"
    ROUND_ROBIN = "roundRobin"
    LEAST_LOAD = "leastLoad"
    PREFIX_HASH = "prefixHash"


class Hit(NamedTuple):
    """How deep into a prompt a replica finds KV: in its own cache, then also on its node, on disk, at any peer.

    Each is a number of leading tokens, none smaller than the one before it.
    """

    engine: int = 0
    memory: int = 0
    disk: int = 0
    peer: int = 0


NO_HIT: Final = Hit()


@dataclasses.dataclass(frozen=True, slots=True)
class Credits:
    """What a token found in a tier saves of prefilling it: 1 is all, 0 nothing."""

    engine: float = 1.0
    memory: float = 0.95
    disk: float = 0.8
    peer: float = 0.7

    def __post_init__(self) -> None:
        if not 1.0 >= self.engine >= self.memory >= self.disk >= self.peer >= 0.0:
            raise ValueError("credits must fall from engine to peer, within 0..1")


@dataclasses.dataclass(slots=True)
class Prefill:
    """Seconds to prefill: a fixed part, one for each uncached token, and one for each pair of it and the length."""

    base_seconds: float = 0.02
    token_seconds: float = 0.0002
    pair_seconds: float = 0.0
    known: bool = True  # whether it was learnt; else it is a guess, which says nothing of how long a queue is

    def seconds(self, uncached: float, length: int) -> float:
        """What this much uncached text in a prompt of this length takes."""
        return self.base_seconds + uncached * (self.token_seconds + self.pair_seconds * length)


@dataclasses.dataclass(slots=True)
class Candidate:
    """One replica as the picker sees it."""

    name: bytes
    waiting_tokens: int = 0  # sent there and not yet prefilled
    decoding: int = 0
    requests: int = 0  # dispatched and not finished
    prefill: Prefill = dataclasses.field(default_factory=Prefill)
    head_at: float = 0.0  # when the prefill under way began, as far as is known
    adapters: Collection[str] = ()  # LoRA adapters that were used there lately


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """The fixed parts of the score."""

    credits: Credits = Credits()
    decode_seconds: float = 0.004  # what one decoding request slows a new one by
    adapter_seconds: float = 0.2  # what loading a LoRA adapter takes


@dataclasses.dataclass(slots=True)  # not frozen: that would cost a request half a microsecond
class Shape:
    """What of a request the choice depends on."""

    length: int  # tokens, estimated
    affinity: int  # a hash of its first text; equal for requests that begin alike
    session: int = 0  # a hash of what the client calls its session; 0 for none
    adapter: str = ""  # the LoRA adapter that it asks for


def uncached_tokens(hit: Hit, length: int, credits: Credits) -> float:
    """Tokens of prefill work left after what each tier saves."""
    engine, memory, disk, peer = hit
    if peer == 0:
        return length
    saved = (
        engine * credits.engine
        + (memory - engine) * credits.memory
        + (disk - memory) * credits.disk
        + (peer - disk) * credits.peer
    )
    return max(0.0, length - saved)


def price_of(rho: float) -> float:
    """What a second of work counts for at this utilisation: its own time, and what it holds others up."""
    rho = min(rho, RHO_MAX)
    return 1.0 + rho / (1.0 - rho)


def work_seconds(candidate: Candidate, hit: Hit, shape: Shape, weights: Weights) -> float:
    """What a replica would have to do for a request before its first byte."""
    prefill, length = candidate.prefill, shape.length
    uncached = length if hit is NO_HIT else uncached_tokens(hit, length, weights.credits)
    work = prefill.base_seconds + uncached * (prefill.token_seconds + prefill.pair_seconds * length)
    if shape.adapter and shape.adapter not in candidate.adapters:
        work += weights.adapter_seconds
    return work


def cost(candidate: Candidate, hit: Hit, shape: Shape, rho: float, weights: Weights) -> float:
    """The score of one replica for one request."""
    wait = candidate.waiting_tokens * candidate.prefill.token_seconds
    return (
        wait
        + price_of(rho) * work_seconds(candidate, hit, shape, weights)
        + weights.decode_seconds * candidate.decoding
    )


def rendezvous(affinity: int, name: bytes) -> int:
    """The weight of a replica for a text; the highest wins, and a replica that leaves moves only its own texts."""
    return _xxh64(name, affinity)


def wait_seconds(candidate: Candidate, now: float) -> float:
    """What is still to be prefilled there: of what was sent, less what has gone by since the first of it began."""
    whole = candidate.waiting_tokens * candidate.prefill.token_seconds
    return whole - min(max(0.0, now - candidate.head_at), PROGRESS_MAX * whole) if whole > 0.0 else 0.0


def pick_cost(candidates: Sequence[Candidate], hits: Sequence[Hit], shape: Shape, rho: float, weights: Weights) -> int:
    """The position of the cheapest; of equals the one decoding least, then by rendezvous hash."""
    price = price_of(rho)
    length, decode_seconds, adapter = shape.length, weights.decode_seconds, shape.adapter
    costs: list[float] = []
    for candidate, hit in zip(candidates, hits, strict=True):  # `cost`, without its calls: this runs for each request
        prefill = candidate.prefill
        token_seconds = prefill.token_seconds
        uncached = length if hit is NO_HIT else uncached_tokens(hit, length, weights.credits)
        work = prefill.base_seconds + uncached * (token_seconds + prefill.pair_seconds * length)
        if adapter and adapter not in candidate.adapters:
            work += weights.adapter_seconds
        costs.append(candidate.waiting_tokens * token_seconds + price * work + decode_seconds * candidate.decoding)
    return cheapest(costs, candidates, shape)


def cheapest(costs: Sequence[float], candidates: Sequence[Candidate], shape: Shape) -> int:
    """The position of the least cost; of equals the one decoding least, then by rendezvous hash."""
    limit = min(costs) + TIE_SECONDS
    equals = [position for position, value in enumerate(costs) if value <= limit]
    if len(equals) == 1:
        return equals[0]
    fewest = min([candidates[position].decoding for position in equals])
    equals = [position for position in equals if candidates[position].decoding == fewest]
    if len(equals) == 1:  # only a tie is worth hashing for
        return equals[0]
    affinity = shape.session or shape.affinity
    return max(equals, key=lambda position: _xxh64(candidates[position].name, affinity))


def pick_bounded_hash(candidates: Sequence[Candidate], affinity: int) -> int:
    """The first by rendezvous hash that is not loaded over 1.25 times the mean."""
    total = sum([candidate.requests for candidate in candidates])
    limit = BOUNDED_LOAD_FACTOR * (total + 1) / len(candidates)
    best, best_weight = -1, -1
    for position, candidate in enumerate(candidates):
        if candidate.requests < limit:
            weight = rendezvous(affinity, candidate.name)
            if weight > best_weight:
                best, best_weight = position, weight
    assert best >= 0  # the least loaded one is below the mean
    return best


def pick_least_load(candidates: Sequence[Candidate], affinity: int) -> int:
    """The one that waits least, then has fewest requests, then by rendezvous hash."""
    return min(
        range(len(candidates)),
        key=lambda position: (
            candidates[position].waiting_tokens * candidates[position].prefill.token_seconds,
            candidates[position].requests,
            -rendezvous(affinity, candidates[position].name),
        ),
    )


def pick(
    policy: Policy,
    candidates: Sequence[Candidate],
    hits: Sequence[Hit] | None,
    shape: Shape,
    *,
    rho: float,
    weights: Weights,
    turn: int,
) -> int:
    """The position of the chosen replica.

    `hits` is None when the index can't be asked: then texts that begin alike still meet, by a hash. `turn` counts
    requests, for round robin.
    """
    if not candidates:
        raise ValueError("no candidate to pick from")
    if len(candidates) == 1:
        return 0
    if policy is Policy.ROUND_ROBIN:
        return turn % len(candidates)
    if policy is Policy.LEAST_LOAD:
        return pick_least_load(candidates, shape.affinity)
    if policy is Policy.PREFIX_HASH or hits is None:
        return pick_bounded_hash(candidates, shape.affinity)
    return pick_cost(candidates, hits, shape, rho, weights)
