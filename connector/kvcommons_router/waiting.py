"""The requests of a worker that wait for a replica: it asks the binder who goes, and does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Sequence
from typing import TYPE_CHECKING, Final

from kvcommons_router.binding import Binder, Binding, Rival, Ticket
from kvcommons_router.errors import Refusal, unserved
from kvcommons_router.fleet import Group, Instance
from kvcommons_router.picker import NO_HIT, Hit, Shape, wait_seconds

if TYPE_CHECKING:  # a context holds this
    from kvcommons_router.context import Context
    from kvcommons_router.exchange import Exchange

LOOKUPS_MAX: Final = 4
"""Requests that are looked up again at one time, of those whose turn is next."""
LOOKUP_SECONDS: Final = 0.25
"""How old what the index said may be by then."""
SOON_SECONDS: Final = 0.03
"""After which it is asked again for those whose text somebody has just been sent."""
RETRY_SECONDS_MAX: Final = 60


class Waiting:
    """One queue for each model; empty, and out of the way, while there is room."""

    def __init__(self, context: Context, binding: Binding, seconds_max: float) -> None:
        self._context = context
        self._binding = binding
        self._seconds_max = seconds_max
        self._binders: dict[Group, Binder[Exchange]] = {}
        self._later: Callable[[Callable[[], None]], object] | None = None
        self._woken = False

    def attach(self, later: Callable[[Callable[[], None]], object]) -> None:
        """:param later: runs something soon, after what runs now."""
        self._later = later

    @property
    def size(self) -> int:
        """How many wait."""
        return sum([len(binder) for binder in self._binders.values()])

    def binders(self) -> ItemsView[Group, Binder[Exchange]]:
        """The queues in which somebody waits, here or elsewhere."""
        return self._binders.items()

    def has_room(self, group: Group, instance: Instance, now: float) -> bool:
        """Whether an instance may get a request at once: nobody waits, and it has little to prefill, or nobody knows how quick it is."""
        if group in self._binders:
            return False
        candidate = instance.candidate
        if candidate.waiting_tokens < self._binding.window_tokens or not candidate.prefill.known:
            return True
        return wait_seconds(candidate, now) < self._binding.window_seconds

    def enter(self, exchange: Exchange, shape: Shape, now: float) -> None:
        """Takes a request in. It is sent off soon or late, or refused; perhaps another one is."""
        group, tenant = exchange.group, exchange.tenant
        binder = self._binder(group, now)
        ticket = Ticket(exchange, shape, now, tenant.name, exchange.request.head.priority)
        exchange.ticket = ticket
        exchange.located_at = now
        refused = binder.offer(ticket, now, tenant.weight)
        if refused is None:
            self.wake()
            return
        refused.what.ticket = None
        self._context.recorder.refused("queue")
        seconds = binder.work_seconds / max(1, len(group.usable))
        if refused is not ticket:
            self.wake()
        refused.what.refuse(_too_many("Too many requests wait for a replica.", seconds))

    def _binder(self, group: Group, now: float) -> Binder[Exchange]:
        binder = self._binders.get(group)
        if binder is None:
            binder = self._binders[group] = Binder(self._binding, self._context.weights, _hits_of)
            binder.follow(group.candidates, now)
        return binder

    def leave(self, exchange: Exchange) -> None:
        """Lets go of a request whose client left."""
        ticket, exchange.ticket = exchange.ticket, None
        binder = self._binders.get(exchange.group)
        if ticket is not None and binder is not None:
            binder.withdraw(ticket)
            self._drop_empty(exchange.group, binder)

    def check(self, exchange: Exchange, now: float) -> None:
        """Refuses a request that has waited for too long."""
        ticket = exchange.ticket
        if ticket is None or now - ticket.arrived <= self._seconds_max:
            return
        self.leave(exchange)
        self._context.recorder.refused("queue_seconds")
        exchange.refuse(_too_many(f"No replica was free within {self._seconds_max:g} s.", 1.0))

    def heard(self, exchange: Exchange, now: float) -> None:
        """The index has said again what is held of a request that waits."""
        exchange.located_at = now
        binder = self._binders.get(exchange.group)
        if binder is not None and exchange.ticket is not None:
            binder.follow(exchange.group.candidates, now)
            binder.refresh(exchange.ticket, now)

    def hear(self, group: Group, rivals: Sequence[Rival], now: float) -> None:
        """Takes who waits for a model in other workers and routers; their works are for those that are usable now."""
        if not rivals and group not in self._binders:
            return
        binder = self._binder(group, now)
        binder.follow(group.candidates, now)
        binder.hear(rivals)
        self._drop_empty(group, binder)

    def sent(self, exchange: Exchange) -> None:
        """Somebody will hold a text from now on: those that begin alike are to be looked up again."""
        binder = self._binders.get(exchange.group)
        if binder is None or not exchange.keys8:
            return
        first, old = exchange.keys8[0], exchange.dispatched_at - LOOKUP_SECONDS + SOON_SECONDS
        for ticket in binder.in_order():
            keys = ticket.what.keys8
            if keys and keys[0] == first:
                ticket.what.located_at = min(ticket.what.located_at, old)

    def wake(self) -> None:
        """Looks soon at who can go: something has become free, or somebody came."""
        if self._binders and not self._woken and self._later is not None:
            self._woken = True
            self._later(self.look)

    def look(self) -> None:
        """Sends off whoever can go now."""
        self._woken = False
        context = self._context
        for group, binder in tuple(self._binders.items()):
            now = context.loop_time()
            if not group.usable:
                self._refuse_all(group, binder)
                continue
            binder.follow(group.candidates, now)
            self._look_up_again(binder, now)
            members = group.usable
            bound = binder.bind(context.utilisation.rho, now)
            self._drop_empty(group, binder)
            for ticket, at in bound:
                exchange = ticket.what
                exchange.ticket = None
                context.recorder.observe_seconds(context.layout.queue_seconds, 0, now - ticket.arrived)
                if exchange.trace is not None:
                    exchange.trace.waited(now - ticket.arrived)
                exchange.send_to(members[at])

    def _look_up_again(self, binder: Binder[Exchange], now: float) -> None:
        old = now - LOOKUP_SECONDS
        asked = 0
        for ticket in list(binder.in_order()):
            exchange = ticket.what
            if exchange.located_at < old and exchange.keys8:
                exchange.located_at = now
                self._context.index.locate(exchange)
                asked += 1
                if asked == LOOKUPS_MAX:
                    return

    def _refuse_all(self, group: Group, binder: Binder[Exchange]) -> None:
        binder.hear(())
        while len(binder):
            for ticket in list(binder.in_order()):
                binder.withdraw(ticket)
                ticket.what.ticket = None
                ticket.what.refuse(unserved(group.model))
        self._drop_empty(group, binder)

    def _drop_empty(self, group: Group, binder: Binder[Exchange]) -> None:
        if not binder.anybody and self._binders.get(group) is binder:
            del self._binders[group]


def _hits_of(exchange: Exchange) -> Sequence[Hit]:
    hits = exchange.hits or {}
    return [hits.get(one.index, NO_HIT) for one in exchange.group.usable]


def _too_many(message: str, seconds: float) -> Refusal:
    retry = min(max(1, math.ceil(seconds)), RETRY_SECONDS_MAX)
    return Refusal(429, message, code="rate_limit_exceeded", retry_after_seconds=retry)
