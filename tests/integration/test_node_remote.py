"""Whole nodes with a store that they share: a restart, another node, a store that dies and comes back, damage."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from integration.test_native_tiers import CHAIN, FINGERPRINT, check_chain, keys_of, make_client, store
from kvcommons_core import redis_server
from node_process import NodeProcess, node_in, until
from s3_server import BUCKET, s3_running

OBJECT_BYTES = (128 << 10) + 1_024


@dataclass
class Shared:
    """A store's server, for nodes in several folders."""

    tier: dict[str, Any]
    kill: Callable[[], None]
    start: Callable[[], None]
    damage: Callable[[], int]
    """One byte of every object changes; how many there were."""
    count: Callable[[], int]


@pytest.fixture(params=["redis", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shared]:
    common = {"type": request.param, "capacity_bytes": "1GiB", "time_out_ms": 3_000, "ask_wait_ms": 3_000}
    with ExitStack() as stack:
        if request.param == "redis":
            yield _redis(stack, common)
        else:
            yield _s3(stack, common, tmp_path)


def _redis(stack: ExitStack, common: dict[str, Any]) -> Shared:
    running = [stack.enter_context(redis_server.running())]
    port = running[0].port

    def start() -> None:
        running.append(stack.enter_context(redis_server.running(port=port)))

    def damage() -> int:
        client: Any = redis.Redis.from_url(running[-1].url)
        names = client.keys("kvc/*")
        for name in names:
            client.setrange(name, 50_000, b"\0wrong")
        client.close()
        return len(names)

    def count() -> int:
        client: Any = redis.Redis.from_url(running[-1].url)
        found = len(client.keys("kvc/*"))
        client.close()
        return found

    return Shared(common | {"url": running[0].url}, lambda: running[-1].kill(), start, damage, count)


def _s3(stack: ExitStack, common: dict[str, Any], folder: Path) -> Shared:
    server = stack.enter_context(s3_running(folder))
    for name in ("id", "key"):
        (folder / name).write_text(f"the-{name}-of-the-bucket")
    keys = {"access_key_id_file": str(folder / "id"), "secret_access_key_file": str(folder / "key")}

    def damage() -> int:
        for path in server.objects():
            content = bytearray(path.read_bytes())
            content[50_000:50_006] = b"\0wrong"
            path.write_bytes(content)
        return len(server.objects())

    tier = common | keys | {"bucket": BUCKET, "endpoint": server.endpoint}
    return Shared(tier, server.kill, server.start, damage, lambda: len(server.objects()))


def node_at(stack: ExitStack, folder: Path, shared: Shared) -> NodeProcess:
    folder.mkdir()
    node = stack.enter_context(node_in(folder))
    node.socket_path = folder / "n"
    node.start("--tiers", json.dumps([shared.tier]), "--holder-socket", "none")
    return node


def tier_of(node: NodeProcess) -> dict[str, Any]:
    ((tier),) = node.stats()["tiers"]
    found: dict[str, Any] = tier
    return found


def put_chain(node: NodeProcess, chain: int) -> None:
    before = node.stats()["core"]["tier_written"]
    worker = make_client(node.socket_path.parent)
    store(worker, chain)
    worker.close()
    until(lambda: node.stats()["core"]["tier_written"] == before + CHAIN, "the chain is in the store")


def test_a_restarted_node_and_another_one_serve_from_the_store(shared: Shared, folder: Path) -> None:
    """Memory is gone with the process, and another node never had it: both answer with the bytes that were stored."""
    with ExitStack() as stack:
        first = node_at(stack, folder / "1", shared)
        for chain in range(3):
            put_chain(first, chain)
        assert tier_of(first)["counters"]["used_bytes"] == 3 * CHAIN * OBJECT_BYTES
        second = node_at(stack, folder / "2", shared)
        brought(folder / "2", 1)
        assert second.stats()["core"]["tier_promoted"] == CHAIN
        assert first.stop() == 0
        first.start("--tiers", json.dumps([shared.tier]), "--holder-socket", "none")
        assert first.stats()["core"]["chunks"] == 0
        for chain in range(3):
            brought(folder / "1", chain)
        assert first.stats()["core"]["tier_promoted"] == 3 * CHAIN
        put_chain_again(first)
        log = first.log() + second.log()
        assert "of-the-bucket" not in log
        assert shared.tier["type"] in {tier["name"] for tier in first.get("/readyz")[1]["tiers"]}


def brought(folder: Path, chain: int) -> None:
    """Asks until the node has heard what the store has and brought it, and compares every byte."""
    scheduler = make_client(folder, "scheduler")
    assert scheduler.ensure_connected()
    until(lambda: scheduler.lookup(keys_of(chain), 7, False)[2] == CHAIN, "the chain is in memory")
    scheduler.close()
    check_chain(folder, chain)


def put_chain_again(node: NodeProcess) -> None:
    """What is in the store already is written there by nobody again."""
    before = tier_of(node)["counters"]["put_bytes"]
    put_chain(node, 7)
    assert tier_of(node)["counters"]["put_bytes"] == before + CHAIN * (OBJECT_BYTES - 1_024)


def test_a_store_that_dies_costs_misses_and_nothing_else(shared: Shared, folder: Path) -> None:
    """The node says so and serves from memory; what is only in the store is a miss; when the store is back, it is used again."""
    with ExitStack() as stack:
        node = node_at(stack, folder / "1", shared)
        put_chain(node, 0)
        reader = node_at(stack, folder / "2", shared)
        brought(folder / "2", 0)
        shared.kill()
        worker = make_client(folder / "2")
        store(worker, 5)
        until(lambda: tier_of(reader)["health"] == "gone", "the node notices that the store is gone")
        status, answer = reader.get("/readyz")
        assert status == 200
        assert f"the {shared.tier['type']} tier is gone" in answer["reason"]
        scheduler = make_client(folder / "2", "scheduler")
        assert scheduler.ensure_connected()
        assert scheduler.lookup(keys_of(9), 7, True)[2:] == (0, 0)
        assert scheduler.lookup(keys_of(5), 7, False)[2] == CHAIN
        brought(folder / "2", 5)
        scheduler.close()
        shared.start()
        until(lambda: tier_of(reader)["health"] == "serving", "the node notices that the store is back")
        put_chain(reader, 6)
        assert reader.stats()["core"]["slots_filling"] == 0
        worker.close()


def test_damage_in_the_store_is_found_counted_and_never_served(shared: Shared, folder: Path) -> None:
    """One changed byte makes an object no hit for anybody, and it is taken away, so that it can be stored again."""
    with ExitStack() as stack:
        first = node_at(stack, folder / "1", shared)
        put_chain(first, 0)
        assert shared.damage() == CHAIN
        second = node_at(stack, folder / "2", shared)
        scheduler = make_client(folder / "2", "scheduler")
        assert scheduler.ensure_connected()
        until(lambda: scheduler.lookup(keys_of(0), 7, False)[2:] == (0, 0), "nothing is expected any more")
        until(lambda: tier_of(second)["counters"]["corrupt"] > 0, "the damage is counted")
        assert scheduler.lookup(keys_of(0), 7, False)[2] == 0
        scheduler.close()


def test_a_clear_empties_the_store_too(shared: Shared, folder: Path) -> None:
    """Of the fingerprint that was named; the other node finds nothing any more."""
    with ExitStack() as stack:
        first = node_at(stack, folder / "1", shared)
        put_chain(first, 0)
        core = first.stats()["core"]
        assert core["chunks"] == CHAIN
        request = urllib.request.Request(
            f"http://127.0.0.1:{first.port}/v1/clear",
            data=json.dumps({"fingerprint": FINGERPRINT.hex()}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
        until(lambda: shared.count() == 0, "the store has nothing of it")
