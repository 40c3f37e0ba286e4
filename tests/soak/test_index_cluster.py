"""The index on a real Redis Cluster of three masters: one key a script, lookups that gallop in the client, nothing on one shard alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
from index_support import FakeStore, RawClient, chunk_key, engine, node, until
from kvcommons_core import redis_server
from kvcommons_core.index import (
    EngineRecorder,
    FeedbackListener,
    IndexReader,
    LookupStatus,
    NodeIndex,
    text_key8,
    token_key8,
)
from kvcommons_core.settings import IndexSettings

SHARDS = 3
SLOTS = 16_384
BINARIES = redis_server.find_server()


@pytest.fixture(params=BINARIES, ids=lambda binary: f"{binary.flavour}-{binary.version}")
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[list[RawClient]]:
    """Three masters that share the slots, and a plain client to each."""
    with ExitStack() as stack:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
        servers = [
            stack.enter_context(redis_server.running(request.param, options=options, port=low_port()))
            for _ in range(SHARDS)
        ]
        clients = [stack.enter_context(RawClient(server)) for server in servers]
        for number, client in enumerate(clients):
            begin, end = SLOTS * number // SHARDS, SLOTS * (number + 1) // SHARDS
            client("CLUSTER", "ADDSLOTS", *range(begin, end))
            client("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            clients[0]("CLUSTER", "MEET", "127.0.0.1", server.port)
        await until(lambda: all(b"cluster_state:ok" in c("CLUSTER", "INFO") for c in clients), "the cluster is whole")
        await until(lambda: all(b"cluster_known_nodes:3" in c("CLUSTER", "INFO") for c in clients), "all know all")
        yield clients


def low_port() -> int:
    """A free port that leaves room for the cluster's own, which is higher by 10,000."""
    ports = (redis_server.free_port() for _ in range(1_000))
    return next(port for port in ports if port < 55_000)


def settings_of(clients: list[RawClient]) -> IndexSettings:
    hosts = ",".join("{}:{}".format(*client.address) for client in clients)
    return IndexSettings(url=f"redis+cluster://{hosts}", prefix="kvc:test:", lookup_ms_max=5_000, call_ms_max=5_000)


async def test_the_whole_index_works_on_a_cluster(cluster: list[RawClient]) -> None:
    """Members, publishing, short and long lookups, intents, fences and feedback, with the keys spread over all shards."""
    settings = settings_of(cluster)
    index = NodeIndex(settings, node("n1"), FakeStore(300).inventory)
    reader = IndexReader(settings)
    recorder = EngineRecorder(settings, reader)
    heard: list[bytes] = []
    listener = FeedbackListener(settings, heard.append)
    listening = asyncio.create_task(listener.run())
    await index.start()
    await reader.start()
    await recorder.start()
    recorder.add(engine("e1"))
    long = [token_key8(chunk_key(n)) for n in range(300)]
    await until(lambda: index.joined and recorder.slot_of("e1") and len(reader.view.by_name) == 2, "both are members")

    async def held() -> bool:
        reader.mirror.clear()
        found = await reader.lookup([*long, text_key8(1)])
        slot = reader.view.by_name["n1"].slot
        return found.status is LookupStatus.REDIS and slot in found.hits and found.hits[slot].depth == 300

    await until(held, "a long chain is found whole")
    recorder.record("e1", long[:50])
    await recorder.stream.flushed()
    reader.mirror.clear()
    short = await reader.lookup(long[:60])
    assert {hit.depth for hit in short.hits.values()} == {50, 60}
    assert all(client("DBSIZE") > 100 for client in cluster), "the keys lie on all shards"
    await listener.subscribed.wait()
    index.tell('{"request_id":"r"}')
    await until(lambda: heard, "feedback is heard")
    index.fence("cleared")
    before = reader.view.by_name["n1"].epoch
    await until(lambda: (m := reader.view.by_name.get("n1")) is not None and m.epoch != before, "a new epoch is seen")
    await until(held, "the inventory is told again")
    assert not index.last_error
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await listener.close()
    await recorder.stop()
    await reader.stop()
    await index.stop()


async def test_a_shard_that_lost_its_keys_is_mended(cluster: list[RawClient]) -> None:
    """Emptying the shard with the members' hash begins a new epoch; emptying another is mended by the next telling of the inventory."""
    settings = settings_of(cluster)
    index = NodeIndex(settings, node("n1"), FakeStore(30).inventory)
    await index.start()
    await until(lambda: index.joined and index.stream.stats.applied >= 60, "the inventory is told")
    before = index.member.tenure
    for client in cluster:
        client("FLUSHALL")
    await until(lambda: index.member.tenure != before and index.stream.stats.applied >= 120, "it is told again")
    await index.stop()
