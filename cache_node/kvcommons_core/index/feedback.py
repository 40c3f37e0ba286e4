"""What requests really reused, as the nodes tell it to all routers. A message that nobody hears is lost, and that is no harm."""

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
    """Hands every message of the pool's channel to `handle`, which must not wait. `run` until cancelled."""

    def __init__(self, settings: IndexSettings, handle: Callable[[bytes], None]) -> None:
        self.received = 0
        self.oversized = 0
        self.subscribed = asyncio.Event()
        self._connection = IndexConnection(settings)
        self._channel = Names(settings.prefix).feedback
        self._handle = handle

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
            await subscriber.subscribe(self._channel)
            while True:
                message = await subscriber.get_message(timeout=POLL_SECONDS)
                reraise_swallowed_cancellation()
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self.subscribed.set()
                elif message["type"] == "message":
                    self._take(message["data"])
        finally:
            await subscriber.aclose()

    def _take(self, data: bytes) -> None:
        if len(data) > limits.FEEDBACK_BYTES_MAX:
            self.oversized += 1
            return
        self.received += 1
        self._handle(data)
