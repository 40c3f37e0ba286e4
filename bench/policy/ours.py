"""Our policies in the simulation: the picker and the binder that the router runs, and nothing of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kvcommons_router import picker
from kvcommons_router.binding import RIVALS_MAX, Binder, Binding, Rival, Ticket
from kvcommons_router.picker import Policy, Shape, Weights

from bench.policy import world
from bench.policy.world import Job, MakePolicy, Router


class OnArrival:
    """Everything is sent at once."""

    def __init__(self, router: Router, policy: Policy, weights: Weights) -> None:
        self._router = router
        self._policy = policy
        self._weights = weights
        self._turn = 0

    def arrived(self, job: Job, now: float) -> None:
        """Sends it."""
        router, weights = self._router, self._weights
        self._turn += 1
        at = picker.pick(
            self._policy,
            router.candidates,
            job.hits,
            Shape(job.length, job.affinity),
            rho=router.rho,
            weights=weights,
            turn=self._turn,
        )
        router.send(job, at, int(picker.uncached_tokens(job.hits[at], job.length, weights.credits)), now)

    def freed(self, now: float) -> None:
        """Nothing waits."""

    def hear(self, others: Sequence[world.Policy]) -> None:
        """Nothing waits there, either."""


class Late:
    """Requests wait in the router past a window."""

    def __init__(self, router: Router, binding: Binding, weights: Weights) -> None:
        self._router = router
        self._weights = weights
        self._binder: Binder[Job] = Binder(binding, weights, lambda job: job.hits)
        self._binder.follow(router.candidates, 0.0)
        self._tickets: dict[Job, Ticket[Job]] = {}
        self._told: dict[Ticket[Job], Rival] = {}

    def arrived(self, job: Job, now: float) -> None:
        """Queues it, and sends off whoever can be."""
        ticket = Ticket(job, Shape(job.length, job.affinity), now, job.request.tenant)
        if self._binder.offer(ticket, now) is not None:
            raise RuntimeError("the queue is full: simulate less load, or let more requests wait")
        self._tickets[job] = ticket
        self._router.world.index.watch(job)
        self.freed(now)

    def freed(self, now: float) -> None:
        """Sends off whoever can be."""
        router, binder, tickets = self._router, self._binder, self._tickets
        if not tickets:
            return
        index = router.world.index
        for job in [one for one in index.stale if one in tickets]:
            del index.stale[job]
            router.look_up(job)
            binder.refresh(tickets[job], now)
        for ticket, at in binder.bind(router.rho, now):
            job = ticket.what
            del tickets[job]
            index.unwatch(job)
            router.send(job, at, int(picker.uncached_tokens(job.hits[at], job.length, self._weights.credits)), now)

    def told(self) -> list[Rival]:
        """What waits here, as it is told to others."""
        before, self._told = self._told, {}
        for ticket in itertools.islice(self._binder.in_order(), RIVALS_MAX):
            rival = before.get(ticket) or Rival(ticket.shape, ticket.tenant)
            rival.order, rival.works, rival.best = ticket.order, ticket.works, ticket.best
            self._told[ticket] = rival
        return list(self._told.values())

    def hear(self, others: Sequence[world.Policy]) -> None:
        """Takes what waits in the other routers."""
        self._binder.hear([rival for other in others if isinstance(other, Late) for rival in other.told()])


def on_arrival(policy: Policy = Policy.COST, weights: Weights | None = None) -> MakePolicy:
    """One of the picker's policies."""
    return lambda router: OnArrival(router, policy, weights or Weights())


def late(binding: Binding | None = None, weights: Weights | None = None) -> MakePolicy:
    """The picker's cost with late binding."""
    return lambda router: Late(router, binding or Binding(), weights or Weights())
