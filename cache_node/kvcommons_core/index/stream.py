"""The ordered, bounded stream of words to the index: what is put first is applied first, and whoever puts never waits."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index import schema, scripts
from kvcommons_core.index.connection import Command, CommandError, IndexConnection, evalsha
from kvcommons_core.index.schema import Names
from kvcommons_core.settings import IndexSettings

BACKOFF_SECONDS_MIN: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 2.0
ADD: Final = b"+"
REMOVE: Final = b"-"
KEEP: Final = b"=" + bytes(limits.HOLDER_BYTES)


@dataclass(slots=True)
class StreamStats:
    """Counters for /metrics."""

    applied: int = 0
    """Words that Redis took."""
    batches: int = 0
    failures: int = 0
    """Batches that had to be sent again."""
    lost: int = 0
    """Words dropped because the stream was full."""


class OpStream:
    """Words wait in memory (at most `ops_max`) and leave in pipelines. `run` until cancelled."""

    def __init__(
        self,
        connection: IndexConnection,
        settings: IndexSettings,
        *,
        guard: Callable[[], tuple[int, bytes] | None] = lambda: None,
        on_loss: Callable[[str], None] = lambda reason: None,
        clock: Callable[[], float] = time.time,
        ops_max: int = limits.STREAM_OPS_MAX,
        linger_seconds: float = 0.0,
    ) -> None:
        """:param guard: (slot, lease) that must be up when a batch arrives, or None for none: a server without it is not the one that
        the member registered with.
        :param linger_seconds: how long a first word waits for company, so that a pipeline carries many.
        :param on_loss: called when words were lost or arrived where they don't count ("overflow", "data_loss").
        """
        self.stats = StreamStats()
        self.last_error = ""
        self._connection = connection
        self._names = Names(settings.prefix)
        self._age_max = schema.age_units_max(settings.holder_age_seconds_max)
        self._ttl_ms = settings.holder_ttl_seconds * 1_000
        self._guard = guard
        self._on_loss = on_loss
        self._clock = clock
        self._ops_max = ops_max
        self._linger_seconds = linger_seconds
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._messages: deque[bytes] = deque(maxlen=limits.STREAM_BATCH_OPS_MAX)
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._cleared = 0

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, key8: bytes, word: bytes) -> bool:
        """One word (ADD or REMOVE with a packed holder, or KEEP) about one key; False if the stream was full and was given up."""
        if len(self._queue) >= self._ops_max:
            self.stats.lost += len(self._queue) + 1
            self.clear()
            self._on_loss("overflow")
            return False
        self._queue.append((key8, word))
        if not self._filled.is_set():
            self._filled.set()
            self._idle.clear()
        return True

    def put_all(self, keys: Sequence[bytes], word: bytes) -> bool:
        """The same word about several keys."""
        if len(self._queue) + len(keys) > self._ops_max:
            return all(self.put(key8, word) for key8 in keys)  # once it was given up, the rest is void too
        self._queue.extend([(key8, word) for key8 in keys])
        if keys and not self._filled.is_set():
            self._filled.set()
            self._idle.clear()
        return True

    def tell(self, message: bytes) -> None:
        """A message for the feedback channel; the oldest go when too many wait."""
        self._messages.append(message)
        self._filled.set()
        self._idle.clear()

    def clear(self) -> None:
        """Forgets what waits: a new epoch has made it void."""
        self._queue.clear()
        self._cleared += 1

    async def flushed(self) -> None:
        """Returns when nothing waits."""
        await self._idle.wait()

    async def run(self) -> None:
        """Sends until cancelled."""
        backoff = BACKOFF_SECONDS_MIN
        while True:
            if not self._queue and not self._messages:
                self._idle.set()
                self._filled.clear()
                await self._filled.wait()
            if self._linger_seconds:
                await asyncio.sleep(self._linger_seconds)
            try:
                await self._send_batch()
                backoff, self.last_error = BACKOFF_SECONDS_MIN, ""
            except IndexUnavailableError as error:
                self.stats.failures += 1
                self.last_error = str(error)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    async def _send_batch(self) -> None:
        """One pipeline. Words leave the queue only when Redis took them; applying one twice does no harm."""
        count = min(len(self._queue), limits.STREAM_BATCH_OPS_MAX)
        batch = [self._queue[i] for i in range(count)]
        messages = list(self._messages)
        guard = self._guard()
        commands: list[Command] = [("GET", self._names.lease(guard[0]))] if guard else []
        commands += self._apply_commands(batch)
        told = len(commands)
        commands += [("PUBLISH", self._names.feedback, message) for message in messages]
        cleared = self._cleared
        replies = await self._connection.run(commands)
        refused = next((reply for reply in replies[:told] if isinstance(reply, CommandError)), None)
        if refused is not None:
            raise IndexUnavailableError(f"Redis refuses: {refused.message}")
        for _ in range(min(len(messages), len(self._messages))):
            self._messages.popleft()
        if cleared == self._cleared:
            for _ in range(count):
                self._queue.popleft()
            self.stats.applied += count
            self.stats.batches += 1
            if guard and replies[0] != guard[1] and guard == self._guard():
                self._on_loss("data_loss")

    def _apply_commands(self, batch: list[tuple[bytes, bytes]]) -> list[Command]:
        """Scripts of up to 64 keys; one key each on a Cluster. A key twice in one script is fine: they are applied in order."""
        now = schema.born_of(self._clock())
        size = 1 if self._connection.is_cluster else limits.SCRIPT_KEYS_MAX
        commands = []
        for begin in range(0, len(batch), size):
            part = batch[begin : begin + size]
            keys = [self._names.holders(key8) for key8, _ in part]
            commands.append(
                evalsha(scripts.APPLY, keys, [now, self._age_max, self._ttl_ms, *(word for _, word in part)])
            )
        return commands
