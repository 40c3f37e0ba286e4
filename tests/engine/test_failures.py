"""Nodes and engines die in the middle of things: requests are served, the words are the same, and nothing leaks."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine.engine_client import Engine, EngineError, Forge, Node, connector
from engine.test_main_path import same
from kvcommons_core import _native

from bench.models import tiny_llama

Prompt = dict[str, Any]


class Socket:
    """A place where one node after another is started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = str(folder / "node.sock")
        self.node: Node | None = None

    def start(self, **options: Any) -> Node:
        """A fresh node here, after the one before has been stopped."""
        self.stop()
        self.node = Node(self._folder, **options)
        return self.node

    def stop(self) -> None:
        """Leave the place empty."""
        if self.node is not None:
            self.node.close()
            self.node = None


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Generator[Socket]:
    """No node is here at first."""
    socket = Socket(tmp_path_factory.mktemp("n"))
    yield socket
    socket.stop()


@pytest.fixture(scope="module")
def engine(forge: Forge, socket: Socket, tiny: str) -> Generator[Engine]:
    """An engine that was started before there was any node."""
    engine = forge.engine({"model": tiny}, connector(socket=socket.path))
    yield engine
    engine.close()


def attached(engine: Engine, socket: Socket) -> Node:
    """A fresh node to which both sides of the engine have attached."""
    node = socket.start()
    await_attached(engine)
    return node


def await_attached(engine: Engine) -> None:
    """Until what one request stores is found by the next: the engine attaches by itself, within its back-off."""
    for number in range(200):
        text = {"ids": [10 + number] * 300}
        engine.generate([text])
        engine.call("settle")
        engine.call("reset")
        if engine.generate([text])[0]["cached"] == 256:
            return
    raise AssertionError("the engine does not attach")


def test_an_engine_starts_without_a_node_and_attaches_when_one_comes(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """It serves from the first request on; what it can't store is counted; when a node is there, it is used."""
    text = prompt(600)
    same(engine.generate([text], max_tokens=4, logprobs=3), reference.generate([text], max_tokens=4, logprobs=3))
    assert engine.call("metrics")["requests|node_away"] >= 1
    attached(engine, socket)


@pytest.mark.parametrize("where", ["before_load", "after_load", "before_store", "after_store"])
def test_the_node_is_killed_in_the_middle(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt], where: str
) -> None:
    """kill -9 between the lookup and the load, during the load, and around a store: the words stay, and a new node is used."""
    node = attached(engine, socket)
    text = prompt(1100)
    longer = prompt(1700, text)
    engine.generate([text])
    engine.call("settle")
    engine.call("reset")
    expected = reference.generate([longer], max_tokens=6, logprobs=3)
    engine.call("arm", where=where, pid=node.pid)
    same(engine.generate([longer], max_tokens=6, logprobs=3), expected)
    engine.call("reset")
    same(engine.generate([longer], max_tokens=6, logprobs=3), expected)
    attached(engine, socket)
    engine.call("reset")
    same(engine.generate([longer], max_tokens=6, logprobs=3), expected)


def test_a_node_that_hangs_is_as_one_that_is_away(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """A node that is stopped answers nothing: every wait for it is bounded, the words are the same, and it is used again when it goes on."""
    node = attached(engine, socket)
    text = prompt(1100)
    engine.generate([text])
    engine.call("settle")
    engine.call("reset")
    expected = reference.generate([text], max_tokens=6, logprobs=3)
    os.kill(node.pid, signal.SIGSTOP)
    try:
        same(engine.generate([text], max_tokens=6, logprobs=3), expected)
    finally:
        os.kill(node.pid, signal.SIGCONT)
    engine.call("reset")
    await_attached(engine)
    same(engine.generate([text], max_tokens=6, logprobs=3), expected)


def test_a_failed_load_leaves_no_wrong_kv_in_the_engines_own_cache(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Blocks of a load that was refused are not found by the next request with the same prompt, were it even in the same batch."""
    node = attached(engine, socket)
    text = prompt(1100)
    engine.generate([text])
    engine.call("settle")
    engine.call("reset")
    engine.call("arm", where="before_load", pid=node.pid)
    expected = reference.generate([text, prompt(1300, text)], max_tokens=4, logprobs=3)
    batch = [text, {"ids": text["ids"]}]
    answers = engine.generate(batch, max_tokens=4, logprobs=3)
    same(answers, [expected[0], expected[0]])
    again = engine.generate(batch, max_tokens=4, logprobs=3)
    same(again, [expected[0], expected[0]])


def test_a_failed_load_beside_speculative_decoding(
    forge: Forge, socket: Socket, tiny: str, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """There vLLM asks for failed blocks before it ends the step, and rejected drafts stand in the last blocks: the words are the same,
    and so they are when what was stored meanwhile is loaded again."""
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    engine = forge.engine({"model": tiny, "speculative_config": drafts}, connector(socket=socket.path))
    try:
        node = attached(engine, socket)
        text = prompt(1100)
        longer = prompt(1700, text)
        engine.generate([text])
        engine.call("settle")
        engine.call("reset")
        expected = reference.generate([longer], max_tokens=200, logprobs=3)
        engine.call("arm", where="before_load", pid=node.pid)
        same(engine.generate([longer], max_tokens=200, logprobs=3), expected)
        attached(engine, socket)
        for cached in (0, 1536):
            engine.call("reset")
            answers = engine.generate([longer], max_tokens=200, logprobs=3)
            assert answers[0]["cached"] == cached
            same(answers, expected)
            engine.call("settle")
        said = {"ids": [*longer["ids"], *expected[0]["tokens"], 5]}
        engine.call("reset")
        again = engine.generate([said], max_tokens=6, logprobs=3)
        assert again[0]["cached"] == 1792
        same(again, reference.generate([said], max_tokens=6, logprobs=3))
    finally:
        engine.close()


def read_slots(node: Node, engine: Engine, keys: bytes) -> tuple[_native.Client, list[int], int]:
    """A session as the engine's own, the offsets of these chunks and the bytes of a slot."""
    about = engine.call("describe")
    shards = [(tuple(rect), size) for rect, size in about["shards"]]
    client = _native.Client(
        socket_path=node.socket,
        role="worker",
        fingerprint=about["fingerprint"],
        chunk_tokens=256,
        shards=shards,
        own_shard=0,
    )
    assert client.ensure_connected(), client.last_error
    status, lease, hit, _ = client.lookup(keys, 0, True)
    assert (status, hit) == ("ok", len(keys) // 32)
    status, slots = client.begin(lease)
    assert status == "ok"
    client.release(lease)
    return client, [offset for offset, _ in slots], shards[0][1]


def exchange_chunk(node: Node, engine: Engine, text: Prompt, other: Prompt) -> None:
    """Put a chunk of another prompt in the place of the second chunk of `text`.

    Exchanging two chunks of one prompt would not do: each key carries its own rotation, so attention behind both reads the same set.
    """
    from kvcommons_core.keys import namespace_root, token_keys

    root = namespace_root(engine.call("describe")["fingerprint"], bytes(range(32)), "")
    client, offsets, size = read_slots(node, engine, token_keys(root, text["ids"], 256))
    source, others, _ = read_slots(node, engine, token_keys(root, other["ids"], 256))
    client.write_arena(offsets[1], source.read_arena(others[1], size))
    source.close()
    client.close()


def test_the_tests_would_see_a_chunk_that_stands_for_another(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Mutation: on a node that checks nothing, one chunk exchanged for another must change what these tests compare."""
    node = socket.start(verify_one_in=0)
    await_attached(engine)
    text, other = prompt(1100), prompt(1100)
    engine.generate([other])
    first = engine.generate([text], max_tokens=8, logprobs=3)[0]
    before = engine.call("kv", request_id=first["id"], first_block=0, last_block=8)
    engine.call("settle")
    engine.call("reset")
    exchange_chunk(node, engine, text, other)
    answers = engine.generate([text], max_tokens=8, logprobs=3)
    assert answers[0]["cached"] == 1024
    assert engine.call("kv", request_id=answers[0]["id"], first_block=0, last_block=8) != before
    with pytest.raises(AssertionError):
        same(answers, reference.generate([text], max_tokens=8, logprobs=3))
    engine.call("reset")


def test_a_chunk_that_was_overwritten_is_found_out_and_recomputed(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """The same exchange on a node that checks every read: a failed load, the right words."""
    node = attached(engine, socket)
    text, other = prompt(1100), prompt(1100)
    engine.generate([text, other])
    engine.call("settle")
    engine.call("reset")
    exchange_chunk(node, engine, text, other)
    same(engine.generate([text], max_tokens=8, logprobs=3), reference.generate([text], max_tokens=8, logprobs=3))
    assert node.stats()["checksum_failures"] > 0


def test_an_arena_that_is_too_small_costs_time_only(
    engine: Engine, socket: Socket, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """A working set of several times the arena: evictions and refusals, and the right words."""
    node = socket.start(arena_bytes=8 << 20, slab_bytes=1 << 20)
    await_attached(engine)
    texts = [prompt(2000) for _ in range(6)]
    expected = reference.generate(texts, max_tokens=2, logprobs=3)
    for _ in range(2):
        same(engine.generate(texts, max_tokens=2, logprobs=3), expected)
        engine.call("settle")
        engine.call("reset")
    stats = node.stats()
    assert stats["evicted"] + stats["reserve_full"] > 0
    assert stats["used_bytes"] <= 8 << 20


def test_other_weights_are_another_namespace(
    engine_of: Callable[..., Engine], engine: Engine, socket: Socket, models: Path, prompt: Callable[..., Prompt]
) -> None:
    """A second model of the same shape on the same node never hits the first one's chunks."""
    attached(engine, socket)
    other = engine_of({"model": str(tiny_llama(models / "tiny-llama-1", seed=1))}, connector(socket=socket.path))
    text = prompt(1100)
    engine.generate([text])
    engine.call("settle")
    cold = other.generate([text], max_tokens=4)
    assert cold[0]["cached"] == 0
    other.call("settle")
    other.call("reset")
    warm = other.generate([text], max_tokens=4)
    assert (warm[0]["cached"], warm[0]["tokens"]) == (1024, cold[0]["tokens"])


def test_an_engine_that_is_killed_while_it_loads_leaks_no_lease(
    forge: Forge, engine: Engine, socket: Socket, tiny: str, prompt: Callable[..., Prompt]
) -> None:
    """Three rounds of kill -9 of an engine that holds a lease it has begun: the node proves the death and takes the slots back."""
    node = attached(engine, socket)
    text = prompt(1100)
    engine.generate([text])
    engine.call("settle")
    holds = {"hold_load": "leases_copying", "hold_store": "slots_filling"}
    for where in ("hold_load", "hold_store", "hold_load"):
        victim = forge.engine({"model": tiny}, connector(socket=socket.path))
        victim.call("arm", where=where)
        victim.start("generate", prompts=[text if where == "hold_load" else prompt(600)])
        await_stats(node, partial(holding, holds[where]))
        victim.kill()
        await_stats(node, at_rest)
    engine.call("reset")
    assert engine.generate([text])[0]["cached"] == 1024


def holding(what: str, stats: dict[str, int]) -> bool:
    """Something of this kind is held."""
    return stats[what] > 0


def at_rest(stats: dict[str, int]) -> bool:
    """Nobody reads, nobody writes, nothing waits for a proof of death."""
    return not any(stats[name] for name in ("leases_copying", "leases_pending", "slots_filling", "slots_quarantined"))


def await_stats(node: Node, condition: Callable[[dict[str, int]], bool]) -> None:
    """Until the node's counters satisfy the condition."""
    stats: dict[str, int] = {}
    for _ in range(600):
        stats = node.stats()
        if condition(stats):
            return
        select.select([], [], [], 0.05)
    raise AssertionError(f"not reached: {stats}")


def test_a_worker_that_is_killed_takes_its_engine_and_nothing_else_down(
    forge: Forge, engine: Engine, socket: Socket, tiny: str, prompt: Callable[..., Prompt]
) -> None:
    """vLLM's default: core and worker in processes of their own. Hits work there too; a killed worker leaves the node whole."""
    node = attached(engine, socket)
    text = prompt(1100)
    engine.generate([text])
    engine.call("settle")
    victim = forge.engine({"model": tiny}, connector(socket=socket.path), VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert victim.generate([text])[0]["cached"] == 1024
    os.kill(victim.call("worker_pids")[0], signal.SIGKILL)
    with pytest.raises(EngineError):
        victim.generate([prompt(1500)])
    victim.kill()
    await_stats(
        node, lambda stats: stats["leases_copying"] == stats["slots_filling"] == stats["slots_quarantined"] == 0
    )
    engine.call("reset")
    assert engine.generate([text])[0]["cached"] == 1024


def test_the_router_hears_what_was_stored_and_what_was_reused(
    engine: Engine, socket: Socket, prompt: Callable[..., Prompt]
) -> None:
    """A request's text keys are published with the chunks that hold its text; its feedback has the router's id and the truth."""
    socket.stop()
    node = _native.NodeCore(
        socket_path=socket.path,
        arena_bytes=64 << 20,
        slab_bytes=8 << 20,
        node_id="events",
        namespace_secret=bytes(range(32)),
        populate=False,
    )
    node.start()
    try:
        await_attached(engine)
        keys = [f"{number:016x}" for number in range(1, 5)]
        hints = {"kvcommons": {"v": 1, "request_id": "router-1", "text_keys": keys, "text_bytes": 4 * 2048}}
        text = prompt(1024) | {"kv_transfer_params": hints}
        node.drain_events(10_000)
        engine.generate([text])
        engine.call("settle")
        engine.call("reset")
        engine.generate([text])
        events, gap = node.drain_events(10_000)
    finally:
        node.stop()
    assert not gap
    committed = [event[3] for event in events if event[0] == "committed"]
    assert committed == [(1,), (2,), (3,), (4,)]
    feedbacks = [json.loads(event[4]) for event in events if event[0] == "feedback"]
    ours = [feedback for feedback in feedbacks if feedback["request_id"] == "router-1"]
    assert [(item["own_tokens"], item["commons_tokens"], item["computed_tokens"]) for item in ours] == [
        (0, 0, 1024),
        (0, 896, 128),
    ]
