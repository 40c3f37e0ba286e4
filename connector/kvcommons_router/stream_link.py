"""The stream of intents by a lean link of its own: what it says goes out in one write, not through a client library.

Everything that is out of the ordinary (no link yet, an unknown script, a refusal) is done again by the core's connection;
the stream's commands bear repetition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index.connection import Command, IndexConnection
from kvcommons_core.settings import IndexSettings

from kvcommons_router.link import Links, Values

ANSWER_SECONDS_MAX: Final = 1.0


class StreamConnection(IndexConnection):
    """The connection of a stream whose commands' replies don't matter beyond that there were some."""

    def __init__(self, settings: IndexSettings) -> None:
        super().__init__(settings)
        self.links = Links(settings) if Links.can_serve(settings) else None

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """See the core's; a reply that is no array is an empty one here."""
        link = self.links.link if self.links is not None else None
        if link is None or not link.up or not commands:
            return await super().run(commands)
        replies: list[Values | None] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(values: Values | None) -> None:
            replies.append(values)
            if len(replies) == len(commands) and not done.done():
                done.set_result(None)

        refusals = link.refusals
        link.ask_all(commands, answered, ANSWER_SECONDS_MAX)
        await done
        if link.refusals != refusals:
            return await super().run(commands)
        if None in replies:
            link.transport.abort()  # a late answer to these must not be taken for one to what follows
            raise IndexUnavailableError("Redis did not answer the stream of intents in time")
        return list(replies)
