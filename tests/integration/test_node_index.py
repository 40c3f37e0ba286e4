"""The daemon with a real Redis: membership, publishing, and life without Redis. The core is a fake at its seam."""

from __future__ import annotations

import json
from typing import Any, Self

import redis.asyncio as redis_asyncio
from kvcommons_core import redis_server
from kvcommons_core.index.schema import Tier, decode_member, text_key8, token_key8, unpack_holders
from node_daemon import NAMES, SECONDS_MAX, running, until
from node_fakes import FINGERPRINT, FakeCore, committed, feedback, freed, key, moved


class Index:
    """What stands in Redis."""

    def __init__(self, server: redis_server.RedisServer) -> None:
        self.redis: Any = redis_asyncio.Redis.from_url(server.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_reason: object) -> None:
        await self.redis.aclose()

    async def holders(self, key8: bytes) -> list[tuple[int, int]]:
        packed = await self.redis.get(NAMES.holders(key8))
        return [(holder.slot, holder.epoch) for holder in unpack_holders(packed or b"")]

    async def is_on(self, key8: bytes, tier: Tier) -> None:
        async def is_so() -> bool:
            packed = await self.redis.get(NAMES.holders(key8))
            return [holder.tier for holder in unpack_holders(packed or b"")] == [tier]

        await until(is_so)

    async def becomes(self, key8: bytes, wanted: list[tuple[int, int]]) -> None:
        async def is_so() -> bool:
            return await self.holders(key8) == wanted

        await until(is_so)


async def test_what_is_committed_is_published_and_what_is_freed_is_removed() -> None:
    """A chunk's token key and text keys lead to the node while it holds the chunk, and no longer."""
    with redis_server.running() as server:
        async with running(server.url) as node, Index(server) as index:
            await until(node.connected)
            place = await node.place()
            node.core.emit(committed(1, (77,)), committed(2))
            await index.becomes(token_key8(key(2)), [place])
            assert await index.holders(text_key8(77)) == [place]
            node.core.emit(("freed", key(1), b"", (77,), "", 5, ""), freed(2))
            await index.becomes(token_key8(key(2)), [])
            await index.becomes(text_key8(77), [])


async def test_what_left_memory_for_the_disk_stays_published_as_there() -> None:
    """The node is still a holder, of a slower kind; so is what the disk held before the node joined; neither once the disk drops it."""
    core = FakeCore()
    core.behind = [(key(9), FINGERPRINT, (99,), "disk")]
    with redis_server.running() as server:
        async with running(server.url, core) as node, Index(server) as index:
            await until(node.connected)
            place = await node.place()
            await index.becomes(token_key8(key(9)), [place])
            await index.is_on(text_key8(99), Tier.DISK)
            core.emit(committed(1))
            await index.is_on(token_key8(key(1)), Tier.MEMORY)
            core.emit(freed(1, tier="disk"))
            await index.is_on(token_key8(key(1)), Tier.DISK)
            core.emit(moved(1, ""))
            await index.becomes(token_key8(key(1)), [])


async def test_a_node_without_redis_serves_and_joins_when_it_is_there() -> None:
    """Redis away at the start is no refusal: the node is ready, says so, and publishes its inventory when Redis comes."""
    port = redis_server.free_port()
    core = FakeCore()
    core.emit(committed(1, (5,)))
    async with running(f"redis://127.0.0.1:{port}/0", core) as node:
        await until(node.disconnected)
        ready = await node.ready()
        assert ready["ready"]
        assert "serving this machine's engines only" in ready["reason"]
        with redis_server.running(port=port) as server:
            async with Index(server) as index:
                await until(node.connected)
                await index.becomes(token_key8(key(1)), [await node.place()])
                await index.becomes(text_key8(5), [await node.place()])


async def test_a_redis_that_dies_and_comes_back_empty_gets_the_inventory_under_a_new_epoch() -> None:
    """kill -9 of Redis costs the node nothing but its place in the index, which it takes again by itself."""
    port = redis_server.free_port()
    server = redis_server.start(port=port)
    try:
        async with running(server.url) as node:
            await until(node.connected)
            before = await node.place()
            node.core.emit(committed(1))
            server.kill()
            await until(node.disconnected)
            told = (await node.ready())["reason"]
            assert f"127.0.0.1:{port}" in told
            assert "has not been reached for" in told
            node.core.emit(committed(2))
            server.stop()
            server = redis_server.start(port=port)
            await until(node.connected)
            async with Index(server) as index:
                await index.becomes(token_key8(key(1)), [await node.place()])
                await index.becomes(token_key8(key(2)), [await node.place()])
            assert await node.place() != before
    finally:
        server.stop()


async def test_lost_events_and_a_cleared_cache_begin_a_new_epoch() -> None:
    """After a gap, and after clearing all, what was published is void and what is still held is told again."""
    with redis_server.running() as server:
        async with running(server.url) as node, Index(server) as index:
            await until(node.connected)
            places = [await node.place()]

            async def moved() -> bool:
                return await node.place() != places[-1]

            node.core.emit(committed(1), gap=True)
            await until(moved)
            places.append(await node.place())
            await index.becomes(token_key8(key(1)), [places[-1]])
            await node.clear_all()
            await until(moved)


async def test_reports_of_engines_reach_the_feedback_channel() -> None:
    """What a request really reused is published, as the engine said it, on the pool's feedback channel."""
    report = json.dumps({"request_id": "r1", "own_tokens": 256, "commons_tokens": 512, "computed_tokens": 3})
    with redis_server.running() as server:
        async with running(server.url) as node, Index(server) as index, index.redis.pubsub() as channel:
            await until(node.connected)
            await channel.subscribe(NAMES.feedback)
            assert (await channel.get_message(timeout=SECONDS_MAX))["type"] == "subscribe"
            node.core.emit(feedback(report))
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=SECONDS_MAX)
            assert message["data"].decode() == report


async def test_a_clean_stop_leaves_the_index() -> None:
    """After a clean stop no member is left, so that routers need not wait for a lease to run out."""
    with redis_server.running() as server:
        async with Index(server) as index:
            async with running(server.url) as node:
                await until(node.connected)
                slot, _epoch = await node.place()
                record = await index.redis.hget(NAMES.members, str(slot))
                assert decode_member(slot, record).info.name == "node-a"
                assert await index.redis.exists(NAMES.lease(slot)) == 1
            assert await index.redis.exists(NAMES.lease(slot)) == 0
