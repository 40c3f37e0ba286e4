"""Requests that wait in the router, in order: of one tenant by age and work, between tenants by what each was served. Pure.

The order is that of arrival, where each second of a request's prefill counts as `ageing` seconds of coming later: shortest first, and nobody
waits for ever. Whoever would just miss the target for the first byte goes first; who has missed it, or needs more than half of it for its
own prefill, does not, since one long prefill in time would cost many short ones theirs. Between tenants it is weighted
fair queueing: who has been served least for its weight is next.

Several routers (or workers of one) each keep what came to them, and tell the others what waits there: `Rival`s, that have
their places in this order and are sent by nobody here.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from kvcommons_router.picker import Shape

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


class Rival:
    """A request that waits in another router."""

    __slots__ = ("best", "order", "shape", "tenant", "weight", "works")

    def __init__(
        self, shape: Shape, tenant: str, order: float = 0.0, works: Sequence[float] = (), weight: float = 1.0
    ) -> None:
        self.shape = shape
        self.tenant = tenant
        self.order = order
        self.works = works
        """Seconds of prefill at each candidate."""
        self.best = min(works, default=0.0)
        self.weight = weight


class Ticket(Rival, Generic[T]):
    """A request that waits here."""

    __slots__ = ("arrived", "number", "priority", "version", "what")

    def __init__(self, what: T, shape: Shape, arrived: float, tenant: str = "", priority: int = 0) -> None:
        super().__init__(shape, tenant)
        self.what = what
        self.arrived = arrived
        self.priority = priority
        self.number = 0
        """Its name among all that have waited here."""
        self.version = 0
        """0 while it does not wait; else the number of its last change."""


def _order_of(waiter: Rival) -> float:
    return waiter.order


class Line(Generic[T]):
    """The requests of one tenant, in order."""

    __slots__ = ("rivals", "served", "tickets", "weight")

    def __init__(self, weight: float, served: float) -> None:
        self.weight = weight
        self.served = served
        """Seconds of prefill that it was given, over its weight."""
        self.tickets: list[Ticket[T]] = []
        self.rivals: list[Rival] = []

    def waiters(self, most: int) -> Sequence[Rival]:
        """The first so many, in order."""
        if not self.rivals:
            return self.tickets[:most]
        return sorted([*self.tickets[:most], *self.rivals], key=_order_of)[:most]


class Tickets(Generic[T]):
    """Everybody that waits for one group of replicas."""

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.lines: dict[str, Line[T]] = {}
        self.changes = 0
        """Grows whenever somebody of ours comes, goes or has another place."""
        self._left: dict[str, float] = {}  # what tenants that wait for nothing were served; as long as others wait
        self._alarms: list[tuple[float, int, Ticket[T]]] = []  # when a request's order changes by itself
        self._size = 0

    def __len__(self) -> int:
        """How many of ours."""
        return self._size

    def full_for(self, tenant: str, weight: float) -> Ticket[T] | None:
        """Who gives way when one more comes of a tenant and all places are taken: the last one of the tenant that has most for its weight;
        None where that is the newcomer."""
        longest = max(self.lines.values(), key=lambda line: len(line.tickets) / line.weight)
        own = self.lines.get(tenant)
        if ((len(own.tickets) if own is not None else 0) + 1) / weight >= len(longest.tickets) / longest.weight:
            return None
        return longest.tickets[-1]

    def line_of(self, tenant: str, weight: float) -> Line[T]:
        """A tenant's line; a new one begins where the others stand."""
        line = self.lines.get(tenant)
        if line is None:
            floor = min([other.served for other in self.lines.values()], default=0.0)
            line = self.lines[tenant] = Line(weight, max(floor, self._left.pop(tenant, 0.0)))
        line.weight = weight
        return line

    def insert(self, ticket: Ticket[T], now: float) -> None:
        """Takes one in whose line is there and whose works are known."""
        self.changes += 1
        self._size += 1
        ticket.version = self.changes
        ticket.number = ticket.number or self.changes
        self._place(ticket, now)

    def remove(self, ticket: Ticket[T]) -> None:
        """Lets go of one; its line stays."""
        self._take_out(ticket)
        ticket.version = 0
        self._size -= 1
        self.changes += 1

    def drop_if_empty(self, tenant: str) -> None:
        """Lets go of a line that nobody stands in."""
        line = self.lines[tenant]
        if line.tickets or line.rivals:
            return
        del self.lines[tenant]
        self._left[tenant] = line.served
        if not self.lines:
            self._left.clear()
            self._alarms.clear()

    def _place(self, ticket: Ticket[T], now: float) -> None:
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
        bisect.insort(self.lines[ticket.tenant].tickets, ticket, key=_order_of)

    def _take_out(self, ticket: Ticket[T]) -> None:
        tickets = self.lines[ticket.tenant].tickets
        at = bisect.bisect_left(tickets, ticket.order, key=_order_of)
        while tickets[at] is not ticket:
            at += 1
        del tickets[at]

    def ring(self, now: float) -> None:
        """Moves those whose order has changed by itself."""
        alarms = self._alarms
        while alarms and alarms[0][0] <= now:
            _, version, ticket = heapq.heappop(alarms)
            if ticket.version == version:
                self._take_out(ticket)
                self._place(ticket, now)
                self.changes += 1

    def hear(self, rivals: Sequence[Rival]) -> None:
        """Takes who waits in other routers now, in place of whom was heard of before: who is gone was served, most likely."""
        lines = self.lines
        came: dict[str, list[Rival]] = {}
        for rival in rivals:
            came.setdefault(rival.tenant, []).append(rival)
        for tenant in [*lines, *[tenant for tenant in came if tenant not in lines]]:
            own = came.get(tenant, [])
            line = lines[tenant] if tenant in lines else self.line_of(tenant, own[0].weight)
            if line.rivals:
                still = set(own)
                line.served += sum([one.best for one in line.rivals if one not in still]) / line.weight
            own.sort(key=_order_of)
            line.rivals = own
            if not own and not line.tickets:
                self.drop_if_empty(tenant)

    def ours(self) -> Iterator[Ticket[T]]:
        """Those of ours that are looked at, in turn."""
        for waiter in self.in_order():
            if isinstance(waiter, Ticket):
                yield waiter

    def in_order(self) -> Iterator[Rival]:
        """Those that are looked at, in turn."""
        look_max = self.binding.look_max
        if len(self.lines) == 1:
            (only,) = self.lines.values()
            yield from only.waiters(look_max)
            return
        everybody = {name: line.waiters(look_max) for name, line in self.lines.items()}
        heap = [(line.served, name, 0) for name, line in self.lines.items()]
        heapq.heapify(heap)
        for _ in range(look_max):
            if not heap:
                return
            served, name, at = heap[0]
            waiters = everybody[name]
            if at + 1 < len(waiters):
                heapq.heapreplace(heap, (served + waiters[at].best / self.lines[name].weight, name, at + 1))
            else:
                heapq.heappop(heap)
            yield waiters[at]
