"""The engines of this node, over HTTP: documents go through them, they know how text becomes tokens, and they have caches of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from kvcommons_core.errors import IndexUnavailableError
from kvcommons_core.index.schema import MemberKind

from kvcommons_node.api import refusals, refusals_work
from kvcommons_node.api.models_select import EngineResult
from kvcommons_node.pool_view import PoolView
from kvcommons_node.whole_answer import whole

COMPLETION_SECONDS_MAX: Final = 600.0
CALL_SECONDS_MAX: Final = 30.0
ANSWER_BYTES_MAX: Final = 64 << 20
ENGINES_MAX: Final = 64
ERROR_CHARACTERS_MAX: Final = 300


NO_RESET: Final = "it has no /reset_prefix_cache: vLLM serves it with VLLM_SERVER_DEV_MODE=1, for trusted networks alone; a restart empties it too"
WHOLE: Final = "an engine's cache can be emptied as a whole only"


class EngineError(Exception):
    """An engine refused, or did not answer. `status`: of HTTP, 0 without an answer."""

    def __init__(self, url: str, status: int, why: str) -> None:
        super().__init__(f"{url}: {f'status {status}: ' if status else ''}{why[:ERROR_CHARACTERS_MAX]}")
        self.url, self.status = url, status

    @property
    def passing(self) -> bool:
        """The same may go well a moment later."""
        return self.status in (0, 429) or self.status >= 500


@dataclass(frozen=True)
class Engine:
    """Where one is. `name`: for people."""

    name: str
    url: str
    token: str = ""


class Engines:
    """Configured ones; without any, those that the index knows to be attached to this node."""

    def __init__(self, configured: Sequence[Engine], pool: PoolView, node_id: str) -> None:
        self._configured = tuple(configured)
        self._pool = pool
        self._node_id = node_id
        self._http: aiohttp.ClientSession | None = None

    async def all(self) -> list[Engine]:
        """:raises Refusal: if none is known."""
        found = list(self._configured) or await self._of_index()
        if not found:
            raise refusals_work.no_engine()
        return found[:ENGINES_MAX]

    async def _of_index(self) -> list[Engine]:
        try:
            members = await self._pool.members()
        except refusals.Refusal:
            return []
        except IndexUnavailableError as error:
            raise refusals.index_away(error) from error
        engines = [one.info for one in members if one.info.kind is MemberKind.ENGINE]
        return [Engine(one.name, one.address.rstrip("/")) for one in engines if one.node == self._node_id]

    async def call(
        self, engine: Engine, path: str, body: object, seconds_max: float = CALL_SECONDS_MAX
    ) -> dict[str, Any]:
        """One POST. :raises EngineError: if it is refused, not answered in time, or answered with no JSON object."""
        headers = {"Authorization": f"Bearer {engine.token}"} if engine.token else {}
        timeout = aiohttp.ClientTimeout(total=seconds_max)
        try:
            async with self._session().post(engine.url + path, json=body, headers=headers, timeout=timeout) as response:
                content = await whole(response.content, ANSWER_BYTES_MAX)
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise EngineError(engine.url, 0, str(error) or type(error).__name__) from error
        except ValueError as error:
            raise EngineError(engine.url, 0, str(error)) from error
        except TimeoutError as error:
            raise EngineError(engine.url, 0, f"no answer within {seconds_max:.0f} s") from error
        if not 200 <= status < 300:
            raise EngineError(engine.url, status, content[:ERROR_CHARACTERS_MAX].decode(errors="replace"))
        try:
            answer = json.loads(content) if content.strip() else {}
        except (ValueError, RecursionError) as error:
            raise EngineError(engine.url, status, "its answer is no JSON") from error
        if not isinstance(answer, dict):
            raise EngineError(engine.url, status, "its answer is no JSON object")
        return answer

    async def tokens_of(self, body: dict[str, Any]) -> list[int]:
        """What the first engine makes of a text: `prompt` or `messages`, and its model.

        :raises Refusal: if no engine is known, or it does not tell."""
        engine = (await self.all())[0]
        try:
            answer = await self.call(engine, "/tokenize", body)
        except EngineError as error:
            raise refusals_work.not_tokenized(str(error)) from error
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(type(one) is int and 0 <= one < 1 << 32 for one in tokens):
            raise refusals_work.not_tokenized(f"{engine.url} answered without token ids")
        return tokens

    async def reset(self, *, partly: bool) -> list[EngineResult]:
        """The prefix cache of each engine, as a whole. :param partly: less than all was meant.

        :raises Refusal: if no engine is known."""
        return list(await asyncio.gather(*[self._reset(one, partly) for one in await self.all()]))

    async def _reset(self, engine: Engine, partly: bool) -> EngineResult:
        try:
            await self.call(engine, "/reset_prefix_cache", {})
        except EngineError as error:
            if error.status in (404, 405):
                return EngineResult(engine=engine.name, outcome="not_supported", detail=NO_RESET)
            return EngineResult(engine=engine.name, outcome="failed", detail=str(error))
        return EngineResult(engine=engine.name, outcome="cleared", detail=WHOLE if partly else "")

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            await asyncio.sleep(0)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256))
        return self._http
