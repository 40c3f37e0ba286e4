"""A node's side of the index on a real server: what routers are told is what the node holds, through flushes, floods and absences."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from index_support import FakeStore, HandClock, RawClient, chunk_key, node, until
from kvcommons_core import redis_server
from kvcommons_core.index import (
    FeedbackListener,
    IndexReader,
    LookupStatus,
    Names,
    NodeIndex,
    OpStream,
    Published,
    text_key8,
    token_key8,
    unpack_holders,
)
from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.stream import ADD
from kvcommons_core.redis_server import RedisServer, ServerBinary
from kvcommons_core.settings import IndexSettings


@asynccontextmanager
async def publishing(
    settings: IndexSettings, store: FakeStore, clock: HandClock | None = None, name: str = "n1"
) -> AsyncIterator[NodeIndex]:
    index = NodeIndex(settings, node(name), store.inventory, **({"clock": clock} if clock else {}))
    await index.start()
    try:
        yield index
    finally:
        await index.stop(flush_seconds_max=0)


class Watcher:
    """Who holds a key, read straight from the server."""

    def __init__(self, raw: RawClient, settings: IndexSettings) -> None:
        self.raw = raw
        self.names = Names(settings.prefix)

    def slots(self, key8: bytes) -> list[tuple[int, int]]:
        return [(one.slot, one.epoch) for one in unpack_holders(self.raw("GET", self.names.holders(key8)) or b"")]

    def shows(self, index: NodeIndex, number: int) -> bool:
        """Both keys of the chunk are there under the node's present epoch."""
        tenure = index.member.tenure
        mine = (tenure.slot, tenure.epoch) if tenure is not None else None
        return mine in self.slots(token_key8(chunk_key(number))) and mine in self.slots(text_key8(10_000 + number))


async def joined(index: NodeIndex) -> None:
    await until(lambda: index.joined and index.member.settled, "the node joins")


async def test_what_a_node_holds_is_told_and_what_it_frees_is_taken_back(
    index_settings: IndexSettings, raw: RawClient
) -> None:
    """The inventory is told at the start, then each commit and each removal, in order."""
    watcher = Watcher(raw, index_settings)
    async with publishing(index_settings, FakeStore(3)) as index:
        await joined(index)
        await until(lambda: all(watcher.shows(index, n) for n in range(3)), "the inventory is told")
        index.publish(chunk_key(9), [10_009])
        index.unpublish(chunk_key(1), [10_001])
        await index.stream.flushed()
        assert watcher.shows(index, 9)
        assert watcher.slots(text_key8(10_001)) == []
        for _ in range(500):
            index.publish(chunk_key(5), [10_005])
            index.unpublish(chunk_key(5), [10_005])
        await index.stream.flushed()
        assert watcher.slots(text_key8(10_005)) == [], "the last word wins"


async def test_a_flush_is_mended_by_a_new_epoch_and_the_whole_inventory(
    index_settings: IndexSettings, raw: RawClient
) -> None:
    """FLUSHALL behind our back: the node notices, takes an epoch that it never had, and tells everything again."""
    watcher = Watcher(raw, index_settings)
    async with publishing(index_settings, FakeStore(1_200)) as index:
        await joined(index)
        await until(lambda: watcher.shows(index, 1_199), "the inventory is told")
        before = index.member.tenure
        raw("FLUSHALL")
        await until(
            lambda: index.member.tenure != before and watcher.shows(index, 1_199), "the inventory is told again"
        )
        assert watcher.shows(index, 0)


async def test_words_that_arrive_where_the_member_is_unknown_are_noticed_at_once(
    index_settings: IndexSettings, raw: RawClient
) -> None:
    """A batch that arrives where the lease is not (an emptied server, a stale copy) is told as lost with its own reply."""
    losses: list[str] = []
    connection, names = IndexConnection(index_settings), Names(index_settings.prefix)
    stream = OpStream(connection, index_settings, guard=lambda: (5, b"mine 1"), on_loss=losses.append)
    task = asyncio.create_task(stream.run())
    word = ADD + bytes(8)
    for lease, told in ((b"mine 1", []), (b"mine 2", ["data_loss"]), (None, ["data_loss"] * 2)):
        raw("DEL", names.lease(5)) if lease is None else raw("SET", names.lease(5), lease)
        stream.put(text_key8(1), word)
        await stream.flushed()
        assert losses == told
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await connection.close()


async def test_a_node_starts_without_redis_and_joins_when_it_is_there(redis_binary: ServerBinary) -> None:
    """Redis being away is no error: the node starts, says so, and tells its inventory when Redis comes."""
    port = redis_server.free_port()
    settings = IndexSettings(url=f"redis://127.0.0.1:{port}/0", prefix="kvc:test:")
    async with publishing(settings, FakeStore(5)) as index:
        index.publish(chunk_key(1), [1])
        await until(lambda: index.last_error, "the node says that Redis is away")
        assert not index.joined
        with redis_server.running(redis_binary, port=port) as server, RawClient(server) as raw:
            watcher = Watcher(raw, settings)
            await until(lambda: index.joined and watcher.shows(index, 4), "the inventory is told")


async def test_redis_killed_and_started_again_is_told_everything(redis_binary: ServerBinary) -> None:
    """kill -9 of Redis loses the index; the node publishes it again under another epoch, and never waits meanwhile."""
    port = redis_server.free_port()
    settings = IndexSettings(url=f"redis://127.0.0.1:{port}/0", prefix="kvc:test:")
    first = redis_server.start(redis_binary, port=port)
    try:
        async with publishing(settings, FakeStore(5)) as index:
            await joined(index)
            before = index.member.tenure
            first.kill()
            begin = time.perf_counter()
            for n in range(1_000):
                index.publish(chunk_key(n), [n])
            assert time.perf_counter() - begin < 0.5, "publishing does not wait for a dead Redis"
            await until(lambda: not index.joined, "the node notices")
            with redis_server.running(redis_binary, port=port) as second, RawClient(second) as raw:
                watcher = Watcher(raw, settings)
                await until(lambda: index.joined and watcher.shows(index, 4), "the inventory is told again")
                assert index.member.tenure != before
    finally:
        first.stop()


async def test_a_full_stream_gives_up_and_begins_anew(index_settings: IndexSettings, raw: RawClient) -> None:
    """Words wait in bounded memory; when there are too many, all are dropped and a new epoch tells the inventory instead."""
    losses: list[str] = []
    connection = IndexConnection(index_settings)
    stream = OpStream(connection, index_settings, on_loss=losses.append, ops_max=100)
    assert all(stream.put(text_key8(n), ADD + bytes(8)) for n in range(100))
    assert not stream.put(text_key8(100), ADD + bytes(8))
    assert losses == ["overflow"]
    assert len(stream) == 0
    assert stream.stats.lost == 101
    await connection.close()


async def test_the_inventory_is_told_again_before_it_ages_out(index_settings: IndexSettings, raw: RawClient) -> None:
    """What a node still holds is published again within the age cap and the TTL, so that an idle chunk stays findable."""
    settings = index_settings.model_copy(update={"holder_ttl_seconds": 1, "holder_age_seconds_max": 1})
    watcher = Watcher(raw, settings)
    store = FakeStore(2)
    async with publishing(settings, store) as index:
        await joined(index)
        calls = store.calls
        await until(lambda: store.calls >= calls + 3, "the inventory is told once more, and again")
        await until(lambda: watcher.shows(index, 1), "it is there")


async def test_feedback_reaches_every_listener(index_settings: IndexSettings, raw: RawClient) -> None:
    """What a request really reused is told to all routers that listen."""
    heard: list[list[bytes]] = [[], []]
    listeners = [FeedbackListener(index_settings, one.append) for one in heard]
    tasks = [asyncio.create_task(listener.run()) for listener in listeners]
    for listener in listeners:
        await listener.subscribed.wait()
    async with publishing(index_settings, FakeStore()) as index:
        index.tell('{"request_id":"r"}')
        await until(lambda: all(heard), "both hear it")
    assert heard == [[b'{"request_id":"r"}']] * 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for listener in listeners:
        await listener.close()


async def test_feedback_is_heard_again_after_redis_was_away(redis_binary: ServerBinary) -> None:
    """A listener subscribes again by itself."""
    port = redis_server.free_port()
    settings = IndexSettings(url=f"redis://127.0.0.1:{port}/0", prefix="kvc:test:")
    heard: list[bytes] = []
    listener = FeedbackListener(settings, heard.append)
    task = asyncio.create_task(listener.run())
    for _ in range(2):
        with redis_server.running(redis_binary, port=port) as server, RawClient(server) as raw:
            await until(lambda: bool(raw("PUBLISH", Names(settings.prefix).feedback, "x")), "somebody listens")
    await until(lambda: len(heard) >= 2, "both were heard")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await listener.close()


async def test_a_hanging_server_delays_nothing(redis_binary: ServerBinary) -> None:
    """A stopped Redis (SIGSTOP) costs a lookup its few milliseconds and a publisher nothing."""
    with redis_server.running(redis_binary) as server:
        settings = IndexSettings(url=server.url, prefix="kvc:test:", lookup_ms_max=20, call_ms_max=300)
        reader = IndexReader(settings)
        await reader.start()
        async with publishing(settings, FakeStore()) as index:
            await joined(index)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                begin = time.perf_counter()
                status = (await reader.lookup([text_key8(1)])).status
                index.publish(chunk_key(1), [1])
                assert time.perf_counter() - begin < 0.25
                assert status in (LookupStatus.LATE, LookupStatus.AWAY)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await until(lambda: reader.view.reachable, "the reader comes back")
        await reader.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_routers_end_up_with_what_the_nodes_hold(
    index_settings: IndexSettings, raw: RawClient, shared_redis: RedisServer, seed: int
) -> None:
    """Random commits, removals, cleared caches, flushes, lost leases and ageing: once quiet, a lookup tells exactly what each node holds."""
    rng, clock = random.Random(seed), HandClock()
    names, stores = Names(index_settings.prefix), {name: FakeStore() for name in ("a", "b")}
    reader = IndexReader(index_settings.model_copy(update={"mirror_ms_max": 0}), clock=clock)
    await reader.start()
    keys = [token_key8(chunk_key(n)) for n in range(40)]
    async with (
        publishing(index_settings, stores["a"], clock, "a") as a,
        publishing(index_settings, stores["b"], clock, "b") as b,
    ):
        nodes = {"a": a, "b": b}
        await joined(a)
        await joined(b)

        async def depths() -> dict[str, int]:
            found = (await reader.lookup(keys)).hits
            return {name: found[slot].depth for name, one in reader.view.by_name.items() if (slot := one.slot) in found}

        def deeper(name: str) -> None:
            held = stores[name].items
            for n in range(len(held), min(40, len(held) + rng.randint(1, 9))):
                held[n] = Published(chunk_key(n), (10_000 + n,))
                nodes[name].publish(*held[n][:2])

        def shallower(name: str) -> None:
            held = stores[name].items
            for n in range(len(held) - 1, max(-1, len(held) - rng.randint(1, 9)), -1):
                nodes[name].unpublish(*held.pop(n)[:2])

        for _ in range(25):
            name = rng.choice("ab")
            act = rng.choices(("deeper", "shallower", "clear", "flush", "lease", "time"), (40, 25, 10, 5, 5, 10))[0]
            if act == "deeper":
                deeper(name)
            elif act == "shallower":
                shallower(name)
            elif act == "clear":
                stores[name].items.clear()
                nodes[name].fence("cleared")
            elif act == "flush":
                raw("FLUSHALL")
            elif act == "lease" and (tenure := nodes[name].member.tenure) is not None:
                raw("DEL", names.lease(tenure.slot))
            elif act == "time":
                clock.forward(rng.choice((1, 16, 1_000)))
            await asyncio.sleep(0)

        async def agreed() -> bool:
            return await depths() == {name: len(store.items) for name, store in stores.items() if store.items}

        await until(agreed, f"the index agrees with the nodes (seed {seed})")
    await reader.stop()
