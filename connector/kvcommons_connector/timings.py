"""What of a traced request took how long here: told to the router with the report, which makes spans of it.

The engine's own tracing, where it is on, knows nothing of it, and is not needed for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Timings:
    """One request's. A part that happens again goes on to its last end."""

    __slots__ = ("_ended", "_now_ms", "_started")

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._started: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def begin(self, part: str) -> None:
        """Of lookup, fetch, load, store."""
        self._started.setdefault(part, self._now_ms())

    def end(self, part: str) -> None:
        """It is over, if it ever began."""
        if part in self._started:
            self._ended[part] = self._now_ms()

    def looked_up(self, *, pending: bool) -> None:
        """The node has answered; `pending`: it is bringing more from behind its memory, and is asked again."""
        self.end("lookup")
        if pending:
            self.begin("fetch")
        self.end("fetch")

    def told(self) -> list[list[str | int]]:
        """For a report: each part that has ended, when it began (microseconds of Unix time) and how many microseconds it took."""
        unix_us, now = time.time_ns() // 1000, self._now_ms()
        return [
            [part, unix_us - round((now - started) * 1000), round((self._ended[part] - started) * 1000)]
            for part, started in self._started.items()
            if part in self._ended
        ]
