"""Copies between paged KV and slots against the best contiguous copy of the same bytes, round by round.

    python -m bench.copy [--mib 32] [--pool-mib 512] [--rounds 15] [--threads 1]

Prints one JSON line. The limit of a round is the faster of memcpy and the non-temporal copy of as many bytes, in one piece, between
buffers as cold as those of the runs. `gather_K` and `scatter_K` copy runs of K KiB from and to random blocks by the kernel alone;
`adjacent_K` lets 16 blocks lie beside one another, where neighbouring runs become one. `load_K` and `store_K` are whole transfers through
a node, timed inside: with the building of the run lists, and for a store with the checksum.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from kvcommons_core import _native

KIB, MIB = 1 << 10, 1 << 20
ADJACENT = 16
RUN_KIB = (4, 8, 16, 64, 512)
TRANSFER_KIB = (8, 64)
BLOCKS_PER_CHUNK = 16
JOB_MS_MAX = 60_000
LIMITS = {
    "gather_8": 0.50,
    "gather_16": 0.50,
    "gather_64": 0.85,
    "scatter_64": 0.85,
    "adjacent_8": 0.90,
    "adjacent_16": 0.90,
}


class Pool:
    """Memory of its own, in huge pages where the machine gives them, touched before it is timed."""

    def __init__(self, nbytes: int) -> None:
        self._memory = mmap.mmap(-1, nbytes)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.nbytes = nbytes
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        ctypes.memset(self.address, 1, nbytes)


class Bench:
    def __init__(self, pool: Pool, arena: Pool, nbytes: int, threads: int) -> None:
        self.pool, self.arena, self.nbytes, self.threads = pool, arena, nbytes, threads
        self._random = random.Random(5)
        self._turn = 0

    def slot(self) -> int:
        """Another part of the arena each time, so that it is cold."""
        self._turn = (self._turn + 1) % (self.arena.nbytes // self.nbytes)
        return self.arena.address + self._turn * self.nbytes

    def contiguous(self, kernel: str) -> float:
        source = self.pool.address + self._random.randrange((self.pool.nbytes - self.nbytes) // 4096) * 4096
        target = self.slot()
        start = time.perf_counter()
        _native.copy_bytes(target, source, self.nbytes, kernel=kernel, threads=self.threads)
        return time.perf_counter() - start

    def limit(self) -> float:
        return min(self.contiguous("memcpy"), self.contiguous("nt"))

    def paged(self, run_bytes: int, *, scatter: bool, adjacent: int = 1) -> float:
        """Seconds for all bytes, by runs of `adjacent` blocks that lie together; the list is made before."""
        piece = run_bytes * adjacent
        places = self._random.sample(range(self.pool.nbytes // piece), self.nbytes // piece)
        slot, runs = self.slot(), array("Q")
        for index, place in enumerate(places):
            paged, packed = self.pool.address + place * piece, slot + index * piece
            runs.extend((packed, paged, piece) if scatter else (paged, packed, piece))
        start = time.perf_counter()
        _native.copy_runs(runs, kernel="auto", threads=self.threads)
        return time.perf_counter() - start


class NodeBench:
    """Stores and loads of one made-up layout through a node of its own."""

    def __init__(self, folder: str, pool: Pool, run_bytes: int, nbytes: int) -> None:
        block_bytes = run_bytes
        self._blocks = pool.nbytes // block_bytes
        self._chunks = nbytes // (block_bytes * BLOCKS_PER_CHUNK)
        self._random, self._job = random.Random(6), 0
        socket = str(Path(folder) / f"n{run_bytes}.sock")
        self._node = _native.NodeCore(
            socket_path=socket, arena_bytes=8 * nbytes, node_id="bench", namespace_secret=bytes(32), populate=True
        )
        self._node.start()
        self._client = _native.Client(
            socket_path=socket, role="worker", fingerprint=bytes([1]) * 32, chunk_tokens=BLOCKS_PER_CHUNK,
            shards=[((0, 1, 0, 1), block_bytes * BLOCKS_PER_CHUNK)], own_shard=0, call_ms_max=5_000,
        )  # fmt: skip
        self._transfer = _native.Transfer(
            self._client,
            blocks_per_chunk=BLOCKS_PER_CHUNK,
            layers=[(pool.address, self._blocks, block_bytes, 1, 0, 1, run_bytes, run_bytes)],
        )

    def round(self) -> tuple[float, float]:
        """Seconds per byte of a store and of the load of what it stored."""
        self._job += 2
        blocks = self._random.sample(range(self._blocks), 2 * self._chunks * BLOCKS_PER_CHUNK)
        half = len(blocks) // 2
        keys = _native.chain_keys(
            self._job.to_bytes(32, "little"), list(range(self._chunks * BLOCKS_PER_CHUNK)), BLOCKS_PER_CHUNK
        )
        before = self._transfer.stats()
        self._expect("ok", self._transfer.store(self._job, 0, b"", keys, blocks[:half]))
        while not (done := self._transfer.take_finished_stores()):
            self._transfer.wait_all_stores()
        self._expect("ok", done[0][1])
        status, lease, hit, _ = self._client.lookup(keys, 0, True)
        self._expect(f"ok {self._chunks}", f"{status} {hit}")
        self._expect("ok", self._transfer.load(self._job + 1, lease, 0, blocks[half:]))
        self._expect("ok", self._transfer.wait_load(self._job + 1, JOB_MS_MAX))
        after = self._transfer.stats()
        return self._rate(before, after, "store"), self._rate(before, after, "load")

    @staticmethod
    def _rate(before: dict[str, int], after: dict[str, int], way: str) -> float:
        return (after[f"{way}_ns"] - before[f"{way}_ns"]) / 1e9 / (after[f"{way}_bytes"] - before[f"{way}_bytes"])

    @staticmethod
    def _expect(wanted: str, got: str) -> None:
        if wanted != got:
            raise RuntimeError(f"the node answered {got!r}, not {wanted!r}")

    def close(self) -> None:
        self._client.close()
        self._node.stop()


def ways_of(bench: Bench) -> dict[str, Callable[[], float]]:
    ways: dict[str, Callable[[], float]] = {}
    for kib in RUN_KIB:
        ways[f"gather_{kib}"] = lambda kib=kib: bench.paged(kib * KIB, scatter=False)  # type: ignore[misc]  # bound now
        ways[f"scatter_{kib}"] = lambda kib=kib: bench.paged(kib * KIB, scatter=True)  # type: ignore[misc]  # bound now
    for kib in RUN_KIB[:3]:
        ways[f"adjacent_{kib}"] = lambda kib=kib: bench.paged(  # type: ignore[misc]  # bound now
            kib * KIB, scatter=False, adjacent=ADJACENT
        )
    return ways


def measure(nbytes: int, pool_bytes: int, rounds: int, threads: int) -> dict[str, object]:
    pool, arena = Pool(pool_bytes), Pool(4 * nbytes)
    bench = Bench(pool, arena, nbytes, threads)
    ways = ways_of(bench)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "limit"]}
    for _ in range(rounds):
        for name, way in ways.items():
            limit, took = bench.limit(), way()
            seconds["limit"].append(limit)
            seconds[name].append(took)
            ratios[name].append(limit / took)
    with tempfile.TemporaryDirectory(prefix="kvc") as folder:
        for kib in TRANSFER_KIB:
            node = NodeBench(folder, pool, kib * KIB, nbytes)
            for _ in range(rounds):
                limit, (store, load) = bench.limit(), node.round()
                for name, rate in ((f"store_{kib}", store), (f"load_{kib}", load)):
                    ratios.setdefault(name, []).append(limit / (rate * nbytes))
                    seconds.setdefault(name, []).append(rate * nbytes)
            node.close()
    return {
        "name": "copy",
        "figures": {f"gb_s_{name}": round(nbytes / statistics.median(took) / 1e9, 2) for name, took in seconds.items()},
        "limits": LIMITS,
        "ratios": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=32, help="bytes a copy")
    parser.add_argument("--pool-mib", type=int, default=512, help="paged KV from which blocks are drawn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(
        json.dumps(measure(arguments.mib * MIB, arguments.pool_mib * MIB, arguments.rounds, arguments.threads)),
    )


if __name__ == "__main__":
    main()
