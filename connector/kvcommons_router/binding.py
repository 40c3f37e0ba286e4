"""Late binding: where every replica that a request should go to has enough to prefill, the request waits here instead of there.

Pure: it decides, and touches nothing. What waits in an engine is bound to it, first come first served; what waits here can still go
where its text is, after shorter requests, and to whichever replica is done first.

The order is that of arrival, where each second of a request's prefill counts as `ageing` seconds of coming later: shortest first, and nobody
waits for ever. Whoever would just miss the target for the first byte goes first; who has missed it, or needs more than half of it for its
own prefill, does not, since one long prefill in time would cost many short ones theirs. Between tenants it is weighted
fair queueing: who has been served least for its weight is next.

In that order each request is given, on paper, to the replica where it costs least, what was given there before included. If that one has
room it goes; else it is worth waiting for. A replica with nothing at all to do then takes the first that it serves soonest, at a
lower price of doing work twice, rather than idle.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from kvcommons_router.picker import (
    Candidate,
    Hit,
    Shape,
    Weights,
    cheapest,
    price_of,
    wait_seconds,
    work_seconds,
)

T = TypeVar("T")

# Of the target: from when on a request that would miss it goes first, and how much its own prefill may take of it.
NOTICE_SHARE: Final = 0.15
RESCUE_SHARE: Final = 0.5
# What is kept back of the target, since estimates are not exact.
SLACK_SHARE: Final = 0.0125
URGENT: Final = -1e9
"""Added to the order of those that go first."""
WEIGHT_MIN: Final = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Binding:
    """How requests wait."""

    window_seconds: float = 0.1
    """A replica with less than this to prefill takes another request."""
    window_tokens: int = 2048
    """And so does one with fewer tokens: about what engines prefill in one step. One whose rate was not learnt yet always does."""
    ageing: float = 10.0
    """How many seconds of waiting make up for a second of prefill."""
    target_seconds: float = 8.0
    """Within which a first byte should come."""
    price_max: float = 8.0
    """The most that a second of work counts for, against a second of waiting for the replica that would save it."""
    idle_price: float = 2.0
    """The same while a replica is idle."""
    priority_seconds: float = 2.0
    """What a step of priority is worth."""
    requests_max: int = 1024
    """Who waits at one time."""
    look_max: int = 256
    """How many of them are looked at for one decision."""

    def __post_init__(self) -> None:
        if self.window_seconds <= 0 or self.target_seconds <= 0 or self.ageing < 0 or self.price_max < 1:
            raise ValueError("window and target must be over 0, ageing not below 0 and the price not below 1")
        if self.requests_max < 1 or self.look_max < 1:
            raise ValueError("at least one request must be able to wait and to be looked at")


class Ticket(Generic[T]):
    """A request that waits."""

    __slots__ = ("arrived", "best", "order", "priority", "shape", "tenant", "version", "what", "works")

    def __init__(self, what: T, shape: Shape, arrived: float, tenant: str = "", priority: int = 0) -> None:
        self.what = what
        self.shape = shape
        self.arrived = arrived
        self.tenant = tenant
        self.priority = priority
        self.works: list[float] = []
        """Seconds of prefill at each candidate."""
        self.best = 0.0
        self.order = 0.0
        self.version = 0
        """0 while it does not wait."""


def _order_of(ticket: Ticket[T]) -> float:
    return ticket.order


class _Line(Generic[T]):
    """The requests of one tenant, in order."""

    __slots__ = ("served", "tickets", "weight")

    def __init__(self, weight: float, served: float) -> None:
        self.weight = weight
        self.served = served
        """Seconds of prefill that it was given, over its weight."""
        self.tickets: list[Ticket[T]] = []


class Binder(Generic[T]):
    """The queue in front of one group of replicas."""

    def __init__(self, binding: Binding, weights: Weights, hits_of: Callable[[T], Sequence[Hit]]) -> None:
        """:param hits_of: what of a request each candidate holds, as far as is known when it is asked."""
        self.binding = binding
        self._weights = weights
        self._hits_of = hits_of
        self._candidates: Sequence[Candidate] = ()
        self._lines: dict[str, _Line[T]] = {}
        self._left: dict[str, float] = {}  # what tenants that wait for nothing were served; as long as others wait
        self._alarms: list[tuple[float, int, Ticket[T]]] = []  # when a request's order changes by itself
        self._versions = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def work_seconds(self) -> float:
        """Of prefill that waits here, each request where it takes least."""
        return sum(ticket.best for line in self._lines.values() for ticket in line.tickets)

    def follow(self, candidates: Sequence[Candidate], now: float) -> None:
        """Takes who the replicas are from now on."""
        if candidates is self._candidates:
            return
        self._candidates = candidates
        for line in self._lines.values():
            for ticket in list(line.tickets):
                self.refresh(ticket, now)

    def offer(self, ticket: Ticket[T], now: float, weight: float = 1.0) -> Ticket[T] | None:
        """Takes a request in; who is refused for it: nobody, itself, or the last one of the tenant that has most for its weight."""
        weight = max(weight, WEIGHT_MIN)
        refused: Ticket[T] | None = None
        if self._size >= self.binding.requests_max:
            longest = max(self._lines.values(), key=lambda line: len(line.tickets) / line.weight)
            own = self._lines.get(ticket.tenant)
            if ((len(own.tickets) if own is not None else 0) + 1) / weight >= len(longest.tickets) / longest.weight:
                return ticket
            refused = longest.tickets[-1]
            self.withdraw(refused)
        line = self._lines.get(ticket.tenant)
        if line is None:
            floor = min((other.served for other in self._lines.values()), default=0.0)
            line = self._lines[ticket.tenant] = _Line(weight, max(floor, self._left.pop(ticket.tenant, 0.0)))
        line.weight = weight
        self._insert(ticket, line, now)
        return refused

    def withdraw(self, ticket: Ticket[T]) -> None:
        """Lets go of a request that waits."""
        line = self._lines[ticket.tenant]
        self._remove(ticket, line)
        if not line.tickets:
            del self._lines[ticket.tenant]
            self._left[ticket.tenant] = line.served
            if not self._lines:
                self._left.clear()
                self._alarms.clear()

    def refresh(self, ticket: Ticket[T], now: float) -> None:
        """Looks again at what the candidates hold of a request that waits."""
        line = self._lines[ticket.tenant]
        self._remove(ticket, line)
        self._insert(ticket, line, now)

    def _insert(self, ticket: Ticket[T], line: _Line[T], now: float) -> None:
        shape, weights = ticket.shape, self._weights
        hits = self._hits_of(ticket.what)
        ticket.works = [
            work_seconds(candidate, hit, shape, weights) for candidate, hit in zip(self._candidates, hits, strict=True)
        ]
        ticket.best = min(ticket.works, default=0.0)
        self._versions += 1
        self._size += 1
        ticket.version = self._versions
        self._place(ticket, line, now)

    def _place(self, ticket: Ticket[T], line: _Line[T], now: float) -> None:
        """Puts a request where it belongs now, and remembers when it will belong elsewhere."""
        binding = self.binding
        target, best = binding.target_seconds, ticket.best
        head_start = ticket.priority * binding.priority_seconds
        ticket.order = ticket.arrived + binding.ageing * best - head_start
        if best < RESCUE_SHARE * target:
            latest = ticket.arrived + (1 - SLACK_SHARE) * target - best
            notice = latest - NOTICE_SHARE * target
            if now < notice:
                heapq.heappush(self._alarms, (notice, ticket.version, ticket))
            elif now < latest:
                ticket.order = URGENT + ticket.arrived - head_start
                heapq.heappush(self._alarms, (latest, ticket.version, ticket))
        bisect.insort(line.tickets, ticket, key=_order_of)

    def _remove(self, ticket: Ticket[T], line: _Line[T]) -> None:
        tickets = line.tickets
        at = bisect.bisect_left(tickets, ticket.order, key=_order_of)
        while tickets[at] is not ticket:
            at += 1
        del tickets[at]
        ticket.version = 0
        self._size -= 1

    def _ring(self, now: float) -> None:
        """Moves those whose order has changed by itself."""
        alarms = self._alarms
        while alarms and alarms[0][0] <= now:
            _, version, ticket = heapq.heappop(alarms)
            if ticket.version == version:
                line = self._lines[ticket.tenant]
                self._remove(ticket, line)
                self._size += 1
                ticket.version = version
                self._place(ticket, line, now)

    def in_order(self) -> Iterator[Ticket[T]]:
        """Those that are looked at, in turn."""
        look_max = self.binding.look_max
        if len(self._lines) == 1:
            (only,) = self._lines.values()
            yield from only.tickets[:look_max]
            return
        heap = [(line.served, name, 0) for name, line in self._lines.items()]
        heapq.heapify(heap)
        for _ in range(min(look_max, self._size)):
            served, name, at = heap[0]
            line = self._lines[name]
            ticket = line.tickets[at]
            if at + 1 < len(line.tickets):
                heapq.heapreplace(heap, (served + ticket.best / line.weight, name, at + 1))
            else:
                heapq.heappop(heap)
            yield ticket

    def bind(self, rho: float, now: float, shares: Sequence[float] | None = None) -> list[tuple[Ticket[T], int]]:
        """Who is to be sent off now, and to which candidate; they wait no longer.

        :param rho: the fleet's utilisation.
        :param shares: of each candidate's window, how much this router may use; all of it unless there are others.
        """
        if not self._size:
            return []
        binding, candidates = self.binding, self._candidates
        self._ring(now)
        loads = [wait_seconds(candidate, now) for candidate in candidates]
        rooms = [
            max(binding.window_seconds, binding.window_tokens * prefill.token_seconds) if prefill.known else math.inf
            for prefill in [candidate.prefill for candidate in candidates]
        ]
        if shares is not None:
            rooms = [room * share for room, share in zip(rooms, shares, strict=True)]
        if all(load >= room for load, room in zip(loads, rooms, strict=True)):
            return []
        order = list(self.in_order())
        bound = self._assign(order, loads, rooms, min(price_of(rho), binding.price_max))
        idle = [load < min(room, binding.window_seconds) for load, room in zip(loads, rooms, strict=True)]
        if any(idle) and len(bound) < len(order):
            taken = {ticket.version for ticket, _ in bound}
            left = [ticket for ticket in order if ticket.version not in taken]
            rooms = [room if free else 0.0 for room, free in zip(rooms, idle, strict=True)]
            bound += self._assign(left, loads, rooms, min(binding.idle_price, binding.price_max))
        for ticket, at in bound:
            line = self._lines[ticket.tenant]
            line.served += ticket.works[at] / line.weight
            self.withdraw(ticket)
        return bound

    def _assign(
        self, order: Sequence[Ticket[T]], loads: list[float], rooms: Sequence[float], price: float
    ) -> list[tuple[Ticket[T], int]]:
        """Gives requests to replicas in order, on paper; those that go at once, which are added to the loads."""
        candidates, decode = self._candidates, self._weights.decode_seconds
        opened = [load < room for load, room in zip(loads, rooms, strict=True)]
        left = sum(opened)
        bases = [load + decode * one.decoding for load, one in zip(loads, candidates, strict=True)]
        bound: list[tuple[Ticket[T], int]] = []
        for ticket in order:
            if not left:
                break
            works = ticket.works
            costs = [base + price * work for base, work in zip(bases, works, strict=True)]
            best = cheapest(costs, candidates, ticket.shape)
            bases[best] += works[best]
            if opened[best]:
                bound.append((ticket, best))
                loads[best] += works[best]
                if loads[best] >= rooms[best]:
                    opened[best] = False
                    left -= 1
        return bound
