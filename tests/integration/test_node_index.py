"""The daemon with a real Redis: membership, publishing, and life without Redis. The core is a fake at its seam."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any, Self

import aiohttp
import redis.asyncio as redis_asyncio
from kvcommons_core import redis_server
from kvcommons_core.index.schema import Names, decode_member, text_key8, token_key8, unpack_holders
from kvcommons_core.settings import IndexSettings, NodeSection, NodeSettings
from kvcommons_node.__main__ import make_index
from kvcommons_node.daemon import Daemon
from kvcommons_node.plan import make_plan
from node_fakes import FakeCore, committed, feedback, freed, key

NAMES = Names("kvc:test:")
SECONDS_MAX = 20.0
POLL_SECONDS = 0.01


class Running:
    """A daemon on the test's event loop, and ways to look at it."""

    def __init__(self, daemon: Daemon, core: FakeCore, http: aiohttp.ClientSession) -> None:
        self.daemon, self.core, self._http = daemon, core, http

    @property
    def url(self) -> str:
        host, port = self.daemon.http_address or ("", 0)
        return f"http://{host}:{port}"

    async def ready(self) -> dict[str, Any]:
        async with self._http.get(self.url + "/readyz") as response:
            assert response.status == 200
            answer: dict[str, Any] = await response.json()
            return answer

    async def place(self) -> tuple[int, int]:
        """Its slot and epoch."""
        index = (await self.ready())["index"]
        return index["slot"], index["epoch"]

    async def connected(self) -> bool:
        return bool((await self.ready())["index"]["state"] == "connected")

    async def disconnected(self) -> bool:
        return not await self.connected()

    async def clear_all(self) -> None:
        async with self._http.post(self.url + "/v1/clear", json={"all": True}) as response:
            assert response.status == 200


@asynccontextmanager
async def running(redis_url: str, core: FakeCore | None = None) -> AsyncIterator[Running]:
    held = core or FakeCore()
    with TemporaryDirectory(prefix="kvn-") as folder:
        section = NodeSection(
            node_id="node-a",
            socket_path=f"{folder}/n.sock",
            state_dir=f"{folder}/s",
            holder_socket="none",
            control_port=0,
            arena_bytes=1 << 26,
        )
        index = IndexSettings(url=redis_url, prefix=NAMES.prefix, connect_ms_max=500, call_ms_max=500)
        plan = make_plan(NodeSettings(node=section, index=index), "0.1.0")
        daemon = Daemon(plan, lambda _plan: held, make_index)
        task = asyncio.create_task(daemon.run())
        serving = asyncio.create_task(daemon.serving.wait())
        await asyncio.wait({task, serving}, timeout=SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        try:
            assert daemon.serving.is_set(), task.exception() if task.done() else "the daemon did not serve in time"
            async with aiohttp.ClientSession() as http:
                yield Running(daemon, held, http)
        finally:
            serving.cancel()
            daemon.stop()
            await task


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what another process is about to do; it has no way to call back."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(POLL_SECONDS)


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
            node.core.emit(("freed", key(1), b"", (77,), "", 5), freed(2))
            await index.becomes(token_key8(key(2)), [])
            await index.becomes(text_key8(77), [])


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
