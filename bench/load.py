"""From the commons to the engine: requests of 1,024 tokens loaded by the native transfer, one, four and sixteen at once.

    python -m bench.load [--rounds 5] [--threads 1] [--at-once 1 4 16]

`loads_N` keeps N requests under way for a whole round: each begins its next as soon as the former one has ended. Beside each round, in
turns with it, the same bytes in the same runs by the best plain copy (glibc's memcpy or non-temporal stores, as many threads), from
buffers as cold: every round goes through more than any cache holds. `..._storing` is the same while this engine stores new chunks without
a pause; its plain copy then has a plain copy of as large pieces beside it. Ratios are medians over rounds; latencies are those of single
requests, over all rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from kvcommons_core import _native
from kvcommons_core.keys import token_keys

from bench.common import percentile, report
from bench.node_process import running_node
from bench.raw_load import BLOCK_BYTES, BLOCKS_PER_CHUNK, LAYERS, Paged

CHUNKS, CHUNK_TOKENS = 4, 256
CHAINS = 16
REPEATS = 3  # requests of each chain a round
BLOCKS = CHUNKS * BLOCKS_PER_CHUNK
REQUEST_BYTES = LAYERS * BLOCKS * BLOCK_BYTES
ARENA_BYTES = (CHAINS + 8) * REQUEST_BYTES
STORE_BLOCKS = BLOCKS  # of the source, behind those of the plain copies
FINGERPRINT = bytes(range(2, 34))
LIMITS = {"loads_over_memcpy": 0.8, "p99_over_p50": 2.0}
WAIT_MS = 60_000
ONE_SHOT = 1  # eviction hints, packed: docs/protocol.md


def chain_keys(number: int) -> bytes:
    return token_keys(number.to_bytes(32, "little"), list(range(CHUNKS * CHUNK_TOKENS)), CHUNK_TOKENS)


@dataclass
class Engine:
    """One worker: its paged KV, and as much again for the plain copies to read from."""

    client: _native.Client
    threads: int
    source: Paged = field(default_factory=lambda: Paged(CHAINS * BLOCKS + 2 * STORE_BLOCKS))
    target: Paged = field(default_factory=lambda: Paged(2 * CHAINS * BLOCKS))

    def __post_init__(self) -> None:
        # Stores read the first blocks of the source; loads write into the target: two transfers' layouts, one engine's client.
        self.stores = self._transfer(self.source)
        self.loads = self._transfer(self.target)
        self._job = 0
        self._lock = threading.Lock()

    def _transfer(self, paged: Paged) -> _native.Transfer:
        return _native.Transfer(
            self.client, blocks_per_chunk=BLOCKS_PER_CHUNK, layers=paged.layouts(), copy_threads=self.threads
        )

    def job(self) -> int:
        with self._lock:
            self._job += 1
            return self._job

    def scattered(self, chain: int) -> array[int]:
        """As a pool is after a while: the odd blocks, from the back."""
        last = 2 * (chain + 1) * BLOCKS - 1
        return array("I", range(last, last - 2 * BLOCKS, -2))

    def store(self, chain: int, first_block: int, one_shot: int = 0) -> None:
        """one_shot: these go before all others, so that what is loaded stays."""
        job = self.job()
        blocks = array("I", range(first_block, first_block + BLOCKS))
        if self.stores.store(job, 0, bytes(32), chain_keys(chain), blocks, (), one_shot) != "ok":
            raise RuntimeError("a store was not taken")
        self.stores.wait_stores([job])  # which copied; the node knows it a little later
        until = time.monotonic() + WAIT_MS / 1_000
        while not (ended := self.stores.take_finished_stores()) and time.monotonic() < until:
            time.sleep(0.0002)
        if [result[1:] for result in ended] != [("ok", REQUEST_BYTES, CHUNKS)]:
            raise RuntimeError(f"store: {ended}, {self.stores.stats()}")

    def lease(self, chain: int) -> int:
        status, lease, hit, _ = self.client.lookup(chain_keys(chain), 0, True)
        if status != "ok" or hit != CHUNKS:
            raise RuntimeError(f"lookup: {status}, {hit} of {CHUNKS} chunks")
        return lease

    def load(self, chain: int, lease: int) -> float:
        begin = time.perf_counter()
        job = self.job()
        # As the connector asks for what it loads between steps: one request's own, wanted as a whole.
        status = self.loads.load(job, lease, 0, self.scattered(chain), whole=True)
        if status == "ok":
            status = self.loads.wait_load(job, WAIT_MS)
        if status != "ok":
            raise RuntimeError(f"load: {status}")
        return time.perf_counter() - begin

    def load_all(self, leases: list[tuple[int, int]]) -> list[float]:
        return [self.load(chain, lease) for chain, lease in leases]

    def runs(self, chain: int) -> array[int]:
        """The same bytes for a plain copy."""
        runs = array("Q")
        for source, target in zip(self.source.bases, self.target.bases, strict=True):
            for index, block in enumerate(self.scattered(chain)):
                at = chain * BLOCKS + index
                runs.extend((source + at * BLOCK_BYTES, target + block * BLOCK_BYTES, BLOCK_BYTES))
        return runs

    def check(self, chain: int) -> None:
        """What was loaded is what was stored."""
        runs = self.runs(chain)
        for at in range(0, len(runs), 3):
            if ctypes.string_at(runs[at], runs[at + 2]) != ctypes.string_at(runs[at + 1], runs[at + 2]):
                raise RuntimeError("a load brought other bytes than were stored")

    def spare_runs(self) -> array[int]:
        """A plain copy as large as a store, from blocks that nothing else reads to others."""
        runs = array("Q")
        for base in self.source.bases:
            for block in range(CHAINS * BLOCKS, CHAINS * BLOCKS + STORE_BLOCKS):
                runs.extend((base + block * BLOCK_BYTES, base + (block + STORE_BLOCKS) * BLOCK_BYTES, BLOCK_BYTES))
        return runs


@contextmanager
def beside(work: Callable[[], None] | None) -> Iterator[list[int]]:
    """Has a thread do the work again and again; how often it did."""
    done, stop = [0], threading.Event()

    def again() -> None:
        while work is not None and not stop.is_set():
            work()
            done[0] += 1

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(again)
        try:
            yield done
        finally:
            stop.set()
            running.result(timeout=WAIT_MS / 1_000)


@dataclass
class Round:
    seconds: float
    latencies: list[float]
    beside: int


def timed_loads(engine: Engine, at_once: int, work: Callable[[], None] | None) -> Round:
    """Every chain REPEATS times, `at_once` under way."""
    turns = [[c for _ in range(REPEATS) for c in range(first, CHAINS, at_once)] for first in range(at_once)]
    leases = [[(chain, engine.lease(chain)) for chain in turn] for turn in turns]
    with ThreadPoolExecutor(at_once) as pool, beside(work) as done:
        begin, done_before = time.perf_counter(), done[0]
        futures = [pool.submit(engine.load_all, mine) for mine in leases]
        latencies = [seconds for future in futures for seconds in future.result()]
        return Round(time.perf_counter() - begin, latencies, done[0] - done_before)


def timed_copy(engine: Engine, kernel: str, work: Callable[[], None] | None) -> Round:
    with beside(work) as done:
        begin, done_before = time.perf_counter(), done[0]
        for chain in list(range(CHAINS)) * REPEATS:
            _native.copy_runs(engine.runs(chain), kernel=kernel, threads=engine.threads)
        return Round(time.perf_counter() - begin, [], done[0] - done_before)


def measure(engine: Engine, at_once: list[int], rounds: int) -> None:
    for chain in range(CHAINS):
        engine.store(chain, chain * BLOCKS)
        engine.load(chain, engine.lease(chain))
        engine.check(chain)
    fresh = iter(range(CHAINS, 1 << 40))

    def store_more() -> None:
        engine.store(next(fresh), CHAINS * BLOCKS, ONE_SHOT)

    spare = engine.spare_runs()

    def copy_more() -> None:
        _native.copy_runs(spare, kernel="nt", threads=1)

    gb = CHAINS * REPEATS * REQUEST_BYTES / 1e9
    figures: dict[str, object] = {"request_mib": REQUEST_BYTES >> 20, "copy_threads": engine.threads}
    ratios: dict[str, object] = {}
    for ending, stored, copied in (("", None, None), ("_storing", store_more, copy_more)):
        taken: dict[str, list[Round]] = {}
        for number in range(rounds):
            for kernel in ("memcpy", "nt"):
                taken.setdefault(kernel, []).append(timed_copy(engine, kernel, copied))
            for count in at_once:
                taken.setdefault(f"loads_{count}", []).append(timed_loads(engine, count, stored))
            print(
                f"round {number + 1}{ending}: "
                + ", ".join(f"{name} {gb / taking[-1].seconds:.2f} GB/s" for name, taking in taken.items()),
                file=sys.stderr,
            )
        best = min(taken["memcpy"], taken["nt"], key=lambda some: statistics.median(r.seconds for r in some))
        for name, some in taken.items():
            figures[f"{name}{ending}_gb_s"] = gb / statistics.median(r.seconds for r in some)
            if ending:
                figures[f"{name}{ending}_beside_gb_s"] = statistics.median(
                    r.beside * REQUEST_BYTES / 1e9 / r.seconds for r in some
                )
        for count in at_once:
            some = taken[f"loads_{count}"]
            pairs = zip(best, some, strict=True)
            ratios[f"loads_{count}{ending}_over_memcpy"] = statistics.median(c.seconds / r.seconds for c, r in pairs)
            latencies = [seconds * 1e3 for r in some for seconds in r.latencies]
            figures[f"p50_ms_{count}{ending}"] = percentile(latencies, 50)
            figures[f"p99_ms_{count}{ending}"] = percentile(latencies, 99)
            ratios[f"p99_over_p50_{count}{ending}"] = percentile(latencies, 99) / percentile(latencies, 50)
    ratios["loads_over_memcpy"] = min(
        v for k, v in ratios.items() if k.endswith("over_memcpy") and isinstance(v, float)
    )
    ratios["p99_over_p50"] = max(v for k, v in ratios.items() if k.startswith("p99") and isinstance(v, float))
    report("load", figures, LIMITS, ratios)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="that copy, in the transfer and in the plain copies")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="requests under way")
    options = parser.parse_args()
    if any(count < 1 or CHAINS % count for count in options.at_once):
        parser.error(f"--at-once: give divisors of {CHAINS}")
    with running_node(arena_bytes=ARENA_BYTES, populate=True) as socket:
        client = _native.Client(
            socket_path=socket, role="worker", fingerprint=FINGERPRINT, chunk_tokens=CHUNK_TOKENS,
            shards=[((0, LAYERS, 0, 8), LAYERS * BLOCKS_PER_CHUNK * BLOCK_BYTES)], own_shard=0, call_ms_max=10_000,
        )  # fmt: skip
        if not client.ensure_connected():
            raise RuntimeError(client.last_error)
        measure(Engine(client, options.threads), options.at_once, options.rounds)
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
