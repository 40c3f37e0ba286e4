"""Engines, their caches, a commons and routers over simulated time, driven by a heap of events.

Each replica prefills one request at a time, first come first served, in `base + block * uncached + pair * uncached * length` seconds
(blocks of 512 tokens), slower with what it decodes at that moment; an answer then takes `token_seconds` for each of its tokens. A replica
keeps the least recently used blocks of prefixes; a commons, where there is one, keeps more of them, to be fetched block by block.

Routers see what a router can see, and all policies see the same: the index (intents at the moment of dispatch; what engines drop, some
time after they did), what they sent themselves, first bytes and ends of answers as they come, and what other routers said of
their own load when they last did. Nobody sees when a replica will be free.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from kvcommons_router.load import Utilisation
from kvcommons_router.picker import NO_HIT, Candidate, Hit, Prefill, wait_seconds
from kvcommons_router.rates import PrefillLearner, pool

BLOCK_TOKENS: Final = 512
FIRST_BYTE, LAST_BYTE, HEARD, GOSSIP, LOOK = range(5)
GOSSIP_SECONDS: Final = 0.03
LOOK_SECONDS: Final = 0.02
"""How often a router looks at what waits in it, besides each first byte."""


class Request(NamedTuple):
    """One line of a trace."""

    at: float
    """Seconds."""
    blocks: Sequence[int]
    """One number for each block of the prompt; equal numbers have equal beginnings."""
    answer_tokens: int
    tenant: str = ""


@dataclass(frozen=True)
class Model:
    """What an engine's work takes, in seconds."""

    base: float = 0.008
    block: float = 0.025
    pair: float = 0.00003
    decoding: float = 0.004
    """Share by which each request that decodes slows a prefill."""
    token: float = 0.02
    fetch: float = 0.005
    """A block from the commons."""

    def prefill(self, uncached: int, length: int) -> float:
        """An idle replica's seconds for so many blocks of so long a prompt."""
        return self.base + uncached * (self.block + self.pair * length)


@dataclass(frozen=True)
class Setup:
    """A fleet."""

    replicas: int = 8
    blocks: int = 1000
    """Room in a replica."""
    commons: int = 0
    """Blocks that the commons holds; 0 for none."""
    routers: int = 1
    heard_seconds: float = 0.1
    """From the moment an engine drops or keeps a block until the index says so."""
    model: Model = Model()
    seed: int = 1


class Job:
    """A request on its way."""

    __slots__ = (
        "affinity", "before", "blocks", "depths", "hits", "length", "pooled", "replica", "request", "router", "sent_at", "tokens"
    )  # fmt: skip

    def __init__(self, request: Request, router: Router) -> None:
        self.request = request
        self.router = router
        self.blocks = request.blocks
        self.length = len(request.blocks) * BLOCK_TOKENS
        self.affinity = hash((request.blocks[min(15, len(request.blocks) - 1)], 0x9E3779B9)) & 0xFFFFFFFFFFFFFFFF
        self.depths: list[int] = []  # leading blocks that each replica holds, as the index says
        self.pooled = 0  # and the commons
        self.hits: list[Hit] = []
        self.tokens = 0  # to prefill, as expected at dispatch
        self.replica = -1
        self.sent_at = 0.0
        self.before = 0.0


class Holders:
    """Who holds which block: a bit for each replica."""

    def __init__(self, replicas: int) -> None:
        self._all = (1 << replicas) - 1
        self._replicas = replicas
        self.masks: dict[int, int] = {}
        self._watched: dict[int, dict[Job, None]] = {}  # in order, so that a run is the same each time
        self.stale: dict[Job, None] = {}
        """Watched jobs whose depths may have changed."""

    def depths(self, blocks: Sequence[int]) -> list[int]:
        """How many leading blocks each replica holds."""
        found = [0] * self._replicas
        alive, masks, depth = self._all, self.masks, 0
        for block in blocks:
            still = masks.get(block, 0) & alive
            if still != alive:
                lost = alive ^ still
                while lost:
                    low = lost & -lost
                    found[low.bit_length() - 1] = depth
                    lost ^= low
                alive = still
                if not alive:
                    return found
            depth += 1
        while alive:
            low = alive & -alive
            found[low.bit_length() - 1] = depth
            alive ^= low
        return found

    def add(self, replica: int, blocks: Sequence[int]) -> None:
        """A replica holds these, or will."""
        masks, bit, watched = self.masks, 1 << replica, self._watched
        for block in blocks:
            before = masks.get(block, 0)
            if not before & bit:
                masks[block] = before | bit
                if block in watched:
                    self.stale.update(watched[block])

    def drop(self, replica: int, blocks: Sequence[int]) -> None:
        """A replica no longer holds these."""
        masks, bit, watched = self.masks, 1 << replica, self._watched
        for block in blocks:
            before = masks.get(block, 0)
            if before & bit:
                if before == bit:
                    del masks[block]
                else:
                    masks[block] = before ^ bit
                if block in watched:
                    self.stale.update(watched[block])

    def watch(self, job: Job) -> None:
        """Says from now on when this job's depths may have changed."""
        watched = self._watched
        for block in job.blocks:
            watched.setdefault(block, {})[job] = None

    def unwatch(self, job: Job) -> None:
        """No longer."""
        watched = self._watched
        for block in dict.fromkeys(job.blocks):
            jobs = watched[block]
            del jobs[job]
            if not jobs:
                del watched[block]
        self.stale.pop(job, None)


class Replica:
    """An engine: what it holds, what waits there, what it decodes."""

    def __init__(self, blocks: int) -> None:
        self.room = blocks
        self.held: OrderedDict[int, None] = OrderedDict()
        self.queue: deque[Job] = deque()
        self.running = False
        self.decoding = 0
        self.busy_seconds = 0.0

    def depth(self, blocks: Sequence[int]) -> int:
        """Leading blocks that it holds."""
        held = self.held
        for depth, block in enumerate(blocks):
            if block not in held:
                return depth
        return len(blocks)

    def keep(self, blocks: Sequence[int]) -> list[int]:
        """Takes a prompt's blocks in, and names those that had to go; ends go before beginnings."""
        return _touch(self.held, blocks, self.room)


def _touch(held: OrderedDict[int, None], blocks: Sequence[int], room: int) -> list[int]:
    for block in reversed(blocks):
        if block in held:
            held.move_to_end(block)
        else:
            held[block] = None
    return [held.popitem(last=False)[0] for _ in range(max(0, len(held) - room))]


class Policy(Protocol):
    """What a router does with a request."""

    def arrived(self, job: Job, now: float) -> None:
        """A request came; it is sent now, or later by `freed`."""

    def freed(self, now: float) -> None:
        """Something has changed: a first byte came, or some time went by."""

    def hear(self, others: Sequence[Policy]) -> None:
        """Takes what waits in other routers."""


@dataclass
class Counts:
    """What a router has under way at each replica, as it knows itself."""

    tokens: list[int]
    decoding: list[int]
    requests: list[int]
    active: list[int]
    """Blocks of the prompts that are being answered."""
    heads: list[float]
    """When the prefill under way began, as far as this router saw."""


class Router:
    """One router: the picker's candidates, kept as `kvcommons_router.load` keeps them, and a policy."""

    policy: Policy

    def __init__(self, world: World, number: int) -> None:
        replicas = world.setup.replicas
        self.world = world
        self.number = number
        self.learners = [PrefillLearner(Prefill(known=False)) for _ in range(replicas)]
        alone = world.setup.routers == 1
        self.candidates = [  # several routers choose by what all of them have learnt
            Candidate(b"replica-%d" % at, prefill=learner.prefill if alone else Prefill(known=False))
            for at, learner in enumerate(self.learners)
        ]
        self.own = Counts([0] * replicas, [0] * replicas, [0] * replicas, [0] * replicas, [0.0] * replicas)
        self.active = [0] * replicas
        self.random = random.Random(f"{world.setup.seed}:{number}")

    @property
    def rho(self) -> float:
        """The share of the last minute that the fleet spent prefilling."""
        return self.world.utilisation.rho

    def look_up(self, job: Job) -> None:
        """Asks the index."""
        world = self.world
        job.depths = depths = world.index.depths(job.blocks)
        if world.commons_room:
            commons, pooled = world.commons, 0
            for block in job.blocks:
                if block not in commons:
                    break
                pooled += 1
            job.pooled = pooled
            far = pooled * BLOCK_TOKENS
            hits = []
            for depth in depths:
                tokens = depth * BLOCK_TOKENS
                hits.append(Hit(tokens, tokens, tokens, max(far, tokens)))
            job.hits = hits
        else:
            job.hits = [Hit(t, t, t, t) if (t := depth * BLOCK_TOKENS) else NO_HIT for depth in depths]

    def send(self, job: Job, replica: int, tokens: int, now: float) -> None:
        """Sends a request off; so many of its tokens are expected to need prefilling."""
        world, candidate, own = self.world, self.candidates[replica], self.own
        job.replica, job.tokens, job.sent_at = replica, tokens, now
        job.before = wait_seconds(candidate, now) / candidate.prefill.token_seconds
        world.work_seconds += candidate.prefill.seconds(tokens, job.length)
        own.tokens[replica] += tokens
        own.requests[replica] += 1
        if candidate.requests == candidate.decoding:
            candidate.head_at = own.heads[replica] = now
        candidate.waiting_tokens += tokens
        candidate.requests += 1
        world.index.add(replica, job.blocks)
        world.submit(job, now)

    def first_byte(self, job: Job, now: float) -> None:
        """An answer begins."""
        replica, own = job.replica, self.own
        candidate = self.candidates[replica]
        own.tokens[replica] -= job.tokens
        own.decoding[replica] += 1
        own.active[replica] += len(job.blocks)
        self.active[replica] += len(job.blocks)
        candidate.waiting_tokens -= job.tokens
        candidate.decoding += 1
        learner = self.learners[replica]
        if candidate.head_at >= job.sent_at:
            learner.add_next(job.tokens, now - candidate.head_at)
        else:
            learner.add(job.tokens, now - job.sent_at, job.before)
        candidate.head_at = own.heads[replica] = now

    def last_byte(self, job: Job) -> None:
        """An answer ends."""
        replica, own = job.replica, self.own
        own.decoding[replica] -= 1
        own.requests[replica] -= 1
        own.active[replica] -= len(job.blocks)
        self.active[replica] -= len(job.blocks)
        self.candidates[replica].decoding -= 1
        self.candidates[replica].requests -= 1

    def hear(self, others: Sequence[Router]) -> None:
        """Takes what the others have under way."""
        own = self.own
        for at, candidate in enumerate(self.candidates):
            candidate.head_at = max([own.heads[at], *[other.own.heads[at] for other in others]])
            candidate.waiting_tokens = own.tokens[at] + sum([other.own.tokens[at] for other in others])
            candidate.decoding = own.decoding[at] + sum([other.own.decoding[at] for other in others])
            candidate.requests = own.requests[at] + sum([other.own.requests[at] for other in others])
            self.active[at] = own.active[at] + sum([other.own.active[at] for other in others])
            pool(candidate.prefill, [router.learners[at].prefill for router in (self, *others)])
        self.policy.hear([other.policy for other in others])


class MakePolicy(Protocol):
    """Makes the policy of one router."""

    def __call__(self, router: Router) -> Policy:
        """The policy; it sends by `router.send`."""


@dataclass
class Outcome:
    """What a run came to. Seconds from a request's arrival to its first byte, in order of size."""

    seconds: list[float] = field(default_factory=list)
    blocks: int = 0
    found: int = 0
    fetched: int = 0
    utilisation: float = 0.0
    by_tenant: dict[str, list[float]] = field(default_factory=dict)

    @property
    def mean_ms(self) -> float:
        """The mean."""
        return 1000 * sum(self.seconds) / len(self.seconds)

    def percentile_ms(self, percent: float) -> float:
        """A percentile."""
        return 1000 * self.seconds[min(len(self.seconds) - 1, int(percent / 100 * len(self.seconds)))]


class World:
    """One run of one policy over one trace."""

    def __init__(self, setup: Setup, make: MakePolicy) -> None:
        self.setup = setup
        self.now = 0.0
        self.index = Holders(setup.replicas)
        self.replicas = [Replica(setup.blocks) for _ in range(setup.replicas)]
        self.commons: OrderedDict[int, None] = OrderedDict()
        self.commons_room = setup.commons
        self.utilisation = Utilisation()
        self.work_seconds = 0.0
        self.outcome = Outcome()
        self._events: list[tuple[float, int, int, object]] = []
        self._serial = 0
        self._under_way = 0
        self.routers = [Router(self, number) for number in range(setup.routers)]
        for router in self.routers:
            router.policy = make(router)

    def run(self, trace: Sequence[Request]) -> Outcome:
        """Runs it to the last first byte."""
        random_ = random.Random(self.setup.seed)
        routers, events, sampled = self.routers, self._events, 0.0
        self._later(LOOK_SECONDS, LOOK, None)
        if len(routers) > 1:
            self._later(GOSSIP_SECONDS, GOSSIP, None)
        at, last = 0, len(trace)
        self._under_way = last
        while self._under_way:
            if at < last and (not events or trace[at].at <= events[0][0]):
                request = trace[at]
                at += 1
                self.now = now = request.at
                if now - sampled >= 1.0:
                    sampled = now
                    self.utilisation.sample(self.work_seconds, self.setup.replicas, now)
                router = routers[random_.randrange(len(routers))] if len(routers) > 1 else routers[0]
                job = Job(request, router)
                router.look_up(job)
                router.policy.arrived(job, now)
            else:
                self.now, _, kind, what = heapq.heappop(events)
                self._happen(kind, what)
        return self._finish(trace)

    def _later(self, at: float, kind: int, what: object) -> None:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, kind, what))

    def _happen(self, kind: int, what: object) -> None:
        now = self.now
        if kind == FIRST_BYTE:
            assert isinstance(what, Job)
            self._first_byte(what, now)
        elif kind == LAST_BYTE:
            assert isinstance(what, Job)
            self.replicas[what.replica].decoding -= 1
            what.router.last_byte(what)
        elif kind == HEARD:
            assert isinstance(what, tuple)
            self._heard(*what)
        elif kind == GOSSIP:
            for router in self.routers:
                router.hear([other for other in self.routers if other is not router])
            self._later(now + GOSSIP_SECONDS, GOSSIP, None)
        else:
            for router in self.routers:
                router.policy.freed(now)
            self._later(now + LOOK_SECONDS, LOOK, None)

    def submit(self, job: Job, now: float) -> None:
        """A request reaches a replica."""
        replica = self.replicas[job.replica]
        if replica.running:
            replica.queue.append(job)
        else:
            self._start(replica, job, now)

    def _start(self, replica: Replica, job: Job, now: float) -> None:
        replica.running = True
        blocks, setup, outcome = job.blocks, self.setup, self.outcome
        depth = replica.depth(blocks)
        fetched = 0
        if self.commons_room:
            commons = self.commons
            for block in blocks[depth:]:
                if block not in commons:
                    break
                fetched += 1
        dropped = replica.keep(blocks)
        if dropped or depth < len(blocks):
            self._later(now + setup.heard_seconds, HEARD, (job.replica, blocks[depth:], dropped))
        uncached = len(blocks) - depth - fetched
        model = setup.model
        seconds = model.prefill(uncached, len(blocks)) * (1 + model.decoding * replica.decoding) + model.fetch * fetched
        replica.busy_seconds += seconds
        outcome.blocks += len(blocks)
        outcome.found += depth
        outcome.fetched += fetched
        self._later(now + seconds, FIRST_BYTE, job)

    def _first_byte(self, job: Job, now: float) -> None:
        replica, outcome = self.replicas[job.replica], self.outcome
        if self.commons_room:
            _touch(self.commons, job.blocks, self.commons_room)
        replica.decoding += 1
        seconds = now - job.request.at
        outcome.seconds.append(seconds)
        if job.request.tenant:
            outcome.by_tenant.setdefault(job.request.tenant, []).append(seconds)
        self._later(now + job.request.answer_tokens * self.setup.model.token, LAST_BYTE, job)
        self._under_way -= 1
        if replica.queue:
            self._start(replica, replica.queue.popleft(), now)
        else:
            replica.running = False
        job.router.first_byte(job, now)
        job.router.policy.freed(now)

    def _heard(self, replica: int, kept: Sequence[int], dropped: Sequence[int]) -> None:
        """The index hears what an engine has dropped and kept; what it has taken in again since is not dropped."""
        held = self.replicas[replica].held
        self.index.drop(replica, [block for block in dropped if block not in held])
        self.index.add(replica, [block for block in kept if block in held])

    def _finish(self, trace: Sequence[Request]) -> Outcome:
        outcome = self.outcome
        outcome.seconds.sort()
        span = max(1e-9, self.now - trace[0].at)
        outcome.utilisation = sum(replica.busy_seconds for replica in self.replicas) / len(self.replicas) / span
        return outcome
