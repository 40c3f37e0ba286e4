"""POST /v1/fence of a real daemon on a real Redis: what a member published is void, and a held node publishes nothing more."""

from __future__ import annotations

from typing import Any

import aiohttp
import redis.asyncio as redis_asyncio
from index_support import HandClock, engine, hold
from kvcommons_core import redis_server
from kvcommons_core.index import IndexConnection, MembersView
from kvcommons_core.settings import IndexSettings
from node_daemon import NAMES, Running, running, until
from node_fakes import committed


async def fence(node: Running, **body: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.post(node.url + "/v1/fence", json=body) as response:
        return response.status, await response.json()


async def alive(url: str) -> dict[str, tuple[int, int]]:
    """What a router would believe: name -> (slot, epoch)."""
    settings = IndexSettings(url=url, prefix=NAMES.prefix)
    connection = IndexConnection(settings)
    view = MembersView(connection, settings)
    try:
        await view.poll()
        return {name: (member.slot, member.epoch) for name, member in view.by_name.items()}
    finally:
        await connection.close()


async def test_an_engine_whose_router_is_silent_is_void_once_any_node_is_asked() -> None:
    """The operator's fence makes the engine's epoch another, so that no router believes what was recorded of it."""
    with redis_server.running() as server:
        async with running(server.url) as node:
            await until(node.connected)
            settings = IndexSettings(url=server.url, prefix=NAMES.prefix)
            held = hold(settings, engine("engine-0"), HandClock(), shared=True, seed=1)
            await held.tick()
            assert (await alive(server.url))["engine-0"] == held.identity
            status, answer = await fence(node, members=["engine-0", "nobody"], reason="container restarted")
            assert (status, answer["fenced"], answer["unknown"]) == (200, ["engine-0"], ["nobody"])
            assert "engine-0" not in await alive(server.url)
            before = held.identity
            await held.tick()
            assert held.identity != before
            assert "fenced_by_others" in held.reasons
            await held.connection.close()


async def test_a_held_node_leaves_at_once_and_publishes_nothing_more() -> None:
    """Before a roll the node is out of the index: routers send nothing for what it holds, and it serves its engines on."""
    with redis_server.running() as server:
        async with running(server.url) as node:
            await until(node.connected)
            node.core.emit(committed(1))
            status, answer = await fence(node, hold=True, reason="roll")
            assert (status, answer["held"], answer["fenced"]) == (200, True, ["node-a"])
            assert "node-a" not in await alive(server.url)
            node.core.emit(committed(2))
            ready = await node.ready()
            assert ready["ready"]
            assert ready["index"]["held"]
            client = redis_asyncio.Redis.from_url(server.url)
            assert not [key async for key in client.scan_iter(NAMES.prefix + "l*")]
            await client.aclose()


async def test_a_held_node_is_let_back_in_with_what_it_holds() -> None:
    """A roll that was taken back leaves no node outside: it is a member again under another epoch, and what it holds is told anew."""
    with redis_server.running() as server:
        async with running(server.url) as node:
            await until(node.connected)
            before = (await alive(server.url))["node-a"]
            await fence(node, hold=True)
            assert "node-a" not in await alive(server.url)
            status, answer = await fence(node, release=True, reason="taken back")
            assert (status, answer["held"]) == (200, False)
            await until(node.connected)
            assert (await alive(server.url))["node-a"] != before
            assert not (await node.ready())["index"]["held"]
            again = await fence(node, release=True)
            assert again[0] == 200


async def test_only_the_node_itself_can_be_held() -> None:
    """Holding another node is refused with the remedy: that one has to be asked itself."""
    with redis_server.running() as server:
        async with running(server.url) as node:
            status, answer = await fence(node, members=["node-b"], hold=True)
            assert status == 409
            assert "node-a" in answer["error"]["remedy"]


async def test_a_node_that_does_not_reach_the_index_says_so() -> None:
    """The operator then asks another node."""
    async with running("redis://127.0.0.1:1/0") as node:
        status, answer = await fence(node, members=["engine-0"])
        assert (status, answer["error"]["type"]) == (503, "busy")
