"""A failover to a stale copy of Redis brings old words back; none of them is believed. Two real servers, replication cut in between."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
from index_support import FakeStore, RawClient, Switch, chunk_key, engine, node, until
from kvcommons_core import redis_server
from kvcommons_core.index import EngineRecorder, IndexReader, Names, NodeIndex, Published, token_key8, unpack_holders
from kvcommons_core.redis_server import RedisServer, ServerBinary
from kvcommons_core.settings import IndexSettings

NAMES = Names("kvc:test:")


class Pair:
    """A server and its replica, each with a plain client."""

    def __init__(self, binary: ServerBinary, stack: ExitStack) -> None:
        at_once = ["--repl-diskless-sync-delay", "0"]
        self.first = stack.enter_context(redis_server.running(binary, options=at_once))
        following = ["--replicaof", "127.0.0.1", str(self.first.port)]
        self.second = stack.enter_context(redis_server.running(binary, options=following))
        self.on_first = stack.enter_context(RawClient(self.first))
        self.on_second = stack.enter_context(RawClient(self.second))

    async def replicated(self) -> None:
        def same() -> bool:
            written = self.on_first.info("replication", "master_repl_offset")
            return (
                self.on_second.info("replication", "master_link_status") == "up"
                and self.on_second.info("replication", "master_repl_offset") == written
            )

        await until(same, "the replica has everything")

    def cut(self) -> None:
        """From here on the replica knows nothing new: it is the stale copy."""
        self.on_second("REPLICAOF", "NO", "ONE")


@pytest.fixture
def pair(redis_binary: ServerBinary) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(redis_binary, stack)


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    async with Switch() as made:
        yield made


def settings_of(switch: Switch) -> IndexSettings:
    return IndexSettings(url=f"redis://127.0.0.1:{switch.port}/0", prefix="kvc:test:", lookup_ms_max=2_000)


async def test_a_failover_to_a_stale_copy_revives_no_cleared_cache(pair: Pair, switch: Switch) -> None:
    """The node cleared its cache after replication stopped. The stale copy still has all its old words; no router believes them."""
    switch.lead_to(pair.first)
    settings, store = settings_of(switch), FakeStore(30)
    index, reader = NodeIndex(settings, node("n1"), store.inventory), IndexReader(settings)
    await index.start()
    await reader.start()
    keys = [token_key8(chunk_key(n)) for n in range(30)]

    async def depth() -> int:
        return max((hit.depth for hit in (await reader.lookup(keys)).hits.values()), default=0)

    async def has(count: int) -> bool:
        return await depth() == count

    await until(lambda: has(30), "the router sees the inventory")
    stale = index.member.tenure
    await pair.replicated()
    pair.cut()
    store.items.clear()
    index.fence("cleared")
    await until(lambda: has(0), "the router sees that it is cleared")
    assert stale is not None
    on_copy = unpack_holders(pair.on_second("GET", NAMES.holders(keys[0])))
    assert (on_copy[0].slot, on_copy[0].epoch) == (stale.slot, stale.epoch), "the copy has the old word"
    store.items[0] = Published(chunk_key(0), ())
    switch.lead_to(pair.second)

    async def settled() -> bool:
        found = await depth()
        assert found <= 1, "an old word was believed"
        return found == 1

    await until(settled, "the node is back on the copy, with what it holds now")
    assert index.member.tenure is not None
    assert index.member.tenure.used > stale.used + 1
    await index.stop(flush_seconds_max=0)
    await reader.stop()


async def test_a_failover_voids_mirrors_and_moves_engines_on(pair: Pair, switch: Switch) -> None:
    """Another run id: routers forget what they read, and the engines that they keep begin a new epoch, farther than any before."""
    switch.lead_to(pair.first)
    settings = settings_of(switch)
    reader = IndexReader(settings)
    recorder = EngineRecorder(settings, reader)
    await reader.start()
    await recorder.start()
    recorder.add(engine("e1"))
    keys = [token_key8(chunk_key(n)) for n in range(5)]
    await until(lambda: recorder.slot_of("e1") and "e1" in reader.view.by_name, "the engine is registered")
    recorder.record("e1", keys)
    await recorder.stream.flushed()
    assert (await reader.lookup(keys)).hits
    await pair.replicated()
    pair.cut()
    before = reader.view.by_name["e1"]
    switch.lead_to(pair.second)
    await until(lambda: reader.stats.mirror_voided, "the mirror is void")

    def moved() -> bool:
        now = reader.view.by_name.get("e1")
        return now is not None and (now.slot, now.epoch) != (before.slot, before.epoch)

    await until(moved, "the engine has a new epoch")
    assert (await reader.lookup(keys)).hits == {}
    await recorder.stop()
    await reader.stop()


async def test_sentinel_leads_to_the_new_master(pair: Pair, redis_binary: ServerBinary, tmp_path: Path) -> None:
    """With a Sentinel URL the node follows a failover by itself, and its inventory is told to the new master."""
    port = redis_server.free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\ndir {tmp_path}\nsentinel monitor pool 127.0.0.1 {pair.first.port} 1\n"
        "sentinel down-after-milliseconds pool 500\nsentinel failover-timeout pool 3000\nprotected-mode no\n"
    )
    await pair.replicated()
    sentinel = start_sentinel(redis_binary, configuration, port)
    async with AsyncExitStack() as stack:
        stack.callback(sentinel.stop)
        settings = IndexSettings(url=f"redis+sentinel://127.0.0.1:{port}/pool/0", prefix="kvc:test:")
        with RawClient(sentinel) as on_sentinel:
            await until(lambda: knows_replica(on_sentinel), "the sentinel knows the replica")
            index = NodeIndex(settings, node("n1"), FakeStore(3).inventory)
            await index.start()
            stack.push_async_callback(index.stop, flush_seconds_max=0)
            await until(lambda: index.joined, "the node joins through the sentinel")
            before = index.member.tenure
            pair.first.kill()
            key = NAMES.holders(token_key8(chunk_key(2)))

            def told() -> bool:
                now = index.member.tenure
                try:
                    with RawClient(pair.second) as fresh:
                        held = unpack_holders(fresh("GET", key) or b"")
                except (
                    ConnectionError
                ):  # a sentinel cuts the clients of whom it promotes, this one too if it comes just then
                    return False
                return now is not None and now != before and (now.slot, now.epoch) in [(h.slot, h.epoch) for h in held]

            await until(told, "the new master is told the inventory under a new epoch")


def start_sentinel(binary: ServerBinary, configuration: Path, port: int) -> RedisServer:
    """The same program as a sentinel: its configuration file comes first."""
    with (configuration.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary.path), str(configuration), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = RedisServer(binary, process, "", "127.0.0.1", port, "", configuration.parent, False)
    assert redis_server.wait_ready(server), server.log()
    return server


def knows_replica(on_sentinel: RawClient) -> bool:
    flat = on_sentinel("SENTINEL", "MASTER", "pool")
    return int(dict(zip(flat[::2], flat[1::2], strict=True))[b"num-slaves"]) > 0
