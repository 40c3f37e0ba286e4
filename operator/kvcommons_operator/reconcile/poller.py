"""Asks pods how they are (cache nodes, routers): at a bounded rate, sooner where something is going on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.reconcile.nodes import Address
from kvcommons_operator.reconcile.resources import Id

INTERVAL_SECONDS: Final = 30.0
INTERVAL_SECONDS_MIN: Final = 2.0
TICK_SECONDS: Final = 0.5

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

    due: float
    pause: float = INTERVAL_SECONDS_MIN
    asked: bool = False
    state: S | None = None
    at: float = 0.0
    """When it was."""


@dataclass(slots=True)
class Poller(Generic[S]):
    """`run` until cancelled. A state is as old as one interval, or younger where it was urged or has just changed."""

    targets: Callable[[], Iterable[Target]]
    ask: Callable[[Target], Awaitable[S]]
    shape: Callable[[S], object]
    """What of a state a plan acts on: counters move all the time."""
    on_change: Callable[[Id], None]
    per_second_max: int
    follow: Callable[[S | None, S, float], S] = lambda before, state, seconds: state
    """What is made of an answer, given the one before it and the time since then."""
    first_seconds: float = 0.0
    """A pod is first asked so long after it became a target."""
    clock: Callable[[], float] = time.monotonic
    _books: dict[str, Book[S]] = field(default_factory=dict)

    def state(self, uid: str) -> S | None:
        """A pod's latest answer; None before the first."""
        book = self._books.get(uid)
        return book.state if book is not None else None

    def urge(self, uid: str) -> None:
        """Something was just asked of it: look at once, and again soon."""
        book = self._books.setdefault(uid, Book(0.0))
        book.due, book.pause = 0.0, INTERVAL_SECONDS_MIN

    async def run(self) -> None:
        """Round after round, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_SECONDS)

    async def tick(self) -> None:
        """One round: those that are due longest, as many as the rate allows."""
        targets, now = {target.pod.uid: target for target in self.targets()}, self.clock()
        for uid in [uid for uid in self._books if uid not in targets]:
            del self._books[uid]
        for uid in targets:
            if uid not in self._books:
                self._books[uid] = Book(now + self.first_seconds)
        per_tick = max(1, int(self.per_second_max * TICK_SECONDS))
        due = sorted((book.due, uid) for uid, book in self._books.items() if book.due <= now)[:per_tick]
        await self._ask([targets[uid] for _, uid in due])

    async def _ask(self, targets: Sequence[Target]) -> None:
        states = await asyncio.gather(*(self.ask(target) for target in targets))
        now = self.clock()
        for target, answer in zip(targets, states, strict=True):
            book = self._books.get(target.pod.uid)
            if book is None:
                continue
            state = self.follow(book.state, answer, now - book.at if book.asked else 0.0)
            changed = not book.asked or book.state is None or self.shape(book.state) != self.shape(state)
            book.state, book.asked, book.at = state, True, now
            book.pause = INTERVAL_SECONDS_MIN if changed else min(INTERVAL_SECONDS, book.pause * 2)
            book.due = now + book.pause
            if changed:
                self.on_change(target.resource)


def node_shape(state: NodeState) -> NodeState:
    """A state without its counters: what plans act on."""
    counted = replace(state, chunks=0, hits=0, asked=0, used_bytes=0, index_missing=0, index_stale=0)
    return replace(counted, unanswered=0, unanswered_seconds=0.0, fenced_seconds=0.0)
