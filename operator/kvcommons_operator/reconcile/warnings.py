"""Asks the Events of what does not come forward, and only of that: at a bounded rate, and only while it lasts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import KubeError
from kvcommons_operator.kube.kinds import EVENT
from kvcommons_operator.reconcile.resources import Id
from kvcommons_operator.troubles import Puzzle

AFTER_SECONDS: Final = 10.0
"""What has not come forward for so long is asked about; most things have by then."""
PAUSE_SECONDS: Final = 5.0
PAUSE_SECONDS_MAX: Final = 60.0
TICK_SECONDS: Final = 0.5
ASKED_PER_TICK_MAX: Final = 2
OBJECTS_MAX: Final = 1_024
EVENTS_MAX: Final = 50
"""Of one object; older ones are not read."""
SAID_MAX: Final = 5
BELIEVED_SECONDS: Final = 1_800.0
"""The kubelet repeats what still fails within minutes, a controller within 17; older words may be about what is over."""
FORWARD: Final = frozenset({"Scheduled", "Pulling", "Pulled", "Created", "Started", "SuccessfulCreate"})
"""What was warned of before one of these is over."""
LASTING: Final = frozenset({"FailedToRetrieveImagePullSecret"})
"""The kubelet tries to pull all the same, again and again: that is no step forward."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Book:
    """What is known of one object."""

    key: Id
    puzzle: Puzzle
    due: float
    pause: float = PAUSE_SECONDS
    said: tuple[str, ...] = ()


class Warnings:
    """`run` until cancelled."""

    def __init__(
        self,
        client: KubeClient,
        on_change: Callable[[Id], None],
        *,
        after_seconds: float = AFTER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param on_change: the resource whose object has said something new."""
        self._client = client
        self._on_change = on_change
        self._after_seconds = after_seconds
        self._clock = clock
        self._books: dict[str, Book] = {}
        self._of: dict[Id, tuple[str, ...]] = {}

    def of(self, uid: str) -> tuple[str, ...]:
        """An object's latest warnings as "Reason: note", the newest first."""
        book = self._books.get(uid)
        return book.said if book is not None else ()

    def watch(self, key: Id, puzzles: Sequence[Puzzle]) -> None:
        """What of a resource is to be asked about from now on; nothing else of it is."""
        uids = tuple(puzzle.uid for puzzle in puzzles)
        for uid in self._of.pop(key, ()):
            if uid not in uids:
                self._books.pop(uid, None)
        if not uids:
            return
        self._of[key] = uids
        for puzzle in puzzles:
            if puzzle.uid not in self._books and len(self._books) < OBJECTS_MAX:
                self._books[puzzle.uid] = Book(key, puzzle, self._clock() + self._after_seconds)

    async def run(self) -> None:
        """Round after round, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_SECONDS)

    async def tick(self) -> None:
        """Those that are due longest."""
        now = self._clock()
        due = sorted((book for book in self._books.values() if book.due <= now), key=lambda book: book.due)
        for book in due[:ASKED_PER_TICK_MAX]:
            await self._ask(book)

    async def _ask(self, book: Book) -> None:
        puzzle = book.puzzle
        query = {"fieldSelector": f"regarding.uid={puzzle.uid}", "limit": str(EVENTS_MAX)}
        try:
            answer = await self._client.request("GET", EVENT.path(puzzle.namespace), kind=EVENT, query=query)
        except KubeError as error:
            logger.info("why %s/%s does not come forward is not known: %s", puzzle.namespace, puzzle.name, error)
            book.due, book.pause = self._clock() + PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX
            return
        said = latest(answer.get("items") or (), datetime.now(UTC))
        changed, book.said = said != book.said, said
        book.pause = PAUSE_SECONDS if changed else min(PAUSE_SECONDS_MAX, book.pause * 2)
        book.due = self._clock() + book.pause
        if changed:
            self._on_change(book.key)


def latest(events: Iterable[Mapping[str, Any]], now: datetime) -> tuple[str, ...]:
    """The warnings that count: not those that are old, nor those that something was better after."""
    dated = sorted(((_time(event), event) for event in events), key=lambda one: one[0], reverse=True)
    found: dict[str, None] = {}
    over = False
    for at, event in dated:
        reason, kind = str(event.get("reason") or ""), event.get("type")
        if (now - at).total_seconds() > BELIEVED_SECONDS or len(found) >= SAID_MAX:
            break
        over = over or reason in FORWARD
        if kind == "Warning" and (not over or reason in LASTING):
            found[f"{reason}: {event.get('note') or ''}"] = None
    return tuple(found)


def _time(event: Mapping[str, Any]) -> datetime:
    """When it was last so: writers of old and of new Events note it in different places."""
    series = event.get("series") or {}
    told = (
        series.get("lastObservedTime"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    )
    for one in told:
        try:
            return datetime.fromisoformat(str(one))
        except ValueError:
            continue
    return datetime.fromtimestamp(0, UTC)
