"""When requests whose first byte is their last are believed to be prefilled, so that they count as decoding from then on."""

from __future__ import annotations

import heapq
from typing import Protocol


class Guessed(Protocol):
    """A request under way."""

    done: bool
    attempts: int

    def prefilled(self) -> None:
        """Its prefill is believed to be done."""


class Guesses:
    """Moments in the future, looked at a few ten times a second."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Guessed]] = []
        self._fresh: list[tuple[float, int, Guessed]] = []
        self._count = 0

    def add(self, at: float, request: Guessed) -> None:
        """Takes a request to be prefilled at a moment, if it is still under way then with the same attempt."""
        self._fresh.append((at, request.attempts, request))

    def take(self, now: float) -> None:
        """Tells those whose moment has come."""
        heap = self._heap
        fresh, self._fresh = self._fresh, []
        for at, attempt, request in fresh:
            if not request.done:  # most have ended within a tick, and cost no more than this
                self._count += 1
                heapq.heappush(heap, (at, self._count, attempt, request))
        while heap and heap[0][0] <= now:
            _, _, attempt, request = heapq.heappop(heap)
            if not request.done and request.attempts == attempt:
                request.prefilled()
