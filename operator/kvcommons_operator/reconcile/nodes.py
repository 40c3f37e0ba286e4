"""The cache nodes' control API, as the operator calls it: a node that does not answer is a fact, never an error."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from kvcommons_operator import names
from kvcommons_operator.observed import NodeState, TierState

CALL_SECONDS_MAX: Final = 2.0
ANSWER_BYTES_MAX: Final = 1 << 20
CALLS_AT_ONCE_MAX: Final = 32
TIERS_MAX: Final = 4
TIER_NAME_CHARACTERS_MAX: Final = 32
TIER_DETAIL_CHARACTERS_MAX: Final = 200
UNWRITTEN: Final = ("tier_write_waiting", "tier_write_in_flight_bytes")
"""Counters of what is in memory and still on its way to a tier."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one node's control API is, and what opens it."""

    ip: str
    token: str
    port: int = names.CONTROL_PORT

    @property
    def url(self) -> str:
        """Without a path."""
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 0 where none came; `body` says why."""

    status: int
    body: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """The node did what it was asked."""
        return self.status == 200

    @property
    def refused(self) -> str:
        """Why it will not do it, in its words; empty where asking again may help."""
        if not 400 <= self.status < 500 or self.status in (401, 408, 429):
            return ""
        error = self.body.get("error")
        told = str(error.get("message") or "") if isinstance(error, Mapping) else ""
        return told or f"it answers {self.status}"


class NodeClient:
    """One session for all nodes; never more than a bounded number of calls at once."""

    def __init__(self, *, seconds_max: float = CALL_SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._at_once = asyncio.Semaphore(CALLS_AT_ONCE_MAX)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Closes its connections."""
        if self._session is not None:
            await self._session.close()

    async def state(self, address: Address, member: str) -> NodeState:
        """What the node says of itself."""
        answer = await self._call("GET", address, "/v1/stats", None)
        if not answer.ok:
            return NodeState(member=member, reachable=False)
        try:
            return parse_stats(answer.body)
        except (AttributeError, TypeError, ValueError) as error:
            logger.warning("%s says what no cache node says: %s", address.url, error)
            return NodeState(member=member, reachable=False)

    async def routable(self, address: Address) -> int | None:
        """Instances that a router sends to; None where it does not say."""
        answer = await self._call("GET", address, "/health", None)
        models = answer.body.get("models") if answer.status in (200, 503) else None
        if not isinstance(models, Mapping):
            return None
        counts = [model.get("up") for model in models.values() if isinstance(model, Mapping)]
        return sum(count for count in counts if isinstance(count, int))

    async def fence(self, address: Address, members: Sequence[str], reason: str, *, hold: bool = False) -> Answer:
        """Voids what the members published. `hold`: the node itself, which then publishes nothing until it is restarted."""
        body = {"members": list(members), "reason": reason[:200], "hold": hold}
        return await self._call("POST", address, "/v1/fence", body)

    async def unfence(self, address: Address, reason: str) -> Answer:
        """Lets the node back into the index, after a hold that has no reason any more."""
        return await self._call("POST", address, "/v1/fence", {"members": [], "reason": reason[:200], "release": True})

    async def resize(self, address: Address, arena_bytes: int, reason: str) -> Answer:
        """Has the node take an arena of another size and keep what fits: it begins anew, unless it has that size."""
        return await self._call("POST", address, "/v1/resize", {"arena_bytes": arena_bytes, "reason": reason[:200]})

    async def _call(self, method: str, address: Address, path: str, body: Mapping[str, Any] | None) -> Answer:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=self._seconds_max)
            connector = aiohttp.TCPConnector(limit=CALLS_AT_ONCE_MAX, force_close=True)
            self._session = aiohttp.ClientSession(timeout=limits, connector=connector, trust_env=False)
        headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
        try:
            async with (
                self._at_once,
                self._session.request(method, address.url + path, json=body, headers=headers) as response,
            ):
                document = json.loads(await _whole(response.content))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Answer(0, {"error": str(error) or type(error).__name__})
        return Answer(response.status, document if isinstance(document, dict) else {})


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """All of an answer: one read gives only what has come so far. :raises ValueError: if it is too long."""
    raw = bytearray()
    async for piece in content.iter_any():
        raw += piece
        if len(raw) > ANSWER_BYTES_MAX:
            raise ValueError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
    return bytes(raw)


def parse_stats(stats: Mapping[str, Any]) -> NodeState:
    """/v1/stats as the planners read it. A field that an older node does not have is 0."""
    index, core = stats.get("index") or {}, stats.get("core") or {}
    state = str(index.get("state") or "")
    fenced = bool(index.get("held"))
    return NodeState(
        member=str(stats.get("node_id") or ""),
        joined=state == "connected" and not fenced,
        fenced=fenced,
        flushed=int(index.get("pending") or 0) == 0 and not any(int(core.get(name) or 0) for name in UNWRITTEN),
        chunks=int(core.get("chunks") or 0),
        hits=int(core.get("hit_chunks") or 0),
        asked=int(core.get("lookup_chunks") or 0),
        arena_bytes=int(core.get("arena_bytes") or 0),
        used_bytes=int(core.get("used_bytes") or 0),
        index_missing=int(index.get("missing") or 0),
        index_stale=int(index.get("stale") or 0),
        tiers=tuple(_tier(one) for one in (stats.get("tiers") or ())[:TIERS_MAX]),
    )


def _tier(told: Mapping[str, Any]) -> TierState:
    counters = told.get("counters") or {}
    return TierState(
        name=str(told.get("name") or "")[:TIER_NAME_CHARACTERS_MAX],
        health=str(told.get("health") or ""),
        detail=str(told.get("detail") or "")[:TIER_DETAIL_CHARACTERS_MAX],
        capacity_bytes=int(counters.get("capacity_bytes") or 0),
        used_bytes=int(counters.get("used_bytes") or 0),
    )


def index_reachable(states: Mapping[str, NodeState]) -> bool | None:
    """What the nodes say of Redis: None where none has answered."""
    told = [state.joined for state in states.values() if state.reachable and not state.fenced]
    return any(told) if told else None
