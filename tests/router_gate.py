"""Engines that begin to answer when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router_support import Call, Engine


class Gate:
    """Engines that begin to answer when the test says so."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = engines
        self._open: dict[int, asyncio.Event] = {}
        for engine in engines:
            engine.script = self._stream

    async def _stream(self, call: Call) -> None:
        event = self._open.setdefault(id(call), asyncio.Event())
        waiting = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(call.gone.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        if event.is_set():
            await call.begin_stream()
            await call.chunk(b"data: {}\n\n")
            await call.end_stream()

    def answer(self, call: Call) -> None:
        """Lets an engine answer a request."""
        self._open.setdefault(id(call), asyncio.Event()).set()

    @property
    def calls(self) -> list[Call]:
        """Everything that engines were asked."""
        return [call for engine in self.engines for call in engine.calls]

    def named(self, name: str) -> Call | None:
        """The call of a request, if it has come to an engine."""
        found = [call for call in self.calls if call.json["messages"][0]["content"].startswith(name)]
        return found[0] if found else None
