"""A node with a disk behind its memory, through Python and over a real socket and real files."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvcommons_connector.identity import RequestIdentity, TextHints
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, Tracked
from kvcommons_core import _native
from kvcommons_core.limits import KEY_BYTES
from kvcommons_node.jobs import Progress
from kvcommons_node.moving import Move

FINGERPRINT = bytes(range(32))
SLOT_BYTES = 128 << 10
ARENA_BYTES = 8 << 20
CHAIN = 4
WAIT_SECONDS_MAX = 20.0


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_SECONDS_MAX:.0f} s"
        select.select([], [], [], 0.002)


def make_node(folder: Path, **disk: object) -> _native.NodeCore:
    """Memory for 64 chunks, and a disk for many more."""
    (folder / "disk").mkdir(exist_ok=True)
    values: dict[str, object] = {"paths": [str(folder / "disk")], "capacity_bytes": 64 << 20, "segment_bytes": 4 << 20}
    return _native.NodeCore(
        socket_path=str(folder / "n"),
        arena_bytes=ARENA_BYTES,
        node_id="node-1",
        namespace_secret=b"s" * 32,
        disk=values | {"buffered": True} | disk,  # whatever file system the test runs on
    )


@pytest.fixture
def node(folder: Path) -> Iterator[_native.NodeCore]:
    core = make_node(folder)
    core.start()
    yield core
    core.stop()


def make_client(folder: Path, role: str = "worker") -> _native.Client:
    return _native.Client(
        socket_path=str(folder / "n"),
        role=role,
        call_ms_max=5_000,
        fingerprint=FINGERPRINT,
        chunk_tokens=256,
        shards=[((0, 2, 0, 4), SLOT_BYTES)],
        own_shard=0 if role == "worker" else -1,
    )


def keys_of(chain: int) -> bytes:
    return b"".join(_native.sha256(f"{chain}:{index}".encode()) for index in range(CHAIN))


def payload(chain: int, index: int) -> bytes:
    return _native.sha256(f"{index}:{chain}".encode()) * (SLOT_BYTES // KEY_BYTES)


def store(client: _native.Client, chain: int) -> None:
    client.copy_started()
    status, slots = client.reserve(7, b"", keys_of(chain))
    assert (status, {slot[0] for slot in slots}) == ("ok", {"granted"})
    for index, (_, offset, _) in enumerate(slots):
        client.write_arena(offset, payload(chain, index))
    assert client.commit([(offset, generation, 0, (chain,)) for _, offset, generation in slots]) == ("ok", CHAIN)
    client.copy_finished()


def written(node: _native.NodeCore, chunks: int) -> None:
    wait_until(lambda: node.stats()["tier_written"] == chunks, f"{chunks} chunks are on the disk")


def store_and_evict(folder: Path, node: _native.NodeCore, chains: int = 40) -> None:
    """Two and a half times what memory holds, each on the disk before the next."""
    worker = make_client(folder)
    for chain in range(chains):
        store(worker, chain)
        written(node, (chain + 1) * CHAIN)
    worker.close()


def check_chain(folder: Path, chain: int) -> None:
    """Asks as an engine does, again while chunks are pending, and compares every byte."""
    scheduler, reader = make_client(folder, "scheduler"), make_client(folder)
    assert scheduler.ensure_connected()
    assert scheduler.has_tiers
    status, lease, hit, pending = scheduler.lookup(keys_of(chain), 7, True)
    assert (status, hit + pending) == ("ok", CHAIN)

    def here() -> bool:
        nonlocal lease, hit, pending
        if pending:
            if lease:
                scheduler.release(lease)
            _, lease, hit, pending = scheduler.lookup(keys_of(chain), 7, True)
        return hit == CHAIN

    wait_until(here, "the chunks are in memory")
    status, slots = reader.begin(lease)
    assert status == "ok"
    for index, (offset, _) in enumerate(slots):
        assert reader.read_arena(offset, SLOT_BYTES) == payload(chain, index)
    reader.release(lease)
    scheduler.close()
    reader.close()


def test_what_memory_let_go_of_is_answered_from_the_disk(folder: Path, node: _native.NodeCore) -> None:
    """A lookup that memory can't answer has the chunks brought in; they are those that were stored, and nothing is left behind."""
    store_and_evict(folder, node)
    assert node.lookup(FINGERPRINT, keys_of(0)) == 0
    for chain in (0, 1, 39):
        check_chain(folder, chain)
    stats = node.stats()
    assert stats["tier_promoted_chunks"] == 2 * CHAIN
    assert stats["slots_filling"] == stats["slots_quarantined"] == stats["tier_write_dropped"] == 0
    ((name, health, why, counters),) = node.tiers()
    assert (name, health, why) == ("disk", "serving", "")
    assert counters["shards"] == 40 * CHAIN


def test_an_engine_that_asks_early_waits_for_the_disk_and_then_loads(folder: Path, node: _native.NodeCore) -> None:
    """The connector's scheduler side over a real node: a request that arrives has its chunks brought in, is told to ask again, and is then
    offered all of them."""
    scheduler, tokens = make_client(folder, "scheduler"), list(range(CHAIN * 256 + 1))
    assert scheduler.ensure_connected()
    geometry = Geometry(256, 128, FINGERPRINT, asynchronous=False)
    core = SchedulerCore(
        geometry,
        scheduler,
        Counters(),
        lambda: time.monotonic() * 1e3,
        load=True,
        store=True,
        lease_ms_max=10_000,
        fetch_ms_max=int(WAIT_SECONDS_MAX * 1e3),
    )
    asked = Tracked("first", len(tokens), RequestIdentity(), TextHints())
    core.add(asked, tokens)
    assert core.matched("first", tokens, 0) == (0, False)
    worker = make_client(folder)
    worker.copy_started()
    slots = worker.reserve(0, b"", bytes(asked.keys))[1]
    assert worker.commit([(offset, generation, 0, ()) for _, offset, generation in slots])[1] == CHAIN
    worker.copy_finished()
    written(node, CHAIN)
    for chain in range(40):
        store(worker, chain)
        written(node, (chain + 2) * CHAIN)
    assert node.lookup(FINGERPRINT, bytes(asked.keys)) == 0
    core.add(Tracked("again", len(tokens), RequestIdentity(), TextHints()), tokens)
    answers: list[tuple[int | None, bool]] = []

    def offered() -> bool:
        answers.append(core.matched("again", tokens, 0))
        return answers[-1][0] is not None

    wait_until(offered, "the chunks are offered")
    assert answers[-1] == (CHAIN * 256, False)
    core.finish("again", len(tokens))
    assert node.stats()["leases_pending"] == node.stats()["slots_filling"] == 0


def test_where_each_chunk_is_by_now_is_told(folder: Path, node: _native.NodeCore) -> None:
    """Events say that an evicted chunk is on the disk; the disk's inventory lists what memory has not; a clear leaves neither."""
    store_and_evict(folder, node)
    events, gap = node.drain_events(10_000)
    assert not gap
    freed = {event[1]: event[6] for event in events if event[0] == "freed"}
    assert freed[keys_of(0)[:KEY_BYTES]] == "disk"
    listed: dict[bytes, tuple[tuple[int, ...], str]] = {}
    cursor = 0
    while True:
        items, cursor = node.tier_inventory(cursor, 16)
        listed |= {key: (text_keys, tier) for key, _, text_keys, tier in items}
        if not cursor:
            break
    assert listed[keys_of(0)[:KEY_BYTES]] == ((0,), "disk")
    assert keys_of(39)[:KEY_BYTES] not in listed
    assert len(listed) + node.stats()["chunks"] == 40 * CHAIN
    node.clear()
    events, gap = node.drain_events(10_000)
    assert {event[6] for event in events if event[0] in {"freed", "moved"}} == {""}
    assert make_client(folder, "scheduler").lookup(keys_of(0), 7, True)[2:] == (0, 0)
    assert node.tiers()[0][3]["shards"] == 0


def test_the_disk_outlives_the_memory(folder: Path) -> None:
    """A node that starts with an empty memory answers from what an earlier one wrote."""
    first = make_node(folder)
    first.start()
    store_and_evict(folder, first, 10)
    first.stop()
    second = make_node(folder)
    second.start()
    assert second.stats()["chunks"] == 0
    assert any("extents recovered" in line for line in second.remarks)
    check_chain(folder, 3)
    second.stop()


def test_a_disk_that_cannot_be_used_refuses_the_start(folder: Path) -> None:
    """The message names what was given and what to do; nothing is left behind, and the next start works."""
    with pytest.raises((ValueError, OSError), match="nowhere"):
        make_node(folder, paths=[str(folder / "nowhere")]).start()
    with pytest.raises(ValueError, match="give one of auto"):
        make_node(folder, engine="steam")
    node = make_node(folder)
    node.start()
    node.stop()


def test_what_is_named_is_found_and_cleared_where_it_is(folder: Path, node: _native.NodeCore) -> None:
    """Where each chunk is, memory and disk; a tenant's are cleared from both, and one place can be cleared alone."""
    store_and_evict(folder, node, chains=20)
    names, bits = node.places(FINGERPRINT, keys_of(0) + keys_of(19) + bytes(32))
    assert (names, list(bits)) == (["memory", "disk"], [2] * CHAIN + [3] * CHAIN + [0])
    assert node.clear_some(FINGERPRINT, 7, keys_of(19), 0, ["memory"]) == (CHAIN, {"disk": 0})
    assert list(node.places(FINGERPRINT, keys_of(19))[1]) == [2] * CHAIN
    assert node.clear_some(FINGERPRINT, 8, keys_of(19)) == (0, {"disk": 0})
    assert node.clear_some(keys=keys_of(0)[32:64]) == (0, {"disk": CHAIN - 1})
    assert list(node.places(FINGERPRINT, keys_of(0))[1]) == [2, 0, 0, 0]
    chunks, shards = node.clear_some(tenant=7)
    assert (chunks, shards) == (node.stats()["cleared"] - CHAIN, {"disk": 19 * CHAIN + 1})
    assert node.clear_some() == (0, {"disk": 0})


def test_a_restarted_node_finds_on_its_disk_what_no_engine_has_asked_for(folder: Path) -> None:
    """The disk's own inventory says how the chunks are cut, before any engine does."""
    first = make_node(folder)
    first.start()
    worker = make_client(folder)
    store(worker, 0)
    written(first, CHAIN)
    worker.close()
    first.stop()
    again = make_node(folder)
    again.start()
    assert list(again.places(FINGERPRINT, keys_of(0))[1]) == [2] * CHAIN
    again.stop()


async def test_a_move_brings_chunks_to_the_disk_and_back(folder: Path, node: _native.NodeCore) -> None:
    """With the real core: memory lets go of what the disk has, and gets it back byte for byte; a copy stays in both."""
    worker = make_client(folder)
    store(worker, 0)
    worker.close()
    written(node, CHAIN)

    async def moved(source: str, target: str, *, keep: bool) -> dict[str, object]:
        move = Move(node, FINGERPRINT, keys_of(0), source=source, target=target, keep=keep)
        return await move(Progress("chunks", CHAIN))

    assert (await moved("memory", "disk", keep=False))["removed_from_source"] == CHAIN
    assert node.lookup(FINGERPRINT, keys_of(0)) == 0
    assert (await moved("disk", "memory", keep=True))["chunks"] == CHAIN
    assert list(node.places(FINGERPRINT, keys_of(0))[1]) == [3] * CHAIN
    check_chain(folder, 0)
    assert (await moved("disk", "memory", keep=False))["removed_from_source"] == CHAIN
    assert list(node.places(FINGERPRINT, keys_of(0))[1]) == [1] * CHAIN
    assert (await moved("memory", "disk", keep=True))["chunks"] == CHAIN


@pytest.fixture
def small_file_system(folder: Path) -> Iterator[Path]:
    """A file system of 24 MiB where the disk is to be."""
    if os.geteuid() != 0:
        pytest.skip("to mount a file system takes root")
    home = folder / "disk"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", home], check=True)
    yield home
    subprocess.run(["umount", home], check=True)


def fill_up(path: Path) -> None:
    """Until the file system has no room."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    assert os.statvfs(path).f_bavail == 0


def test_a_full_file_system_costs_writes_and_nothing_else(folder: Path, small_file_system: Path) -> None:
    """Where a disk's file system runs full under it, the disk says so and takes no more; what it has is read, and engines store on."""
    node = make_node(folder, capacity_bytes=16 << 20)
    node.start()
    try:
        # As on thin storage: of what was promised at the start, all but the first segment's room is somebody else's.
        taken = ["fallocate", "--punch-hole", "--offset", str(4 << 20), "--length", str(12 << 20)]
        subprocess.run([*taken, small_file_system / "segments.kvc"], check=True)
        fill_up(small_file_system / "other")
        worker = make_client(folder)
        for chain in range(40):  # two and a half times what memory holds
            store(worker, chain)
            if chain < 4:
                written(node, (chain + 1) * CHAIN)
        worker.close()
        wait_until(lambda: node.tiers()[0][1] == "degraded", "the disk is degraded")
        assert "space" in node.tiers()[0][2]
        assert node.lookup(FINGERPRINT, keys_of(0)) == 0
        check_chain(folder, 0)
    finally:
        node.stop()
