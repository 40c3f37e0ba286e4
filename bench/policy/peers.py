"""How the peers choose a replica, written from their documents as formulas, each with the settings that are tried.

All are given the same: matched blocks of each replica as the index says, and load as this router knows it without delay, which is more than
most of them have. `tier` is what a block that only the commons holds counts for; a peer may count it or not, whichever serves it better.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kvcommons_router.picker import wait_seconds

from bench.policy import world
from bench.policy.world import BLOCK_TOKENS, Job, MakePolicy, Router


@dataclass(slots=True)
class Sight:
    """What a formula sees of a request and the replicas; blocks of 512 tokens, seconds."""

    router: Router
    job: Job
    now: float
    total: int
    matched: Sequence[float]
    requests: Sequence[int]
    waiting: Sequence[float]
    """Blocks sent there and not yet prefilled."""
    active: Sequence[int]
    """Blocks of the prompts that are being answered there."""

    def work(self, at: int) -> float:
        """Seconds that this request's prefill would take, by what was learnt."""
        uncached = (self.total - self.matched[at]) * BLOCK_TOKENS
        return self.router.candidates[at].prefill.seconds(uncached, self.job.length)

    def wait(self, at: int) -> float:
        """Seconds that it would wait, as estimated."""
        return wait_seconds(self.router.candidates[at], self.now)

    def least(self, score: Callable[[int], float], among: Sequence[int] | None = None) -> int:
        """Who scores least; one of them by lot."""
        places = range(len(self.matched)) if among is None else among
        scores = [score(at) for at in places]
        limit = min(scores) + 1e-9
        best = [at for at, value in zip(places, scores, strict=True) if value <= limit]
        return best[0] if len(best) == 1 else self.router.random.choice(best)


Settings = Mapping[str, float]
Formula = Callable[[Sight, Settings], int]


def gie(sight: Sight, settings: Settings) -> int:
    """The Gateway API inference extension: weighted sum of prefix, queue and KV use; its own weights are 3:2:2."""
    queue: Sequence[float] = sight.requests
    if settings["queued"]:
        queue = [one.requests - one.decoding for one in sight.router.candidates]
    low, high = min(queue), max(queue)
    room = sight.router.world.setup.blocks

    def score(at: int) -> float:
        short = 1.0 if low == high else (high - queue[at]) / (high - low)
        use = min(1.0, (sight.active[at] + sight.waiting[at]) / room)
        return -(
            settings["prefix"] * sight.matched[at] / sight.total
            + settings["queue"] * short
            + settings["kv"] * (1 - use)
        )

    return sight.least(score)


def llmd(sight: Sight, settings: Settings) -> int:
    """llm-d: only replicas that hold a share of the prompt, unless they are too far behind; of these the least uncached work in flight."""
    places = range(len(sight.matched))
    warm = [at for at in places if sight.matched[at] / sight.total >= settings["share"]]
    waits = [sight.wait(at) for at in places]
    if warm and min(waits[at] for at in warm) - min(waits) > settings["gate"]:
        warm = []
    return sight.least(lambda at: sight.waiting[at], warm or None)


def mooncake(sight: Sight, settings: Settings) -> int:
    """Mooncake: the least estimated time to first token; `wait` tries to believe more or less in its estimate of the queue."""
    return sight.least(lambda at: settings["wait"] * sight.wait(at) + sight.work(at))


def dynamo(sight: Sight, settings: Settings) -> int:
    """Dynamo: overlap weight times the blocks to prefill, and the blocks being decoded; no temperature."""
    weight, less = settings["overlap"], settings["decode"]

    def score(at: int) -> float:
        prefill = sight.waiting[at] + sight.total - sight.matched[at]
        return weight * prefill + less * (sight.active[at] + sight.total)

    return sight.least(score)


def sglang(sight: Sight, settings: Settings) -> int:
    """sglang's cache_aware: shortest queue when out of balance, else the longest match if it is long enough, else the smallest tree."""
    most, least = max(sight.requests), min(sight.requests)
    if most - least > settings["absolute"] and most > settings["relative"] * least:
        return sight.least(lambda at: sight.requests[at])
    if max(sight.matched) / sight.total > settings["share"]:
        return sight.least(lambda at: -sight.matched[at])
    return sight.least(lambda at: len(sight.router.world.replicas[at].held))


def loadaware(sight: Sight, settings: Settings) -> int:
    """production-stack's loadaware: the matched share less beta times the load over the mean."""
    mean = sum(sight.requests) / len(sight.requests)
    return sight.least(
        lambda at: -(sight.matched[at] / sight.total - settings["beta"] * (sight.requests[at] - mean) / max(1.0, mean))
    )


@dataclass(frozen=True)
class Peer:
    """A formula and every setting that is tried; the first combination is the peer's own."""

    formula: Formula
    grid: Mapping[str, Sequence[float]]

    def combinations(self) -> list[dict[str, float]]:
        """All of them."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


PEERS: Final[dict[str, Peer]] = {
    "gie": Peer(gie, {"prefix": (3, 6, 12), "queue": (2,), "kv": (2, 0), "queued": (1, 0)}),
    "llmd": Peer(llmd, {"share": (0.8, 0.4, 0.2, 0.1), "gate": (18, 9, 5)}),
    "mooncake": Peer(mooncake, {"wait": (1, 0.5, 0.25, 2)}),
    "dynamo": Peer(dynamo, {"overlap": (1, 2, 4, 8), "decode": (1, 0)}),
    "sglang": Peer(sglang, {"absolute": (64, 32, 16, 8), "relative": (1.5,), "share": (0.3, 0.5)}),
    "loadaware": Peer(loadaware, {"beta": (1, 0.5, 0.25, 2, 4)}),
}
TIERS: Final = (0.0, 0.7)
"""What a block counts for that only the commons holds, where there is one."""


class PeerPolicy:
    """A peer's formula at work: everything is sent at once."""

    def __init__(self, router: Router, formula: Formula, settings: Settings, tier: float) -> None:
        self._router = router
        self._formula = formula
        self._settings = settings
        self._tier = tier

    def arrived(self, job: Job, now: float) -> None:
        """Sends it."""
        router, tier, depths = self._router, self._tier, job.depths
        candidates = router.candidates
        pooled = job.pooled
        matched: Sequence[float] = depths
        if tier and pooled:
            matched = [depth + tier * max(0, pooled - depth) for depth in depths]
        sight = Sight(
            router,
            job,
            now,
            len(job.blocks),
            matched,
            [one.requests for one in candidates],
            [one.waiting_tokens / BLOCK_TOKENS for one in candidates],
            router.active,
        )
        at = self._formula(sight, self._settings)
        router.send(job, at, int((len(job.blocks) - matched[at]) * BLOCK_TOKENS), now)

    def freed(self, now: float) -> None:
        """Nothing waits."""

    def hear(self, others: Sequence[world.Policy]) -> None:
        """Nothing waits there, either."""


def peer(name: str, settings: Settings, tier: float = 0.0) -> MakePolicy:
    """A peer's policy with some settings."""
    formula = PEERS[name].formula
    return lambda router: PeerPolicy(router, formula, settings, tier)
