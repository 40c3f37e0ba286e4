"""What is told to all routers: by nodes, what requests really reused; by routers, their load. A message that nobody hears is lost, and that
is no harm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index.connection import AWAY, IndexConnection
from kvcommons_core.index.schema import Names
from kvcommons_core.index.tasks import reraise_swallowed_cancellation
from kvcommons_core.settings import IndexSettings

RETRY_SECONDS: Final = 0.5
POLL_SECONDS: Final = 1.0


class FeedbackListener:
    """Hands every message of the pool's channel to `handle`, which must not wait. `run` until cancelled.

    :param heard: gets what other routers say, where that is asked for; it must not wait, either.
    """

    def __init__(
        self,
        settings: IndexSettings,
        handle: Callable[[bytes], None],
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self.received = 0
        self.oversized = 0
        self.subscribed = asyncio.Event()
        self._connection = IndexConnection(settings)
        names = Names(settings.prefix)
        self._channel = names.feedback
        self._routers = names.routers
        self._handle = handle
        self._heard = heard

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except (*AWAY, IndexUnavailableError):  # away: routing goes on without feedback
                reraise_swallowed_cancellation()
                self.subscribed.clear()
                await self._connection.close()
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        await self._connection.close()

    async def _listen(self) -> None:
        subscriber = await self._connection.pubsub()
        try:
            await subscriber.subscribe(*[self._channel] if self._heard is None else (self._channel, self._routers))
            while True:
                message = await subscriber.get_message(timeout=POLL_SECONDS)
                reraise_swallowed_cancellation()
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self.subscribed.set()
                elif message["type"] == "message" and message["channel"] == self._channel:
                    self._take(message["data"])
                elif message["type"] == "message" and self._heard is not None:
                    self._heard(message["data"])
        finally:
            await subscriber.aclose()

    def _take(self, data: bytes) -> None:
        if len(data) > limits.FEEDBACK_BYTES_MAX:
            self.oversized += 1
            return
        self.received += 1
        self._handle(data)
