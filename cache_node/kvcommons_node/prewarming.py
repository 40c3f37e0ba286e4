"""Documents through the engines, once each: what a prewarm job does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from typing import Any, Final

from kvcommons_node.api.models_jobs import Document, PrewarmRequest
from kvcommons_node.engines import COMPLETION_SECONDS_MAX, Engine, EngineError, Engines
from kvcommons_node.jobs import JobError, Progress

TRIES: Final = 3
PAUSE_SECONDS: Final = (0.5, 2.0)
FAILURES_SHOWN_MAX: Final = 5


class Prewarm:
    """One job: so many workers take the documents in turn."""

    def __init__(
        self, request: PrewarmRequest, engines: Engines, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._request = request
        self._engines = engines
        self._pause = pause
        self._prompt_tokens = self._cached_tokens = 0
        self._failures: list[str] = []

    async def __call__(self, progress: Progress) -> dict[str, Any]:
        """:raises JobError: if nothing of it went well."""
        engines = cycle(await self._engines.all())
        documents = iter(enumerate(self._request.documents, 1))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._request.at_once, len(self._request.documents))):
                group.create_task(self._work(documents, engines, progress))
        if progress.failed == progress.total:
            raise JobError(self._failures[0])
        return {
            "documents": progress.done,
            "failed": progress.failed,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "failures": self._failures,
        }

    async def _work(
        self, documents: Iterator[tuple[int, Document]], engines: Iterator[Engine], progress: Progress
    ) -> None:
        for number, document in documents:
            try:
                usage = await self._send(document, engines)
            except EngineError as error:
                progress.failed += 1
                progress.detail = f"document {number}: {error}"
                if len(self._failures) < FAILURES_SHOWN_MAX:
                    self._failures.append(progress.detail)
            else:
                details = usage.get("prompt_tokens_details")
                self._prompt_tokens += _count(usage.get("prompt_tokens"))
                self._cached_tokens += _count(details.get("cached_tokens") if isinstance(details, dict) else 0)
                progress.done += 1

    async def _send(self, document: Document, engines: Iterator[Engine]) -> dict[str, Any]:
        """To the next engine; what may pass is tried again, at the one after it."""
        chat = document.messages is not None
        path = "/v1/chat/completions" if chat else "/v1/completions"
        text: dict[str, Any] = {"messages": document.messages} if chat else {"prompt": document.prompt}
        body = {**text, "model": self._request.model, "max_tokens": 1, "temperature": 0}
        for attempt in range(TRIES):
            try:
                answer = await self._engines.call(next(engines), path, body, COMPLETION_SECONDS_MAX)
            except EngineError as error:
                if attempt + 1 == TRIES or not error.passing:
                    raise
                await self._pause(PAUSE_SECONDS[attempt])
            else:
                usage = answer.get("usage")
                return usage if isinstance(usage, dict) else {}
        raise AssertionError("the last try either answers or raises")


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
