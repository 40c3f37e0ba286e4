"""The native load by itself: chunks from a node's arena into paged KV, against the best plain copy of the same bytes.

The limit is the fastest of glibc's memcpy and non-temporal copies with as many threads, of the same runs between buffers that are as
cold (more than any cache holds is touched in between), interleaved with the load round by round: neighbours in time are compared. Imported by bench.ttft.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from array import array

from kvcommons_core import _native
from kvcommons_core.keys import token_keys

LAYERS, BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNKS = (
    8,
    128 * 8 * 64 * 2 * 4,
    2,
    16,
)  # the small Llama at 4,096 tokens, float32
FINGERPRINT = bytes(range(1, 33))
THRASH_BYTES = 256 << 20
WARM_SECONDS = 3.0  # the mapping of the arena is filled in the background after an attach


class Paged:
    """KV of an engine: a buffer a layer."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.maps = [mmap.mmap(-1, blocks * BLOCK_BYTES) for _ in range(LAYERS)]
        self.bases = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in self.maps]
        for number, base in enumerate(self.bases):
            ctypes.memset(base, number + 1, blocks * BLOCK_BYTES)

    def layouts(self) -> list[tuple[int, int, int, int, int, int, int, int]]:
        """As a connector registers them."""
        return [(base, self.blocks, BLOCK_BYTES, 1, 0, 1, 0, BLOCK_BYTES) for base in self.bases]


def load_over_memcpy(socket: str, rounds: int, threads: int = 1) -> dict[str, float]:
    """GB/s of the load and of each plain copy, and the ratio to the best."""
    blocks = CHUNKS * BLOCKS_PER_CHUNK
    slot_bytes = LAYERS * BLOCKS_PER_CHUNK * BLOCK_BYTES
    client = _native.Client(
        socket_path=socket,
        role="worker",
        fingerprint=FINGERPRINT,
        chunk_tokens=256,
        shards=[((0, LAYERS, 0, 8), slot_bytes)],
        own_shard=0,
        call_ms_max=2_000,
    )
    if not client.ensure_connected():
        raise RuntimeError(client.last_error)
    source, target = Paged(2 * blocks), Paged(2 * blocks)
    transfer = _native.Transfer(
        client, blocks_per_chunk=BLOCKS_PER_CHUNK, layers=target.layouts(), copy_threads=threads
    )
    keys = token_keys(bytes(32), list(range(CHUNKS * 256)), 256)
    transfer.store(1, 0, bytes(32), keys, array("I", range(blocks)))
    transfer.wait_all_stores()
    thrash = mmap.mmap(-1, THRASH_BYTES)
    thrash_at = ctypes.addressof(ctypes.c_char.from_buffer(thrash))
    # Scattered as a pool is after a while: the odd blocks, from the back.
    scattered = array("I", range(2 * blocks - 1, 0, -2))
    runs = array("Q")
    for layer in range(LAYERS):
        for index, block in enumerate(scattered):
            runs.extend(
                (source.bases[layer] + index * BLOCK_BYTES, target.bases[layer] + block * BLOCK_BYTES, BLOCK_BYTES)
            )
    total = LAYERS * blocks * BLOCK_BYTES
    seconds: dict[str, list[float]] = {"load": [], "memcpy": [], "nt": []}
    warm_until, round_number, left = time.monotonic() + WARM_SECONDS, 0, rounds
    while left:
        warm = time.monotonic() >= warm_until
        left, round_number = left - warm, round_number + 1
        for kind, values in seconds.items():
            ctypes.memset(thrash_at, round_number & 0xFF, THRASH_BYTES)
            took = (
                _load(client, transfer, keys, scattered, round_number) if kind == "load" else _copy(runs, kind, threads)
            )
            if warm:
                values.append(took)
    rates = {f"{kind}_gb_s": round(total / statistics.median(values) / 1e9, 2) for kind, values in seconds.items()}
    best = min(seconds["memcpy"], seconds["nt"], key=statistics.median)
    ratios = [copy / load for copy, load in zip(best, seconds["load"], strict=True)]
    return rates | {"load_over_memcpy": round(statistics.median(ratios), 3)}


def _load(client: _native.Client, transfer: _native.Transfer, keys: bytes, blocks: array[int], number: int) -> float:
    status, lease, hit, _ = client.lookup(keys, 0, True)
    if status != "ok" or hit != CHUNKS:
        raise RuntimeError(f"lookup: {status}, {hit} of {CHUNKS} chunks")
    begin = time.perf_counter()
    job = 100 + number
    status = transfer.load(job, lease, 0, blocks)
    if status != "ok" or transfer.wait_load(job, 10_000) != "ok":
        raise RuntimeError(f"load: {status}")
    return time.perf_counter() - begin


def _copy(runs: array[int], kernel: str, threads: int) -> float:
    begin = time.perf_counter()
    _native.copy_runs(runs, kernel=kernel, threads=threads)
    return time.perf_counter() - begin
