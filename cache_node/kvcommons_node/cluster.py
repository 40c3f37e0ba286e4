"""One call for every node of the pool: asked side by side, and told node by node what came of it."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from kvcommons_core.index.schema import Member, MemberKind
from pydantic import BaseModel, ValidationError

from kvcommons_node.api import openapi, refusals
from kvcommons_node.api.models_cluster import NODES_MAX, ClusterAnswer, ClusterRequest, NodeResult
from kvcommons_node.api.server import MEANT_HEADER
from kvcommons_node.pool_view import PoolView
from kvcommons_node.whole_answer import whole

CALL_SECONDS_MAX: Final = 60.0
AT_ONCE_MAX: Final = 32
ANSWER_BYTES_MAX: Final = 16 << 20
ABSENT: Final = "it is in the index, but has not been heard of for longer than its lease: it may be down, and what is on its disk was not reached"
UNKNOWN: Final = "the index knows no node of this name that lives"
Local = Callable[[str, BaseModel | None], Awaitable[BaseModel]]
"""Does one operation here. :raises Refusal: as it does."""


@dataclass(frozen=True)
class Credentials:
    """What other nodes want to see. All nodes of a pool have the same token, or certificates of one authority."""

    token: str | None = None
    tls: ssl.SSLContext | None = None
    """None: plain HTTP."""


class Cluster:
    """One per daemon."""

    def __init__(self, pool: PoolView, node_id: str, credentials: Credentials, local: Local) -> None:
        self._pool, self._node_id, self._credentials, self._local = pool, node_id, credentials, local
        self._http: aiohttp.ClientSession | None = None

    async def call(self, request: ClusterRequest) -> ClusterAnswer:
        """:raises Refusal: if the operation's own request is wrong, or there is no index.
        :raises IndexUnavailableError: if the index does not say who there is."""
        operation = next(one for one in openapi.OPERATIONS if one.name == request.operation)
        asked = _validated(operation, request.body)
        members = [one for one in await self._pool.members() if one.info.kind is MemberKind.NODE]
        known = {one.info.name: one for one in members}
        absent = set(await self._pool.absent()) - known.keys()
        names = sorted(set(request.nodes) or known.keys() | absent)[:NODES_MAX]
        at_once = asyncio.Semaphore(AT_ONCE_MAX)

        async def one(name: str) -> NodeResult:
            if name not in known:
                return NodeResult(node=name, ok=False, status=0, error=ABSENT if name in absent else UNKNOWN, seconds=0)
            async with at_once:
                return await self._one(known[name], operation, asked)

        results = await asyncio.gather(*[one(name) for name in names])
        well = sum(1 for result in results if result.ok)
        return ClusterAnswer(operation=operation.name, nodes=results, ok=well, failed=len(results) - well)

    async def ask(self, name: str, operation_name: str, asked: BaseModel) -> NodeResult:
        """One operation of one other node.

        :raises Refusal: without an index. :raises IndexUnavailableError: if the index does not say who there is."""
        operation = next(one for one in openapi.OPERATIONS if one.name == operation_name)
        for member in await self._pool.members():
            if member.info.kind is MemberKind.NODE and member.info.name == name:
                return await self._one(member, operation, asked)
        return NodeResult(node=name, ok=False, status=0, error=UNKNOWN, seconds=0)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def _one(self, member: Member, operation: openapi.Operation, asked: BaseModel | None) -> NodeResult:
        begun = time.monotonic()
        own = member.info.name == self._node_id
        call = self._here(operation, asked) if own else self._there(member, operation, asked)
        status, answer, error = await call
        return NodeResult(
            node=member.info.name,
            ok=200 <= status < 300,
            status=status,
            error=error,
            answer=answer,
            seconds=round(time.monotonic() - begun, 3),
        )

    async def _here(self, operation: openapi.Operation, asked: BaseModel | None) -> tuple[int, dict[str, Any], str]:
        try:
            answer = await self._local(operation.name, asked)
        except refusals.Refusal as refusal:
            return refusal.status, {}, f"{refusal.detail.message}; {refusal.detail.remedy}"
        return 200, answer.model_dump(mode="json"), ""

    async def _there(
        self, member: Member, operation: openapi.Operation, asked: BaseModel | None
    ) -> tuple[int, dict[str, Any], str]:
        credentials, fields = self._credentials, asked.model_dump(mode="json", exclude_unset=True) if asked else {}
        url = f"{'https' if credentials.tls else 'http'}://{member.info.address}{operation.path}"
        headers = {MEANT_HEADER: member.info.name}
        if credentials.token:
            headers["Authorization"] = f"Bearer {credentials.token}"
        query = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()}
        try:
            async with self._session().request(
                operation.method,
                url,
                headers=headers,
                ssl=credentials.tls or True,
                params=query if operation.query else None,
                json=fields if operation.body else None,
            ) as response:
                answer = json.loads(await whole(response.content, ANSWER_BYTES_MAX))
        except TimeoutError:
            return 0, {}, f"{url}: no answer within {CALL_SECONDS_MAX:.0f} s: it may still have been done"
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            return 0, {}, f"{url}: {error or type(error).__name__}"
        if not isinstance(answer, dict):
            return 0, {}, f"{url}: its answer is no JSON object: does another server listen there?"
        if 200 <= response.status < 300:
            return response.status, answer, ""
        detail = answer.get("error")
        words = f"{detail.get('message')}; {detail.get('remedy')}" if isinstance(detail, dict) else "refused"
        return response.status, {}, words

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=CALL_SECONDS_MAX, connect=10.0)
            self._http = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=AT_ONCE_MAX))
        return self._http


def _validated(operation: openapi.Operation, body: dict[str, Any]) -> BaseModel | None:
    """Here, so that one mistake is one refusal and not as many as there are nodes."""
    model = operation.body or operation.query
    try:
        return model.model_validate(body) if model is not None else None
    except ValidationError as error:
        raise refusals.invalid(error, "body.") from error
