"""Transfers through a real node: what is loaded equals what was stored, and each refusal names its cause."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_fake
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_core import _native

FINGERPRINT = hashlib.sha256(b"model").digest()
CHUNK_TOKENS, BLOCK_TOKENS = 64, 16
BLOCKS_PER_CHUNK = CHUNK_TOKENS // BLOCK_TOKENS
LAYERS, BLOCKS = 3, 64
WAIT_MS = 20_000
ARENA_BYTES = 32 << 20


class PagedKv:
    """Layers as the CPU engine lays them out: [blocks, heads, block, 2 x head size], filled with noise."""

    def __init__(self, seed: int, run_bytes: int = 512, heads: int = 2) -> None:
        noise = np.random.default_rng(seed)
        self.layers = [noise.integers(0, 256, (BLOCKS, heads, run_bytes), dtype=np.uint8) for _ in range(LAYERS)]
        self.heads, self.run_bytes = heads, run_bytes

    @property
    def slot_bytes(self) -> int:
        return LAYERS * BLOCKS_PER_CHUNK * self.heads * self.run_bytes

    def layouts(self) -> list[tuple[int, int, int, int, int, int, int, int]]:
        return [
            (layer.ctypes.data, BLOCKS, layer.strides[0], 1, 0, self.heads, layer.strides[1], self.run_bytes)
            for layer in self.layers
        ]

    def blocks(self, ids: list[int]) -> Any:
        return np.stack([layer[ids] for layer in self.layers])


@contextmanager
def running_node(*, populate: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="kvc") as folder:
        path = str(Path(folder) / "node.sock")
        node = _native.NodeCore(
            socket_path=path,
            arena_bytes=ARENA_BYTES,
            node_id="test",
            namespace_secret=bytes(32),
            verify_one_in=1,
            populate=populate,
        )
        node.start()
        yield path
        node.stop()


@pytest.fixture(scope="module", autouse=True)
def gpu_memory() -> Iterator[None]:
    """All memory that nobody registered is a GPU's, for the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_CUDA_ALL", "1")
        yield


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    """A node with a small arena, for all tests of this file."""
    with running_node(populate=True) as path:
        yield path


def connect(path: str, kv: PagedKv, fingerprint: bytes = FINGERPRINT, **options: Any) -> _native.Client:
    # One KV layout is one fingerprint: the node refuses two slot sizes under one.
    identity = hashlib.sha256(fingerprint + str(kv.slot_bytes).encode()).digest()
    client = _native.Client(
        socket_path=path,
        role="worker",
        fingerprint=identity,
        chunk_tokens=CHUNK_TOKENS,
        shards=[((0, LAYERS, 0, kv.heads), kv.slot_bytes)],
        own_shard=0,
        **options,
    )
    assert client.ensure_connected(), client.last_error
    return client


def transfer_of(
    client: _native.Client, kv: PagedKv, *, copy_threads: int = 1, jobs_max: int = 1_024, device: str = "host"
) -> _native.Transfer:
    """device: "cuda:0" is one that has a stand-in for its driver."""
    on_gpu = device == "cuda:0"
    return _native.Transfer(
        client,
        blocks_per_chunk=BLOCKS_PER_CHUNK,
        layers=kv.layouts(),
        copy_threads=copy_threads,
        jobs_max=jobs_max,
        device=device,
        kernels=gpu_fake.IMAGE if on_gpu else b"",
        driver=gpu_fake.fake_driver() if on_gpu else "",
    )


def keys_of(name: str, chunks: int) -> bytes:
    return _native.chain_keys(hashlib.sha256(name.encode()).digest(), list(range(chunks * CHUNK_TOKENS)), CHUNK_TOKENS)


def until(ready: Callable[[], object], seconds_max: float = 20.0) -> None:
    """Ask again until it holds; a condition, not a pause."""
    deadline = time.monotonic() + seconds_max
    while not ready():
        assert time.monotonic() < deadline, "it never became so"


def finished_store(transfer: _native.Transfer) -> tuple[int, str, int, int]:
    results: list[tuple[int, str, int, int]] = []

    def arrived() -> bool:
        results.extend(transfer.take_finished_stores())
        return bool(results)

    until(arrived)
    assert len(results) == 1
    return results[0]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_load_elsewhere_equals_what_was_stored(socket_path: str, data: st.DataObject) -> None:
    """Any layout, any blocks, any part of the chain: the bytes are those that were stored, the rest is untouched."""
    run_bytes = data.draw(st.sampled_from([1, 60, 64, 512, 4_096, 40_000]), label="run_bytes")
    heads = data.draw(st.integers(1, 3), label="heads")
    chunks = data.draw(st.integers(1, 4), label="chunks")
    first = data.draw(st.integers(0, chunks * BLOCKS_PER_CHUNK - 1), label="first_block")
    count = data.draw(st.integers(1, chunks * BLOCKS_PER_CHUNK - first), label="blocks")
    ids = data.draw(st.permutations(range(BLOCKS)), label="ids")
    writer, reader = PagedKv(1, run_bytes, heads), PagedKv(2, run_bytes, heads)
    keys = keys_of(f"{run_bytes} {heads} {chunks} {first} {ids}", chunks)
    stored, loaded = ids[: chunks * BLOCKS_PER_CHUNK], ids[-count:]
    client = connect(socket_path, writer)
    devices = st.sampled_from(["host", "stream", "cuda:0"])
    storing = transfer_of(client, writer, device=data.draw(devices, label="stored by"))
    assert storing.store(1, 0, b"", keys, stored) == "ok"
    assert finished_store(storing)[1] == "ok"

    other = connect(socket_path, reader)
    threads = data.draw(st.integers(1, 3), label="copy_threads")
    loading = transfer_of(other, reader, copy_threads=threads, device=data.draw(devices, label="loaded by"))
    status, lease, hit, _ = other.lookup(keys, 0, True)
    assert (status, hit) == ("ok", chunks)
    before = reader.blocks([block for block in range(BLOCKS) if block not in loaded])
    assert loading.load(2, lease, first, np.array(loaded, dtype=np.int64)) == "ok"
    assert all(loading.wait_layer(layer, WAIT_MS) == "ok" for layer in range(LAYERS))
    assert loading.wait_load(2, WAIT_MS) == "ok"
    assert np.array_equal(reader.blocks(loaded), writer.blocks(stored)[:, first : first + count])
    assert np.array_equal(reader.blocks([block for block in range(BLOCKS) if block not in loaded]), before)
    assert [result[:2] for result in loading.take_finished_loads()] == [(2, "ok")]


def test_a_chain_stored_twice_is_written_once(socket_path: str) -> None:
    """The second store finds every chunk there and copies nothing; its job is well all the same."""
    kv = PagedKv(3)
    client = connect(socket_path, kv)
    transfer = transfer_of(client, kv)
    keys, ids = keys_of("twice", 2), list(range(2 * BLOCKS_PER_CHUNK))
    assert transfer.store(1, 0, b"", keys, ids, [[5], [6, 7]]) == "ok"
    assert finished_store(transfer) == (1, "ok", 2 * kv.slot_bytes, 2)
    assert transfer.store(2, 0, b"", keys, ids) == "ok"
    assert finished_store(transfer) == (2, "ok", 0, 0)
    stats = transfer.stats()
    assert (stats["store_chunks"], stats["store_exists"], stats["stores"]) == (2, 2, 2)


def test_a_chain_continues_from_its_parent_and_from_no_stranger(socket_path: str) -> None:
    """A later part of a chain is stored on the key before it; on a key that nobody stored it can't ever be hit."""
    kv = PagedKv(4)
    client = connect(socket_path, kv)
    transfer = transfer_of(client, kv)
    keys, ids = keys_of("parents", 2), list(range(BLOCKS_PER_CHUNK))
    assert transfer.store(1, 0, hashlib.sha256(b"nobody").digest(), keys[32:], ids) == "ok"
    assert finished_store(transfer)[1:] == ("gone", 0, 0)
    assert transfer.store(2, 0, b"", keys[:32], ids) == "ok"
    assert finished_store(transfer)[1] == "ok"
    assert transfer.store(3, 0, keys[:32], keys[32:], ids) == "ok"
    assert finished_store(transfer)[1] == "ok"
    assert client.lookup(keys)[2] == 2


def test_a_lease_is_released_after_its_last_byte(socket_path: str) -> None:
    """The same lease can't be begun twice, and when its load has ended nothing of it stays leased."""
    kv = PagedKv(5)
    client = connect(socket_path, kv)
    transfer = transfer_of(client, kv)
    keys = keys_of("leases", 1)
    assert transfer.store(1, 0, b"", keys, list(range(BLOCKS_PER_CHUNK))) == "ok"
    assert finished_store(transfer)[1] == "ok"
    lease = client.lookup(keys, 0, True)[1]
    assert transfer.load(2, lease, 0, [20]) == "ok"
    assert transfer.wait_load(2, WAIT_MS) == "ok"
    until(lambda: '"leases_copying":0' in client.stat()[1].replace(" ", ""))
    assert transfer.load(3, lease, 0, [21]) == "gone"
    assert transfer.load(4, 12_345, 0, [21]) == "gone"
    assert transfer.stats()["loads_failed"] == 2


def resident_arenas() -> list[int]:
    """Bytes in memory of each of this process' mappings of an arena of the size used here."""
    entries = Path("/proc/self/smaps").read_text().split("\nVmFlags:")
    arenas = [entry for entry in entries if "memfd:kvcommons-arena" in entry]
    numbers = [
        {line.split(":")[0]: line.split()[1] for line in entry.splitlines() if " kB" in line} for entry in arenas
    ]
    return [int(entry["Rss"]) << 10 for entry in numbers if int(entry["Size"]) << 10 == ARENA_BYTES]


@pytest.mark.parametrize("populate", [True, False])
def test_an_arena_in_memory_is_mapped_before_it_is_needed_and_no_other(populate: bool) -> None:
    """The pages that the node has populated are mapped unasked; those that it has not would be charged to this process."""
    with running_node(populate=populate) as path:
        kv = PagedKv(8)
        client = connect(path, kv)
        before = resident_arenas().count(ARENA_BYTES)
        transfer = transfer_of(client, kv)
        if populate:
            until(lambda: resident_arenas().count(ARENA_BYTES) == before + 1)
        assert transfer.store(1, 0, b"", keys_of("warm", 1), list(range(BLOCKS_PER_CHUNK))) == "ok"
        assert finished_store(transfer)[1] == "ok"
        assert resident_arenas().count(ARENA_BYTES) == before + populate


def test_a_lost_node_fails_the_job_and_harms_nothing(socket_path: str) -> None:
    """Without a node a load is refused at once, a store fails, and neither raises."""
    kv = PagedKv(6)
    client = connect(socket_path, kv)
    transfer = transfer_of(client, kv)
    client.close()
    assert transfer.load(1, 77, 0, [1]) == "disconnected"
    assert transfer.store(2, 0, b"", keys_of("lost", 1), list(range(BLOCKS_PER_CHUNK))) == "ok"
    transfer.wait_stores([2])
    assert finished_store(transfer)[1] == "disconnected"


def test_callers_errors_raise_and_name_argument_value_and_remedy(socket_path: str) -> None:
    """What only a bug can pass is no status but an exception, before anything is touched."""
    kv = PagedKv(7)
    client = connect(socket_path, kv)
    transfer = transfer_of(client, kv)
    with pytest.raises(ValueError, match=r"block_ids\[1\] is 64, but a layer has only 64 blocks"):
        transfer.load(1, 1, 0, [0, BLOCKS])
    with pytest.raises(ValueError, match=r"block_ids\[0\] is -1, outside"):
        transfer.load(1, 1, 0, [-1])
    with pytest.raises(ValueError, match="block_ids has 1 entries for 1 keys: pass 4 a key"):
        transfer.store(1, 0, b"", keys_of("bad", 1), [0])
    with pytest.raises(ValueError, match="keys has 31 bytes"):
        transfer.store(1, 0, b"", bytes(31), [])
    with pytest.raises(ValueError, match="layer is 3, but only 3 are registered"):
        transfer.wait_layer(LAYERS, 0)
    with pytest.raises(ValueError, match=r"a slot of these layers has \d+ bytes, but the client declared"):
        _native.Transfer(client, blocks_per_chunk=BLOCKS_PER_CHUNK, layers=kv.layouts()[:-1])
    with pytest.raises(ValueError, match="run_stride_bytes is 1: pieces would overlap"):
        _native.Transfer(client, blocks_per_chunk=1, layers=[(4_096, 1, 64, 1, 0, 2, 1, 64)])


@given(nbytes=st.integers(0, 200_000), threads=st.integers(1, 3), kernel=st.sampled_from(["memcpy", "nt", "auto"]))
def test_copies_of_raw_memory_are_whole(nbytes: int, threads: int, kernel: str) -> None:
    """Each kernel copies every byte, in one piece or by runs."""
    src = np.random.default_rng(nbytes).integers(0, 256, nbytes + 1, dtype=np.uint8)
    dst, by_runs = np.zeros_like(src), np.zeros_like(src)
    _native.copy_bytes(dst.ctypes.data, src.ctypes.data, nbytes, kernel=kernel, threads=threads)
    half = nbytes // 2
    runs = np.array(
        [
            (src.ctypes.data, by_runs.ctypes.data, half),
            (src.ctypes.data + half, by_runs.ctypes.data + half, nbytes - half),
        ],
        dtype=np.uint64,
    )
    _native.copy_runs(runs, kernel=kernel, threads=threads)
    assert np.array_equal(dst[:nbytes], src[:nbytes])
    assert np.array_equal(by_runs[:nbytes], src[:nbytes])
    assert dst[nbytes] == by_runs[nbytes] == 0


def test_unknown_copies_are_refused() -> None:
    """A kernel, a number of threads or runs that there are not."""
    with pytest.raises(ValueError, match='kernel is "fast": pass "memcpy", "nt" or "auto"'):
        _native.copy_bytes(0, 0, 0, kernel="fast")
    with pytest.raises(ValueError, match=r"threads is 0, outside 1\.\.64"):
        _native.copy_bytes(0, 0, 0, threads=0)
    with pytest.raises(ValueError, match="runs holds no u64 triples"):
        _native.copy_runs(np.zeros(2, dtype=np.uint64))
