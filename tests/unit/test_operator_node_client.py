"""The operator's client of cache nodes and routers, against servers that say anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kvcommons_operator.reconcile.nodes import Address, NodeClient

STATS = {"node_id": "n", "index": {"state": "connected"}, "core": {"chunks": 7, "filler": "x" * 300_000}}


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Address]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Address("127.0.0.1", "token", int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()


async def asked(answer: Any) -> tuple[Any, Any]:
    """(a node's state, a router's number) where this is what is said."""

    async def say(_: web.Request) -> web.Response:
        return web.json_response(answer)

    client = NodeClient()
    try:
        async with serving(say) as address:
            return await client.state(address, "n"), await client.routable(address)
    finally:
        await client.close()


@pytest.mark.parametrize(
    "stats",
    [
        {"index": ["connected"]},
        {"index": {"pending": "many"}},
        {"core": {"chunks": {}}},
        {"core": "none"},
        ["nothing"],
    ],
)
async def test_a_node_that_says_nonsense_is_one_that_does_not_answer(stats: Any) -> None:
    """What a pod says must never end the operator: whoever makes a pod would end it for everybody."""
    state, _ = await asked(stats)
    assert not state.reachable or state.chunks == 0


@pytest.mark.parametrize("up", ["many", [1], {"a": 1}, None])
async def test_a_router_that_says_nonsense_counts_for_nothing(up: Any) -> None:
    """The same of routers; what they say well of other models counts."""
    _, routable = await asked({"models": {"one": {"up": up}, "two": {"up": 2}}})
    assert routable == 2


async def test_an_answer_that_comes_in_pieces_is_read_to_its_end() -> None:
    """Long statistics are more than one segment: a node whose answer is on its way is not away."""
    body = json.dumps(STATS).encode()
    arrived = asyncio.Event()

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for begin in range(0, len(body), 100_000):
            await response.write(body[begin : begin + 100_000])
            await asyncio.sleep(0.01)
        arrived.set()
        return response

    client = NodeClient()
    try:
        async with serving(trickle) as address:
            state = await client.state(address, "n")
    finally:
        await client.close()
    assert arrived.is_set()
    assert (state.reachable, state.chunks) == (True, 7)
