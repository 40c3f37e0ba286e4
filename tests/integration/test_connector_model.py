"""The whole connector without an engine: both of its sides, real sessions, a real node, and blocks whose right content is known.

A block's content is a function of all tokens up to its end; over a wrong block only rubbish is computed. Blocks that change hands are
filled with rubbish in the step that gets them, as soon as the connector's fence allows it. So a store that still reads them, a load into
the wrong block, a stale lease, or a chunk that stands for another would all show as wrong bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kvcommons_connector.identity import RequestIdentity, TextHints
from kvcommons_connector.scheduler import SchedulerCore
from kvcommons_connector.stats import Counters
from kvcommons_connector.tracking import Geometry, ScheduledRequest, Tracked
from kvcommons_connector.worker import WorkerCore
from kvcommons_core import _native

LAYERS, BLOCK, CHUNK, RUN_BYTES, BLOCKS = 3, 16, 64, 1024, 96
FINGERPRINT = hashlib.sha256(b"model").digest()
SHARDS = [((0, LAYERS, 0, 1), LAYERS * (CHUNK // BLOCK) * RUN_BYTES)]
RUBBISH = b"\xee" * RUN_BYTES
STEPS = 200


def content(tokens: list[int], block: int, layer: int) -> bytes:
    """What attention would have left in this block of this layer."""
    seed = hashlib.sha256(repr((layer, tokens[: (block + 1) * BLOCK])).encode()).digest()
    return seed * (RUN_BYTES // len(seed))


@dataclass
class Request:
    """One request in a batch."""

    name: str
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0


class Engine:
    """A pool of blocks, a batch of requests, one step at a time, as vLLM runs them."""

    def __init__(self, socket: str, seed: int, *, asynchronous: bool) -> None:
        self.random = random.Random(seed)
        self.memory = [mmap.mmap(-1, BLOCKS * RUN_BYTES) for _ in range(LAYERS)]
        pins = [ctypes.c_char.from_buffer(memory) for memory in self.memory]
        layers = [(ctypes.addressof(pin), BLOCKS, RUN_BYTES, 1, 0, 1, 0, RUN_BYTES) for pin in pins]
        self.client, self.session = (
            _native.Client(
                socket_path=socket,
                role=role,
                fingerprint=FINGERPRINT,
                chunk_tokens=CHUNK,
                shards=SHARDS,
                own_shard=shard,
                reconnect_ms_min=1,
                reconnect_ms_max=5,
            )
            for role, shard in (("scheduler", -1), ("worker", 0))
        )
        self.transfer = _native.Transfer(self.session, blocks_per_chunk=CHUNK // BLOCK, layers=layers)
        counters = Counters()
        self.core = SchedulerCore(
            Geometry(CHUNK, BLOCK, FINGERPRINT, asynchronous),
            self.client,
            counters,
            lambda: time.monotonic() * 1e3,
            load=True,
            store=True,
            lease_ms_max=10_000,
            fetch_ms_max=100,
        )
        names = {str(layer): layer for layer in range(LAYERS)}
        self.worker = WorkerCore(self.session, self.transfer, names, counters, load_ms_max=5_000, stores=True)
        self.free = set(range(BLOCKS))
        self.waiting: list[Request] = []
        self.loading: dict[str, Request] = {}
        self.ready: list[Request] = []
        self.running: list[Request] = []
        self.count = self.loaded_tokens = self.failed_loads = self.preemptions = 0

    def submit(self, tokens: list[int]) -> None:
        """A request arrives."""
        self.count += 1
        request = Request(f"r{self.count}", list(tokens))
        self.core.add(Tracked(request.name, len(tokens), RequestIdentity(), TextHints()))
        self.waiting.append(request)

    def step(self) -> None:
        """Preempt somebody now and then, admit who fits, load, compute, store, check."""
        preempted = self._preempt()
        fresh: list[int] = []
        new = self._admit(fresh)
        scheduled = [self._schedule(request, request in new) for request in self.running]
        plan = self.core.step(scheduled, preempted)
        self.worker.begin_step(plan)
        for block in fresh:
            self._write(block, [RUBBISH] * LAYERS)
        self.worker.start_loads(plan)
        for layer in range(LAYERS):
            self.worker.wait_layer(str(layer))
        for request, item in zip(self.running, scheduled, strict=True):
            self._compute(request, item)
        self.worker.end_step(plan)
        self._settle(scheduled)

    def _preempt(self) -> list[str]:
        if not self.running or self.random.random() > 0.15:
            return []
        request = self.running.pop(self.random.randrange(len(self.running)))
        self._give_back(request)
        self.waiting.insert(0, request)
        self.preemptions += 1
        return [request.name]

    def _give_back(self, request: Request) -> None:
        self.free.update(request.blocks)
        request.blocks, request.computed = [], 0

    def _admit(self, fresh: list[int]) -> list[Request]:
        new = []
        for request in self.ready:
            self.core.allocated(request.name, request.blocks, 0)
            new.append(request)
        self.ready = []
        for request in list(self.waiting):
            need = len(request.tokens) // BLOCK + 2
            external, asynchronous = self.core.matched(request.name, request.tokens, 0)
            if external is None or need > len(self.free):
                continue
            self.waiting.remove(request)
            request.blocks = self.random.sample(sorted(self.free), need)
            self.free -= set(request.blocks)
            fresh.extend(request.blocks)
            self.core.allocated(request.name, request.blocks, external)
            request.computed = external
            if asynchronous:
                self.loading[request.name] = request
            else:
                new.append(request)
                self.loaded_tokens += external
        self.running.extend(new)
        return new

    def _schedule(self, request: Request, new: bool) -> ScheduledRequest:
        count = min(len(request.tokens) - request.computed, self.random.choice([16, 48, 200]))
        blocks = request.blocks if new else ()
        return ScheduledRequest(request.name, request.tokens, request.computed, count, blocks, new)

    def _compute(self, request: Request, item: ScheduledRequest) -> None:
        begin, end = item.computed_tokens // BLOCK, (item.computed_tokens + item.scheduled_tokens) // BLOCK
        sound = all(self._sound(request, block) for block in range(begin))
        for block in range(begin, end):
            right = [content(request.tokens, block, layer) for layer in range(LAYERS)]
            self._write(request.blocks[block], right if sound else [RUBBISH] * LAYERS)

    def _sound(self, request: Request, index: int) -> bool:
        begin = request.blocks[index] * RUN_BYTES
        return all(
            self.memory[layer][begin : begin + RUN_BYTES] == content(request.tokens, index, layer)
            for layer in range(LAYERS)
        )

    def _write(self, block: int, layers: list[bytes]) -> None:
        for memory, data in zip(self.memory, layers, strict=True):
            memory[block * RUN_BYTES : (block + 1) * RUN_BYTES] = data

    def _settle(self, scheduled: list[ScheduledRequest]) -> None:
        finished, failed = self.worker.take_transfers()
        invalid = self.worker.take_invalid_blocks()
        self.core.stores_done(self.worker.take_stores_done())
        suspects = self.core.loads_failed(invalid) if invalid else set()
        assert invalid <= suspects
        self.failed_loads += bool(invalid) + len(failed)
        for item, request in zip(scheduled, list(self.running), strict=True):
            first = next((i for i, block in enumerate(request.blocks) if block in invalid), None)
            if first is None:
                request.computed += item.scheduled_tokens
                assert all(self._sound(request, block) for block in range(request.computed // BLOCK)), request.name
                self._maybe_end(request)
            else:
                request.computed = first * BLOCK
        for name in finished:
            self._arrived(self.loading.pop(name), failed=name in failed)

    def _arrived(self, request: Request, *, failed: bool) -> None:
        if failed:
            self.core.request_load_failed(request.name)
            self._give_back(request)
            self.waiting.insert(0, request)
        else:
            self.loaded_tokens += request.computed
            self.ready.append(request)

    def _maybe_end(self, request: Request) -> None:
        if request.computed < len(request.tokens):
            return
        request.tokens.append(self.random.randrange(1000))
        if self.random.random() < 0.3 or len(request.tokens) > len(request.blocks) * BLOCK:
            self.core.finish(request.name, request.computed)
            self._give_back(request)
            self.running.remove(request)

    def close(self) -> None:
        """Leave the node."""
        self.transfer.wait_all_stores()
        del self.worker, self.transfer
        self.session.close()
        self.client.close()


def node_at(socket: str) -> _native.NodeCore:
    """A node with room for 85 chunks, about half of what the prompts below have."""
    node = _native.NodeCore(
        socket_path=socket,
        arena_bytes=1 << 20,
        slab_bytes=1 << 20,
        node_id="model",
        namespace_secret=bytes(32),
        populate=False,
        verify_one_in=1,
    )
    node.start()
    return node


def at_rest(node: _native.NodeCore) -> dict[str, int]:
    """The counters once the node has heard that its clients are gone, and holds nothing for them."""
    deadline = time.monotonic() + 10
    while True:
        stats = node.stats()
        held = {name: stats[name] for name in ("leases_pending", "leases_copying", "slots_filling")}
        if not any(held.values()):
            return stats
        assert time.monotonic() < deadline, held


@pytest.mark.parametrize("trouble", ["none", "restarts", "flips"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_block_that_is_read_holds_what_its_tokens_mean(tmp_path: Path, asynchronous: bool, trouble: str) -> None:
    """Two engines, shared prefixes, preemption, evictions; a node that is replaced by an empty one again and again, or bytes of the arena
    that flip: never a wrong byte, many hits, and at the end no lease and no half-written slot."""
    source = random.Random(1)
    socket = str(tmp_path / "n")
    node = node_at(socket)
    engines = [Engine(socket, number, asynchronous=asynchronous) for number in range(2)]
    stems = [[source.randrange(1000) for _ in range(640)] for _ in range(16)]
    try:
        for number in range(STEPS):
            if trouble == "restarts" and number % 30 == 29:
                node.stop()
                node = node_at(socket)
            if trouble == "flips" and engines[0].session.connected:
                engines[0].session.write_arena(source.randrange(1 << 20), b"!")
            for engine in engines:
                if len(engine.waiting) < 4:
                    stem = source.choice(stems)
                    tail = [source.randrange(1000) for _ in range(source.randrange(60))]
                    engine.submit(stem[: source.randrange(40, 640)] + tail)
                engine.step()
        assert all(engine.loaded_tokens > 1_000 and engine.preemptions > 5 for engine in engines)
        for engine in engines:
            engine.close()
        stats = at_rest(node)
        if trouble == "none":
            assert stats["evicted"] > 20
            assert not any(engine.failed_loads for engine in engines)
        if trouble == "flips":
            assert any(engine.failed_loads for engine in engines)
        assert bool(stats["checksum_failures"]) == (trouble == "flips")
    finally:
        node.stop()
