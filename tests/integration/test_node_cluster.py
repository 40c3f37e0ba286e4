"""Calls for all nodes, over a real Redis and real HTTP; the cores are fakes at their seam."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

from kvcommons_core import redis_server
from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.membership import MembershipKeeper, MemberState
from kvcommons_core.index.schema import MemberInfo, MemberKind
from kvcommons_core.redis_server import free_port
from kvcommons_core.settings import IndexSettings
from node_daemon import NAMES, Running, running, until
from node_fakes import FINGERPRINT, FakeCore, committed, key


async def node_at(stack: AsyncExitStack, url: str, name: str, address: str = "") -> Running:
    port = free_port()
    node = await stack.enter_async_context(
        running(url, FakeCore(), name, control_port=port, address=address or f"127.0.0.1:{port}")
    )
    await until(node.connected)
    return node


async def register_and_die(url: str) -> None:
    """As a node that is killed: its record stays, its lease runs out."""
    settings = IndexSettings(url=url, prefix=NAMES.prefix)
    connection = IndexConnection(settings)
    keeper = MembershipKeeper(connection, settings)
    member = keeper.add(
        MemberInfo(name="node-b", kind=MemberKind.NODE, address="127.0.0.1:9"), on_epoch=lambda reason: None
    )

    async def joined() -> bool:
        return member.state is MemberState.JOINED

    living = asyncio.create_task(keeper.run())
    await until(joined)
    living.cancel()
    with suppress(asyncio.CancelledError):
        await living
    await connection.close()


def chain(*numbers: int, **more: object) -> dict[str, object]:
    return {"fingerprint": FINGERPRINT.hex(), "keys": [key(number).hex() for number in numbers], **more}


async def test_a_call_for_all_nodes_says_of_each_what_came_of_it() -> None:
    """Two nodes do it, the one that was asked and another; one that is registered and not reached, one whose address is another node's by
    now, and one that nobody knows are told as failed, each with the reason; the others' work is done all the same."""
    with redis_server.running() as server:
        async with AsyncExitStack() as stack:
            a = await node_at(stack, server.url, "node-a")
            b = await node_at(stack, server.url, "node-b")
            await node_at(stack, server.url, "node-c", f"127.0.0.1:{free_port()}")
            await node_at(stack, server.url, "node-d", b.url.removeprefix("http://"))
            for node in (a, b):
                node.core.emit(committed(1))
            status, answer = await a.post("/v1/cluster", {"operation": "clear", "body": {"all": True}})
            assert (status, answer["ok"], answer["failed"]) == (200, 2, 2)
            told: dict[str, Any] = {one["node"]: one for one in answer["nodes"]}
            assert [told[name]["answer"].get("chunks") for name in ("node-a", "node-b", "node-c")] == [1, 1, None]
            assert (told["node-c"]["status"], told["node-d"]["status"]) == (0, 421)
            assert "the call was for another node" in told["node-d"]["error"]
            assert (a.core.chunks, b.core.chunks) == ({}, {})
            some = {"operation": "pins", "nodes": ["node-b", "node-x"], "body": {"limit": 5}}
            _, answer = await a.post("/v1/cluster", some)
            assert [(one["node"], one["ok"]) for one in answer["nodes"]] == [("node-b", True), ("node-x", False)]


async def test_a_refusal_of_one_node_is_that_node_s() -> None:
    """What is here and not there is pinned here, and the other's refusal stands beside it; a wrong request is refused once, as a whole."""
    with redis_server.running() as server:
        async with AsyncExitStack() as stack:
            a = await node_at(stack, server.url, "node-a")
            b = await node_at(stack, server.url, "node-b")
            b.core.emit(committed(1))
            _, answer = await a.post("/v1/cluster", {"operation": "pin", "body": chain(1, name="doc")})
            assert [(one["node"], one["status"]) for one in answer["nodes"]] == [("node-a", 404), ("node-b", 200)]
            assert "prewarm" in answer["nodes"][0]["error"]
            status, refused = await a.post("/v1/cluster", {"operation": "pin", "body": {"fingerprint": "00" * 32}})
            assert (status, refused["error"]["field"]) == (400, "body")


async def test_lookup_over_the_index_finds_the_other_node() -> None:
    """What another node has published is named with its place."""
    with redis_server.running() as server:
        async with AsyncExitStack() as stack:
            a = await node_at(stack, server.url, "node-a")
            b = await node_at(stack, server.url, "node-b")
            b.core.emit(committed(1))

            async def told() -> bool:
                _, answer = await a.post("/v1/lookup", chain(1, 1 << 255, nodes=True))
                return [run["nodes"] for run in answer["runs"]] == [[{"node": "node-b", "tier": "memory"}], []]

            await until(told)


async def test_a_node_that_died_is_told_as_not_reached() -> None:
    """A record without a lease is a node that may be down: a call for all does not pass it over in silence."""
    with redis_server.running() as server:
        async with AsyncExitStack() as stack:
            a = await node_at(stack, server.url, "node-a")
            await register_and_die(server.url)

            async def told() -> bool:
                _, answer = await a.post("/v1/cluster", {"operation": "stats"})
                states = [(one["node"], one["ok"], "lease" in one["error"]) for one in answer["nodes"]]
                return states == [("node-a", True, False), ("node-b", False, True)]

            await until(told)
