"""How long a scheduler waits for the node: lookup and lease of 512 keys over the Unix socket.

    python -m bench.lookup [--rounds 20] [--calls 1000] [--clients 16]

`figures.p99_us_512` is the median over the rounds of each round's p99 with one client, timed in Python around the call. The
limit beside it is an echo between two processes over a socket pair with messages of the same sizes, in the same rounds:
what the kernel alone costs here. `*_clients` is the same for all clients at once, each without a pause, on this
machine's few processors: mostly waiting for one another.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from kvcommons_core import _native

from bench.common import percentile, report
from bench.node_process import SPAWN, running_node

KEYS = 512
KEY_BYTES = 32
SLOT_BYTES = 4096
REQUEST_BYTES = 16 + 16 + KEYS * KEY_BYTES
REPLY_BYTES = 16 + 16
LIMIT_P99_US = 300.0
FINGERPRINT = hashlib.sha256(b"bench.lookup").digest()


def run_echo(peer: socket.socket) -> None:
    """Answer each request's bytes with a reply's."""
    buffer, reply = bytearray(REQUEST_BYTES), bytes(REPLY_BYTES)
    while receive_exactly(peer, buffer):
        peer.sendall(reply)


def receive_exactly(peer: socket.socket, buffer: bytearray) -> bool:
    view = memoryview(buffer)
    while view:
        got = peer.recv_into(view)
        if got == 0:
            return False
        view = view[got:]
    return True


def make_client(path: str, role: str) -> _native.Client:
    client = _native.Client(
        socket_path=path,
        role=role,
        fingerprint=FINGERPRINT,
        chunk_tokens=256,
        shards=[((0, 1, 0, 1), SLOT_BYTES)],
        own_shard=0 if role == "worker" else -1,
        call_ms_max=10_000,
    )
    if not client.ensure_connected():
        raise RuntimeError(client.last_error)
    return client


def store(path: str) -> bytes:
    """Fill the node with one chain of 512 chunks; its keys."""
    keys = _native.chain_keys(FINGERPRINT, [token % 50_000 for token in range(KEYS * 256)], 256)
    client = make_client(path, "worker")
    status, slots = client.reserve(0, b"", keys)
    assert status == "ok", status
    status, accepted = client.commit([(offset, generation, 0, ()) for _, offset, generation in slots])
    assert (status, accepted) == ("ok", KEYS), (status, accepted)
    client.close()
    return keys


def timed(call: Callable[[], object], calls: int, after: Callable[[object], None]) -> list[float]:
    """Microseconds of each call; ``after`` is not timed."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        result = call()
        taken.append((time.perf_counter_ns() - start) / 1e3)
        after(result)
    return taken


def lookups(client: _native.Client, keys: bytes, calls: int) -> list[float]:
    def end(result: object) -> None:
        assert isinstance(result, tuple)
        assert result[0] == "ok", result
        assert result[2] == KEYS, result
        client.release(result[1])

    return timed(lambda: client.lookup(keys, 0, True), calls, end)


def run_client(path: str, keys: bytes, calls: int, pipe: Connection) -> None:
    """One of many: says that it is attached, starts when told to, sends its times."""
    client = make_client(path, "scheduler")
    pipe.send([])
    pipe.recv()
    pipe.send(lookups(client, keys, calls))
    client.close()


def crowd(path: str, keys: bytes, clients: int, calls: int) -> list[float]:
    pipes, processes = [], []
    for _ in range(clients):
        ours, theirs = SPAWN.Pipe()
        processes.append(SPAWN.Process(target=run_client, args=(path, keys, calls, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    times: list[float] = []
    for pipe in pipes:
        times.extend(pipe.recv())
    for process in processes:
        process.join()
    return times


def measure(path: str, options: argparse.Namespace) -> None:
    keys = store(path)
    client = make_client(path, "scheduler")
    ours, theirs = socket.socketpair()
    echo = SPAWN.Process(target=run_echo, args=(theirs,), daemon=True)
    echo.start()
    theirs.close()
    request, reply = bytes(REQUEST_BYTES), bytearray(REPLY_BYTES)

    def exchange() -> None:
        ours.sendall(request)
        receive_exactly(ours, reply)

    exchange()
    lookup_rounds, echo_rounds = [], []
    for _ in range(options.rounds):
        lookup_rounds.append(lookups(client, keys, options.calls))
        echo_rounds.append(timed(exchange, options.calls, lambda _: None))
    ours.close()
    echo.join()
    client.close()
    many = crowd(path, keys, options.clients, options.calls)

    def median_of(rounds: list[list[float]], percent: float) -> float:
        return statistics.median(percentile(one, percent) for one in rounds)

    figures = {
        "p50_us_512": median_of(lookup_rounds, 50),
        "p99_us_512": median_of(lookup_rounds, 99),
        "p99_us_512_all_rounds": percentile([one for each in lookup_rounds for one in each], 99),
        f"p50_us_512_{options.clients}_clients": percentile(many, 50),
        f"p99_us_512_{options.clients}_clients": percentile(many, 99),
        "processors": os.cpu_count() or 0,
    }
    limits = {
        "p99_us_512": LIMIT_P99_US,
        "echo_p50_us": median_of(echo_rounds, 50),
        "echo_p99_us": median_of(echo_rounds, 99),
    }
    ratios = {
        "p50_over_echo": median_of(lookup_rounds, 50) / median_of(echo_rounds, 50),
        "p99_over_echo": median_of(lookup_rounds, 99) / median_of(echo_rounds, 99),
        "p99_over_limit": median_of(lookup_rounds, 99) / LIMIT_P99_US,
    }
    report("lookup", figures, limits, ratios, digits=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=1_000, help="lookups a round, and of each of the many clients")
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with running_node(arena_bytes=64 << 20) as path:
        measure(path, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
