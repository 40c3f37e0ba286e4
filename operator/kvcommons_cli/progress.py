"""Progress of a local stack, as lines on standard error with the time since the start."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import IO

from kvcommons_cli.processes import Guarded

POLL_SECONDS = 0.1
REMINDER_SECONDS = 15.0


class Progress:
    """Says what is going on."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._started = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        self._stream.write(f"[{self.seconds():6.1f} s] {text}\n")
        self._stream.flush()


def wait_ready(
    progress: Progress, waiting: Mapping[str, tuple[Guarded, Callable[[], bool]]], seconds_max: float
) -> None:
    """Until each of them is ready.

    :raises StackError: with the end of the log, as soon as one has ended, or if one is not ready in time."""
    left = dict(waiting)
    deadline = time.monotonic() + seconds_max
    reminder = time.monotonic() + REMINDER_SECONDS
    while left:
        for name, (process, ready) in list(left.items()):
            if not process.alive():
                raise process.failure("ended before it was ready")
            if ready():
                progress.say(f"{name} is ready")
                del left[name]
        now = time.monotonic()
        if left and now > deadline:
            raise next(iter(left.values()))[0].failure(f"not ready after {seconds_max:.0f} s")
        if left and now > reminder:
            progress.say(f"waiting for {', '.join(left)}")
            reminder = now + REMINDER_SECONDS
        if left:
            time.sleep(POLL_SECONDS)
