"""A node whose disk keeps chunks smaller, through Python, over a real socket and real files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.test_native_tiers import FINGERPRINT, make_node, wait_until
from kvcommons_core import _native
from kvcommons_core.codecs import lossy_fingerprint, parse_codec
from kvcommons_core.limits import KEY_BYTES
from kvcommons_node.recode import RecodeProgress, recode

HEADS, SIZE, LAYERS, TOKENS, BLOCK = 2, 64, 2, 256, 16
SLOT_BYTES = LAYERS * HEADS * TOKENS * 2 * SIZE * 2
CHUNKS = 40
LAYOUT = ("bfloat16", "HPN", BLOCK, SIZE, SIZE)

pytestmark = pytest.mark.skipif(not _native.codecs()["lossless"][2], reason="libzstd.so.1 is not on this machine")


def make_client(folder: Path, role: str = "worker", *, exact: bool = False, told: bool = True) -> _native.Client:
    return _native.Client(
        socket_path=str(folder / "n"),
        role=role,
        call_ms_max=5_000,
        fingerprint=FINGERPRINT,
        chunk_tokens=TOKENS,
        shards=[((0, LAYERS, 0, HEADS), SLOT_BYTES)],
        own_shard=0 if role == "worker" else -1,
        layout=LAYOUT if told else None,
        exact=exact,
    )


def key(number: int) -> bytes:
    return _native.sha256(f"codec {number}".encode())


def values(number: int) -> bytes:
    """A chunk of normal values in bfloat16."""
    normal = np.random.default_rng(number).normal(size=SLOT_BYTES // 2).astype("f4")
    return bytes((normal.view("u4") >> 16).astype("u2").tobytes())


def store(node: _native.NodeCore, client: _native.Client, numbers: range) -> None:
    """Chains of one chunk, each on the disk before memory may let go of it."""
    before = node.stats()["tier_written"]
    for number in numbers:
        client.copy_started()
        status, slots = client.reserve(0, b"", key(number))
        assert (status, slots[0][0]) == ("ok", "granted")
        client.write_arena(slots[0][1], values(number))
        assert client.commit([(slots[0][1], slots[0][2], 0, ())]) == ("ok", 1)
        client.copy_finished()
        if number % 8 == 7 or number + 1 == len(numbers):
            written(node, before + number + 1)


def read(folder: Path, number: int, *, exact: bool = False) -> bytes | None:
    """As an engine does: asks again while the chunk is on its way; None where it is not to be had."""
    scheduler, worker = make_client(folder, "scheduler", exact=exact), make_client(folder, exact=exact)
    assert scheduler.ensure_connected()
    assert worker.ensure_connected()
    answer = ("", 0, 0, 0)

    def decided() -> bool:
        nonlocal answer
        answer = scheduler.lookup(key(number), 0, True)
        return answer[2] == 1 or answer[3] == 0

    wait_until(decided, "the chunk is there or is not")
    try:
        if answer[2] == 0:
            return None
        _, slots = worker.begin(answer[1])
        data = worker.read_arena(slots[0][0], SLOT_BYTES)
        worker.release(answer[1])
        return data
    finally:
        scheduler.close()
        worker.close()


def written(node: _native.NodeCore, shards: int) -> None:
    wait_until(lambda: node.stats()["tier_written"] == shards, f"{shards} shards are on the disk")


Lives = Callable[..., _native.NodeCore]


@pytest.fixture
def lives(folder: Path) -> Iterator[Lives]:
    """One life of the node after the other, over the same disk; the last one ends with the test."""
    running: list[_native.NodeCore] = []

    def begin(**disk: object) -> _native.NodeCore:
        while running:
            running.pop().stop()
        running.append(make_node(folder, **disk))
        running[0].start()
        return running[0]

    yield begin
    while running:
        running.pop().stop()


def test_what_lies_smaller_on_the_disk_comes_back_bit_for_bit(folder: Path, lives: Lives) -> None:
    """Without loss the disk takes less and every bit returns, also in a life of the node with another setting."""
    node = lives(codec="lossless")
    worker = make_client(folder)
    store(node, worker, range(CHUNKS))
    used = node.tiers()[0][3]["used_bytes"]
    assert used < CHUNKS * SLOT_BYTES * 0.8
    assert node.stats()["codec_encoded"] == CHUNKS
    node = lives(codec="none")
    for number in (0, 7, CHUNKS - 1):
        assert read(folder, number) == values(number)
    assert node.stats()["codec_decoded"] == 3


def test_what_was_changed_answers_only_where_that_is_allowed(folder: Path, lives: Lives) -> None:
    """On a node that allows loss sessions are of another identity, except those of an engine that wants exact KV; and where loss is not
    allowed any more, nothing of it is found."""
    node = lives(codec="int8", lossy="allow")
    worker = make_client(folder)
    assert worker.ensure_connected()
    assert worker.fingerprint == lossy_fingerprint(FINGERPRINT, parse_codec("int8"))
    store(node, worker, range(CHUNKS))
    assert node.tiers()[0][3]["used_bytes"] < CHUNKS * SLOT_BYTES * 0.55
    worker.close()
    node = lives(codec="int8", lossy="allow")
    assert read(folder, 3, exact=True) is None
    back = read(folder, 3)
    assert back is not None
    assert back != values(3)
    error = np.abs(floats(back) - floats(values(3))).max()
    assert error < 0.05
    node = lives(codec="lossless")
    assert read(folder, 3) is None
    assert node.stats()["codec_decoded"] == 0


def floats(data: bytes) -> Any:
    return (np.frombuffer(data, "u2").astype("u4") << 16).view("f4")


def test_a_node_that_is_told_no_layout_keeps_every_bit(folder: Path, lives: Lives) -> None:
    """A codec with loss needs to know what the bytes are: where an engine does not say, what it stores is kept without loss, and counted."""
    node = lives(codec="int8", lossy="allow")
    store(node, make_client(folder, told=False), range(4))
    stats = node.stats()
    assert stats["codec_layout_unknown"] == stats["codec_encoded"] == 4
    assert stats["codec_encoded_bytes"] > stats["codec_encoded_raw_bytes"] * 0.6


def test_loss_is_refused_at_the_start_until_it_is_allowed(folder: Path) -> None:
    """The error names the settings that would do."""
    with pytest.raises(ValueError, match="set lossy to allow"):
        make_node(folder, codec="int4:group=32").start()


def test_what_is_stored_is_compressed_and_decompressed_while_it_is_served(folder: Path, lives: Lives) -> None:
    """A run rewrites what the disk has, tells how far it is, is refused where it would change bytes, and can be cancelled."""
    node = lives(codec="none")
    store(node, make_client(folder), range(CHUNKS))
    before = node.tiers()[0][3]["used_bytes"]
    told: list[RecodeProgress] = []
    done = asyncio.run(recode(node, "lossless", fingerprint=FINGERPRINT, on_progress=told.append))
    assert (done.state, done.rewritten, done.failed, done.gone) == ("done", CHUNKS, 0, 0)
    assert done.bytes_after < done.bytes_before * 0.8
    assert node.tiers()[0][3]["used_bytes"] < before
    assert told[-1] == done
    assert asyncio.run(recode(node, "lossless")).unchanged == CHUNKS
    one = asyncio.run(recode(node, "none", keys=key(5)))
    assert (one.rewritten, one.shards_seen) == (1, CHUNKS)
    with pytest.raises(ValueError, match="choose lossless"):
        asyncio.run(recode(node, "int8"))
    node = lives(codec="none")
    assert read(folder, 5) == values(5)
    assert read(folder, 6) == values(6)

    async def cancelled() -> None:
        task = asyncio.create_task(recode(node, "none", bytes_per_second_max=SLOT_BYTES))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    wait_until(lambda: (node.recode_progress(1) or {}).get("state") == "cancelled", "the run has ended")
    assert len(key(0)) == KEY_BYTES
