"""Late binding: where every replica that a request should go to has enough to prefill, the request waits here instead of there.

Pure: it decides, and touches nothing. What waits in an engine is bound to it, first come first served; what waits here can still go
where its text is, after shorter requests, and to whichever replica is done first. `tickets.py` has the order.

In that order each request is given, on paper, to the replica where it costs least, what was given there before included. If that one has
room it goes; else it is worth waiting for. A replica with nothing at all to do then takes the first that it serves soonest, at a
lower price of doing work twice, rather than idle.

Requests that wait in other routers are given their replicas, too, each by all routers in the same way: so each router sends what one
queue for all would send, as far as what it has heard of the others is true, and asks nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from kvcommons_router.picker import (
    Candidate,
    Hit,
    Weights,
    cheapest,
    price_of,
    wait_seconds,
    work_seconds,
)
from kvcommons_router.tickets import WEIGHT_MIN, Binding, Rival, Ticket, Tickets

T = TypeVar("T")

__all__ = ["Binder", "Binding", "Rival", "Ticket", "room_seconds"]

RIVALS_MAX: Final = 256
"""Of all other routers."""
CLAIM_SECONDS: Final = 1.0
"""How long a replica idles for the sake of what another router was believed to send there."""


def room_seconds(candidate: Candidate, binding: Binding) -> float:
    """How much a replica may have to prefill, and still be sent more."""
    prefill = candidate.prefill
    if not prefill.known:  # nobody is kept waiting by a guess
        return math.inf
    return max(binding.window_seconds, binding.window_tokens * prefill.token_seconds)


class Binder(Generic[T]):
    """The queue in front of one group of replicas."""

    def __init__(self, binding: Binding, weights: Weights, hits_of: Callable[[T], Sequence[Hit]]) -> None:
        """:param hits_of: what of a request each candidate holds, as far as is known when it is asked."""
        self.binding = binding
        self.tickets: Tickets[T] = Tickets(binding)
        self._weights = weights
        self._hits_of = hits_of
        self._candidates: Sequence[Candidate] = ()

    def __len__(self) -> int:
        """How many wait here."""
        return len(self.tickets)

    @property
    def anybody(self) -> bool:
        """Whether somebody waits, here or elsewhere."""
        return bool(self.tickets.lines)

    @property
    def work_seconds(self) -> float:
        """Of prefill that waits, each request where it takes least."""
        return sum([one.best for line in self.tickets.lines.values() for one in (*line.tickets, *line.rivals)])

    def follow(self, candidates: Sequence[Candidate], now: float) -> None:
        """Takes who the replicas are from now on; who waits elsewhere is to be heard of again."""
        if candidates is self._candidates:
            return
        self._candidates = candidates
        self.tickets.hear(())
        for line in tuple(self.tickets.lines.values()):
            for ticket in tuple(line.tickets):
                self.refresh(ticket, now)

    def offer(self, ticket: Ticket[T], now: float, weight: float = 1.0) -> Ticket[T] | None:
        """Takes a request in; who is refused for it: nobody, itself, or the last one of the tenant that has most for its weight."""
        weight = max(weight, WEIGHT_MIN)
        refused: Ticket[T] | None = None
        if len(self.tickets) >= self.binding.requests_max:
            refused = self.tickets.full_for(ticket.tenant, weight)
            if refused is None:
                return ticket
            self.withdraw(refused)
        ticket.weight = weight
        self.tickets.line_of(ticket.tenant, weight)
        self._insert(ticket, now)
        return refused

    def withdraw(self, ticket: Ticket[T]) -> None:
        """Lets go of a request that waits."""
        self.tickets.remove(ticket)
        self.tickets.drop_if_empty(ticket.tenant)

    def refresh(self, ticket: Ticket[T], now: float) -> None:
        """Looks again at what the candidates hold of a request that waits."""
        self.tickets.remove(ticket)
        self._insert(ticket, now)

    def hear(self, rivals: Sequence[Rival]) -> None:
        """Takes who waits in other routers now; their works are for the candidates as they were followed last."""
        self.tickets.hear(sorted(rivals, key=lambda rival: rival.order)[:RIVALS_MAX])

    def _insert(self, ticket: Ticket[T], now: float) -> None:
        shape, weights = ticket.shape, self._weights
        hits = self._hits_of(ticket.what)
        ticket.works = [
            work_seconds(candidate, hit, shape, weights) for candidate, hit in zip(self._candidates, hits, strict=True)
        ]
        ticket.best = min(ticket.works, default=0.0)
        self.tickets.insert(ticket, now)

    def in_order(self) -> Iterator[Ticket[T]]:
        """Those of ours that are looked at, in turn."""
        return self.tickets.ours()

    def bind(self, rho: float, now: float) -> list[tuple[Ticket[T], int]]:
        """Who is to be sent off now, and to which candidate; they wait no longer.

        :param rho: the fleet's utilisation.
        """
        tickets = self.tickets
        if not len(tickets):
            return []
        binding, candidates = self.binding, self._candidates
        tickets.ring(now)
        loads = [wait_seconds(candidate, now) for candidate in candidates]
        rooms = [room_seconds(candidate, binding) for candidate in candidates]
        if all(load >= room for load, room in zip(loads, rooms, strict=True)):
            return []
        order = list(tickets.in_order())
        placed = self._assign(order, loads, rooms, min(price_of(rho), binding.price_max))
        if len(placed) < len(order):
            idle = [load < min(room, binding.window_seconds) for load, room in zip(loads, rooms, strict=True)]
            if any(idle):
                taken = {id(one) for one, _ in placed}
                left = [one for one in order if id(one) not in taken]
                rooms = [room if free else 0.0 for room, free in zip(rooms, idle, strict=True)]
                placed += self._assign(left, loads, rooms, min(binding.idle_price, binding.price_max))
        bound = [(one, at) for one, at in placed if isinstance(one, Ticket)]
        if len(bound) < len(tickets) and len(bound) < len(placed):
            bound += self._take_idle(bound, now)
        for ticket, at in bound:
            line = tickets.lines[ticket.tenant]
            line.served += ticket.works[at] / line.weight
            self.withdraw(ticket)
        return bound

    def _take_idle(self, bound: Sequence[tuple[Ticket[T], int]], now: float) -> list[tuple[Ticket[T], int]]:
        """Gives replicas that idle though another router was to send something there to what is next here."""
        used = {at for _, at in bound}
        idle = [
            one.waiting_tokens <= 0 and now - one.head_at > CLAIM_SECONDS and at not in used
            for at, one in enumerate(self._candidates)
        ]
        if not any(idle):
            return []
        gone = {ticket.version for ticket, _ in bound}
        left = [ticket for ticket in self.tickets.ours() if ticket.version not in gone]
        loads = [0.0 if free else math.inf for free in idle]
        rooms = [self.binding.window_seconds] * len(loads)
        placed = self._assign(left, loads, rooms, min(self.binding.idle_price, self.binding.price_max))
        return [(one, at) for one, at in placed if isinstance(one, Ticket)]

    def _assign(
        self, order: Sequence[Rival], loads: list[float], rooms: Sequence[float], price: float
    ) -> list[tuple[Rival, int]]:
        """Gives requests to replicas in order, on paper; those that can go at once, which are added to the loads."""
        candidates, decode = self._candidates, self._weights.decode_seconds
        opened = [load < room for load, room in zip(loads, rooms, strict=True)]
        left = sum(opened)
        bases = [load + decode * one.decoding for load, one in zip(loads, candidates, strict=True)]
        placed: list[tuple[Rival, int]] = []
        for waiter in order:
            if not left:
                break
            works = waiter.works
            costs = [base + price * work for base, work in zip(bases, works, strict=True)]
            best = cheapest(costs, candidates, waiter.shape)
            bases[best] += works[best]
            if opened[best]:
                placed.append((waiter, best))
                loads[best] += works[best]
                if loads[best] >= rooms[best]:
                    opened[best] = False
                    left -= 1
        return placed
