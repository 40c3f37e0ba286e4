"""A node that is full: bytes of its memory a chunk, how long a lookup takes, and how soon it is ready again after kill -9; and how each grows.

    python -m bench.node [--chunks 100000 300000 1000000] [--extents 100000 300000 1000000] [--calls 2000] [--folder DIR]

The daemon as users start it, in a process of its own. `metadata_bytes_N`: what its resident memory has grown by when N chunks of 4 KiB, each
with one text key, are stored, over N; the arena was all there before. It is everything: index, slots' records, the daemon's Python.
Most chunks stand in chains of `--chain-chunks`, some in chains of 512, of which `lookup_p99_us_N` asks at random: 512 keys and their lease.
`restart_s_N`: N extents of 4 KiB on disk, their writer killed by SIGKILL, the page cache dropped (root), and seconds from the start of
the daemon until /readyz says 200; `start_s` is the same with an empty disk. A million extents take 8.2 GB of disk, a million chunks 4.3 GB of memory.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.common import percentile, report
from bench.disk import EXTENT_BYTES, MIB, io_uring_allowed, load_program, run, segment_bytes
from bench.lookup import KEY_BYTES, KEYS, lookups, make_client

SLOT_BYTES = 4096
LONG_CHAINS = 128
ROUNDS = 5
CHUNKS_AT_ONCE = 10_000
READY_SECONDS_MAX = 120.0
LIMITS = {"metadata_bytes_a_chunk": 200, "lookup_p99_us_512": 300, "restart_s_per_million_extents": 5.0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Daemon:
    process: subprocess.Popen[bytes]
    socket_path: str
    ready_seconds: float

    def rest(self) -> None:
        """Until it has nothing to do: its events are told at leisure, as they are where engines compute what they store."""
        before = -1
        while before != (now := self._processor_ticks()):
            before = now
            time.sleep(0.03)

    def _processor_ticks(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split("\n")
        rss = next(line for line in fields if line.startswith("VmRSS:"))
        return int(rss.split()[1]) << 10


@contextmanager
def daemon(folder: Path, arena_bytes: int, *options: str) -> Iterator[Daemon]:
    """Started, and ready; killed at the end."""
    state, path, port = folder / "state", str(folder / "s"), free_port()
    state.mkdir(exist_ok=True)
    begin = time.monotonic()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "kvcommons_cli", "node", "--arena-bytes", str(arena_bytes), "--socket-path", path, "--state-dir", str(state),
            "--holder-socket", "none", "--control-port", str(port), *options,
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_ready(process, port)
        yield Daemon(process, path, time.monotonic() - begin)
    finally:
        process.kill()
        process.wait()


def wait_ready(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.01)
    raise SystemExit("bench.node: the node did not become ready")


class Filler:
    """Stores chains, a call each, until as many chunks are there as are asked for."""

    def __init__(self, node: Daemon, chain_chunks: int) -> None:
        self._node, self._client = node, make_client(node.socket_path, "worker")
        self._random = random.Random(5)
        self._chain_chunks = chain_chunks
        self.stored = 0
        self.long_chains: list[bytes] = []

    def fill(self, chunks: int) -> None:
        while len(self.long_chains) < min(LONG_CHAINS, chunks // (2 * KEYS)):
            self.long_chains.append(self._store(KEYS))
        while self.stored < chunks:
            for _ in range(min(CHUNKS_AT_ONCE, chunks - self.stored) // self._chain_chunks + 1):
                self._store(max(1, min(self._chain_chunks, chunks - self.stored)))
            self._node.rest()

    def _store(self, count: int) -> bytes:
        keys = self._random.randbytes(count * KEY_BYTES)
        status, slots = self._client.reserve(0, b"", keys)
        granted = [(offset, generation) for outcome, offset, generation in slots if outcome == "granted"]
        if status != "ok" or len(granted) != count:
            raise SystemExit(f"bench.node: reserve: {status}, {len(granted)} of {count} granted")
        items = [(offset, generation, 0, (self._random.getrandbits(64),)) for offset, generation in granted]
        status, accepted = self._client.commit(items)
        if (status, accepted) != ("ok", count):
            raise SystemExit(f"bench.node: commit: {status}, {accepted} of {count}")
        self.stored += count
        return keys


def lookup_p99(node: Daemon, chains: list[bytes], calls: int) -> dict[str, float]:
    client, choose = make_client(node.socket_path, "scheduler"), random.Random(6)
    rounds = []
    for _ in range(ROUNDS):
        rounds.append([lookups(client, choose.choice(chains), 1)[0] for _ in range(calls // ROUNDS)])
    client.close()
    return {"p50": statistics.median(percentile(r, 50) for r in rounds), "p99": statistics.median(percentile(r, 99) for r in rounds)}  # fmt: skip


def memory(folder: Path, counts: list[int], options: argparse.Namespace, figures: dict[str, object]) -> None:
    if not counts:
        return
    folder.mkdir()
    arena_bytes = (max(counts) + max(counts) // 16) * SLOT_BYTES // (64 * MIB) * (64 * MIB) + 128 * MIB
    with daemon(folder, arena_bytes) as node:
        filler = Filler(node, options.chain_chunks)
        filler.fill(4 * KEYS)  # what the first chunk brings with it is no chunk's
        before, stored = node.resident_bytes(), filler.stored
        for count in sorted(counts):
            filler.fill(count)
            figures[f"metadata_bytes_{count}"] = (settled_bytes(node) - before) / (count - stored)
            taken = lookup_p99(node, filler.long_chains, options.calls)
            figures[f"lookup_p50_us_{count}"], figures[f"lookup_p99_us_{count}"] = taken["p50"], taken["p99"]
            print(
                f"{count} chunks: {figures[f'metadata_bytes_{count}']:.1f} bytes a chunk, lookups {taken}",
                file=sys.stderr,
            )


def settled_bytes(node: Daemon) -> int:
    """Once the daemon has read its events."""
    last = 0
    while last != (now := node.resident_bytes()):
        last = now
        time.sleep(1.0)
    return last


def restarts(folder: Path, counts: list[int], figures: dict[str, object]) -> None:
    if not counts:
        return
    program = load_program()
    folder.mkdir()
    engine = "io_uring" if io_uring_allowed(program, folder) else "threads"
    for count in (0, *counts):
        home = folder / f"disk-{count}"
        home.mkdir()
        capacity = max(64 * MIB, count * EXTENT_BYTES * 6 // 5)
        segment = segment_bytes(capacity)
        if count:
            run(
                program,
                "put",
                home,
                str(capacity),
                str(segment),
                engine,
                "4096",
                "0",
                str(count),
                "256",
                "kill",
                killed=True,
            )
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        tiers = f'[{{"type": "disk", "paths": ["{home}"], "capacity_bytes": {capacity}, "segment_bytes": {segment}, "engine": "{engine}"}}]'
        with daemon(folder, 64 * MIB, "--tiers", tiers) as node:
            figures[f"restart_s_{count}" if count else "start_s"] = node.ready_seconds
        shutil.rmtree(home)
        print(f"{count} extents: ready after {node.ready_seconds:.2f} s", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--extents", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--calls", type=int, default=2_000, help="lookups at each size")
    parser.add_argument("--chain-chunks", type=int, default=16, help="in a chain: 16 are 4,096 tokens")
    parser.add_argument("--folder", default=None, help="on the device to measure; TMPDIR otherwise")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="kvc-", dir=options.folder) as folder:
        memory(Path(folder) / "m", options.chunks, options, figures)
        restarts(Path(folder) / "d", options.extents, figures)
    ratios: dict[str, object] = {}
    if options.chunks:
        most = max(options.chunks)
        for name, figure in (("metadata_bytes_a_chunk", "metadata_bytes"), ("lookup_p99_us_512", "lookup_p99_us")):
            value = figures[f"{figure}_{most}"]
            assert isinstance(value, float)
            ratios[f"{name}_over_limit"] = value / LIMITS[name]
    for count in options.extents:
        value = figures[f"restart_s_{count}"]
        assert isinstance(value, float)
        ratios[f"restart_{count}_over_limit"] = value / LIMITS["restart_s_per_million_extents"]
    report("node", figures, LIMITS, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
