"""Asks pods how they are (cache nodes, routers): at a bounded rate, sooner where something is going on.

Which pods there are comes from the watch of pods, change by change: nothing is built anew for a round. Those that were never asked, or
are not well, come first and have a rate of their own, so that a pool of a thousand nodes is known within seconds; those that are well
share the rest, however many they are."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.reconcile.nodes import Address
from kvcommons_operator.reconcile.resources import Id

INTERVAL_SECONDS: Final = 30.0
INTERVAL_SECONDS_MIN: Final = 2.0
TICK_SECONDS: Final = 0.5
URGENT_FACTOR: Final = 10
"""How many times the rate of those that are well the others may have."""
IN_FLIGHT_MAX: Final = 256
SHARE_STEP_PERCENT: Final = 10
"""A share that has moved by less is no news."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Target:
    """A pod that can be asked, and the resource that is looked at again when it answers something new."""

    resource: Id
    pod: Pod
    member: str
    address: Address


@dataclass(slots=True)
class Book(Generic[S]):
    """What is known of one pod."""

    pod: Pod
    due: float
    pause: float = INTERVAL_SECONDS_MIN
    asked: bool = False
    asking: bool = False
    urged: bool = False
    """While it was being asked: the answer may be older than what it was urged for."""
    settled: bool = False
    state: S | None = None
    at: float = 0.0
    """When it was."""


@dataclass(slots=True)
class Poller(Generic[S]):
    """`run` until cancelled. A state is as old as one interval, or younger where it was urged or has just changed."""

    wanted: Callable[[Pod], bool]
    """Whether a pod is one to be asked."""
    target: Callable[[Pod], Target | None]
    """Whom to ask, and for whom; None while nobody asks for it."""
    ask: Callable[[Target], Awaitable[S]]
    shape: Callable[[S], object]
    """What of a state a plan acts on: counters move all the time."""
    settled: Callable[[S], bool]
    """Whether nothing is going on: it is asked again after a whole interval."""
    on_change: Callable[[Id], None]
    per_second_max: int
    follow: Callable[[S | None, S, float], S] = lambda before, state, seconds: state
    """What is made of an answer, given the one before it and the time since then."""
    clock: Callable[[], float] = time.monotonic
    _books: dict[str, Book[S]] = field(default_factory=dict)
    _urgent: list[tuple[float, int, str]] = field(default_factory=list)
    _calm: list[tuple[float, int, str]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _in_flight: set[asyncio.Task[None]] = field(default_factory=set)

    def state(self, uid: str) -> S | None:
        """A pod's latest answer; None before the first."""
        book = self._books.get(uid)
        return book.state if book is not None else None

    def urge(self, uid: str) -> None:
        """Something was just asked of it: look at once, and again soon."""
        book = self._books.get(uid)
        if book is None:
            return
        book.pause, book.settled, book.urged = INTERVAL_SECONDS_MIN, False, book.asking
        if not book.asking:
            self._plan(uid, book, 0.0)

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """As the watch of pods tells it."""
        if old is not None and (new is None or new.uid != old.uid):
            self._books.pop(old.uid, None)
        if new is None:
            return
        if not self.wanted(new):
            self._books.pop(new.uid, None)
            return
        book = self._books.get(new.uid)
        if book is None:
            book = self._books[new.uid] = Book(new, 0.0)
            self._plan(new.uid, book, self.clock())
        book.pod = new

    async def run(self) -> None:
        """Round after round, until cancelled."""
        try:
            while True:
                self.tick()
                await asyncio.sleep(TICK_SECONDS)
        finally:
            for task in list(self._in_flight):
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    def tick(self) -> None:
        """Begins one round: those that are due longest, as many as the rates allow."""
        calm = max(1, int(self.per_second_max * TICK_SECONDS))
        self._begin(self._urgent, calm * URGENT_FACTOR)
        self._begin(self._calm, calm)

    def _begin(self, heap: list[tuple[float, int, str]], at_most: int) -> None:
        now, begun = self.clock(), 0
        while heap and heap[0][0] <= now and begun < at_most and len(self._in_flight) < IN_FLIGHT_MAX:
            due, _, uid = heapq.heappop(heap)
            book = self._books.get(uid)
            if book is None or book.due != due or book.asking or (heap is self._calm) != book.settled:
                continue  # gone, or planned anew since
            target = self.target(book.pod)
            if target is None:
                self._plan(uid, book, now + book.pause)
                book.pause = min(INTERVAL_SECONDS, book.pause * 2)
                continue
            book.asking, begun = True, begun + 1
            task = asyncio.get_running_loop().create_task(self._ask(uid, book, target), name=f"ask {book.pod.name}")
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    def _plan(self, uid: str, book: Book[S], due: float) -> None:
        book.due = due
        heapq.heappush(self._calm if book.settled else self._urgent, (due, next(self._order), uid))

    async def _ask(self, uid: str, book: Book[S], target: Target) -> None:
        answer = await self.ask(target)
        now = self.clock()
        book.asking = False
        if self._books.get(uid) is not book:
            return
        state = self.follow(book.state, answer, now - book.at if book.asked else 0.0)
        changed = not book.asked or book.state is None or self.shape(book.state) != self.shape(state)
        book.state, book.asked, book.at = state, True, now
        book.settled = self.settled(state) and not book.urged
        if book.settled:
            book.pause = INTERVAL_SECONDS
        else:
            book.pause = INTERVAL_SECONDS_MIN if changed else min(INTERVAL_SECONDS, book.pause * 2)
        self._plan(uid, book, now if book.urged else now + book.pause)
        book.urged = False
        if changed:
            self.on_change(target.resource)


def node_settled(state: NodeState) -> bool:
    """It serves, and nothing was asked of it that takes time."""
    return state.reachable and state.joined and not state.fenced


def node_shape(state: NodeState) -> NodeState:
    """What a plan acts on, and shares as far as they were told."""
    tiers = tuple(tier._replace(used_bytes=0) for tier in state.tiers)
    counted = replace(state, chunks=0, hits=0, asked=0, used_bytes=0, index_missing=0, index_stale=0, tiers=tiers)
    return replace(counted, unanswered=0, unanswered_seconds=0.0, fenced_seconds=0.0)


def with_shares(before: NodeState | None, state: NodeState) -> NodeState:
    """With its shares in coarse steps: a person wants to see them, and nobody wants a status written for each chunk."""
    told = {tier.name: tier.used_percent for tier in before.tiers} if before is not None else {}
    return replace(
        state,
        hit_percent=_step(before.hit_percent if before is not None else None, state.hits, state.asked),
        used_percent=_step(before.used_percent if before is not None else None, state.used_bytes, state.arena_bytes),
        tiers=tuple(
            tier._replace(used_percent=_step(told.get(tier.name), tier.used_bytes, tier.capacity_bytes))
            for tier in state.tiers
        ),
    )


def _step(told: int | None, part: int, whole: int) -> int | None:
    """The share as it was told, unless it has moved by a whole step. None where there is nothing to have a share of."""
    if not whole:
        return told
    share = min(100, part * 100 // whole)
    return share if told is None or abs(share - told) >= SHARE_STEP_PERCENT else told
