"""Which objects are due: one entry an object, bursts coalesced, failures backed off, nothing done twice at once."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

COALESCE_SECONDS: Final = 0.05
"""What follows an event within this time is done together with it."""
INTERVAL_SECONDS_MIN: Final = 1.0
"""An object under a storm of events is looked at this often at most."""
INTERVAL_SECONDS_MAX: Final = 5.0
LOOKS_PER_SECOND: Final = 10
"""As many looks a second leave that interval as it is. With more of them, when hundreds of objects change at once, it grows in proportion, and
each look does more of what has happened."""
LOOKS_MAX: Final = 10_000
PACE_SECONDS: Final = 5.0
"""Over which looks are counted."""
BACKOFF_SECONDS: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 60.0

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """`add` from anywhere in the loop; workers `take`, then say `done` or `failed`."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
        interval_seconds_min: float = INTERVAL_SECONDS_MIN,
        first: Callable[[K], bool] = lambda key: False,
    ) -> None:
        """:param first: whether a key that is due goes before all that are not so."""
        self._clock = clock
        self._rng = rng
        self._interval = interval_seconds_min
        self._due: dict[K, float] = {}
        self._first = first
        self._heaps: tuple[list[tuple[float, int, K]], ...] = ([], [])
        self._order = itertools.count()
        self._busy: set[K] = set()
        self._again: dict[K, float] = {}
        self._last: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._looks: deque[float] = deque(maxlen=LOOKS_MAX)
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        now = self._clock()
        return sum(at <= now for at in self._due.values()) + len(self._busy)

    def add(self, key: K, delay_seconds: float = COALESCE_SECONDS, *, soon: bool = False) -> None:
        """Due after the delay, unless it is due sooner. While it is being done, it is done again afterwards.

        :param soon: what somebody waits for: however many objects change at once, the pause is the ordinary one."""
        now = self._clock()
        last = self._last.get(key)
        pause = self._interval if soon else self._pause(now)
        at = now + delay_seconds if last is None else max(now + delay_seconds, last + pause)
        if key in self._busy:
            self._again[key] = min(at, self._again.get(key, at))
            return
        if at < self._due.get(key, float("inf")):
            self._due[key] = at
            heapq.heappush(self._heaps[0 if self._first(key) else 1], (at, next(self._order), key))
            self._wake.set()

    def _pause(self, now: float) -> float:
        """How long an object is left alone that was just looked at."""
        while self._looks and self._looks[0] <= now - PACE_SECONDS:
            self._looks.popleft()
        crowd = len(self._looks) / PACE_SECONDS / LOOKS_PER_SECOND
        return self._interval * min(INTERVAL_SECONDS_MAX / INTERVAL_SECONDS_MIN, max(1.0, crowd))

    def forget(self, key: K) -> None:
        """It exists no more."""
        for book in (self._due, self._again, self._last, self._failures):
            book.pop(key, None)

    async def take(self) -> K:
        """The next that is due; it is the caller's until `done` or `failed`. Of workers without work one waits for the time and for
        what comes, and the others for that one."""
        async with self._turn:
            return await self._next()

    async def _next(self) -> K:
        while True:
            now = self._clock()
            for heap in self._heaps:
                while heap and self._due.get(heap[0][2]) != heap[0][0]:
                    heapq.heappop(heap)
                if heap and heap[0][0] <= now:
                    _, _, key = heapq.heappop(heap)
                    del self._due[key]
                    self._busy.add(key)
                    self._last[key] = now
                    self._looks.append(now)
                    return key
            self._wake.clear()
            wait = min((heap[0][0] - now for heap in self._heaps if heap), default=None)
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def done(self, key: K, again_seconds: float | None = None) -> None:
        """It went well; look again after so long, if at all."""
        self._failures.pop(key, None)
        self._release(key, again_seconds)

    def failed(self, key: K, at_least_seconds: float = 0.0) -> float:
        """It did not; again after a pause that doubles. Returns the pause."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        bound = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** min(count - 1, 16))
        pause = max(at_least_seconds, bound * (0.5 + self._rng() / 2))
        # What happened meanwhile does not shorten the pause of what can't be done.
        self._again.pop(key, None)
        self._release(key, pause)
        return pause

    def _release(self, key: K, again_seconds: float | None) -> None:
        self._busy.discard(key)
        again_at = self._again.pop(key, None)
        if again_at is not None:
            self.add(key, max(0.0, again_at - self._clock()))
        if again_seconds is not None:
            self.add(key, again_seconds)
