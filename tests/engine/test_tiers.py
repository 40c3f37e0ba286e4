"""A real engine beside a node whose memory is too small: what the memory let go of comes back from the disk, also made smaller."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.engine_client import Engine, Node, connector
from engine.test_failures import await_attached
from engine.test_main_path import Prompt, same

PROMPT_TOKENS = 1100
REUSED_TOKENS = 1024
CHUNKS = 4
ARENA_BYTES = 8 << 20
"""Sixteen chunks of the tiny model, of the forty that are stored."""
WAIT_SECONDS_MAX = 30.0


def on_disk(node: Node, chunks: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while node.stats()["tier_written"] < chunks:
        assert time.monotonic() < deadline, f"{chunks} chunks are not on the disk: {node.stats()}"
        select.select([], [], [], 0.01)


def disk_of(folder: Path, **values: Any) -> dict[str, Any]:
    """A disk in `folder`, on whatever file system that is."""
    (folder / "disk").mkdir(exist_ok=True)
    disk = {"paths": [str(folder / "disk")], "capacity_bytes": 256 << 20, "segment_bytes": 16 << 20, "buffered": True}
    return disk | values


def test_a_prompt_that_memory_let_go_of_is_answered_from_the_disk(
    tmp_path: Path,
    tiny: str,
    engine_of: Callable[..., Engine],
    reference: Engine,
    prompt: Callable[..., Prompt],
) -> None:
    """The engine waits for the chunks instead of computing them, says the same tokens, and nothing stays behind in the node."""
    node = Node(tmp_path, arena_bytes=ARENA_BYTES, slab_bytes=1 << 20, disk=disk_of(tmp_path))
    engine = engine_of({"model": tiny}, connector(socket=node.socket, fetch_ms_max=20_000))
    texts = [prompt(PROMPT_TOKENS) for _ in range(10)]
    for number, text in enumerate(texts):
        engine.generate([text])
        engine.call("settle")
        on_disk(node, (number + 1) * CHUNKS)
    assert engine.call("reset")
    before = node.stats()
    assert before["evicted"] > 0
    again = engine.generate(texts[:2], max_tokens=6, logprobs=3)
    assert [answer["cached"] for answer in again] == [REUSED_TOKENS] * 2
    same(again, [reference.generate([text], max_tokens=6, logprobs=3)[0] for text in texts[:2]])
    engine.call("settle")
    after = node.stats()
    assert after["tier_promoted_chunks"] - before["tier_promoted_chunks"] == 2 * CHUNKS
    assert after["slots_filling"] == after["leases_copying"] == after["slots_quarantined"] == 0
    engine.close()
    node.close()


def test_a_codec_without_loss_changes_no_token_and_one_with_loss_answers_no_exact_engine(
    tmp_path: Path,
    tiny: str,
    engine_of: Callable[..., Engine],
    reference: Engine,
    prompt: Callable[..., Prompt],
) -> None:
    """Three lives of a node over one disk: without loss the tokens are those of an engine that computed; with loss allowed, that node
    finds nothing exact and answers from what it made; and where loss is not allowed again, nothing of that is ever used."""

    def life(engine: Engine | None, **values: Any) -> Node:
        node = Node(tmp_path, arena_bytes=ARENA_BYTES, slab_bytes=1 << 20, disk=disk_of(tmp_path, **values))
        if engine is not None:
            await_attached(engine)
        return node

    def fill(node: Node, engine: Engine, texts: list[Prompt]) -> None:
        """More than memory holds; the first of them is on the disk alone then."""
        for text in texts:
            before = node.stats()["tier_written"]
            engine.generate([text])
            engine.call("settle")
            on_disk(node, before + CHUNKS)
        assert engine.call("reset")

    def cached(engine: Engine, text: Prompt) -> int:
        engine.call("reset")
        return int(engine.generate([text], max_tokens=2)[0]["cached"])

    node = life(None, codec="lossless")
    engine = engine_of({"model": tiny}, connector(socket=node.socket, fetch_ms_max=20_000))
    exact, changed = [prompt(PROMPT_TOKENS) for _ in range(6)], [prompt(PROMPT_TOKENS) for _ in range(6)]
    fill(node, engine, exact)
    again = engine.generate(exact[:1], max_tokens=6, logprobs=3)
    assert again[0]["cached"] == REUSED_TOKENS
    same(again, reference.generate(exact[:1], max_tokens=6, logprobs=3))
    node.close()

    node = life(engine, codec="int8", lossy="allow")
    fill(node, engine, changed)
    assert cached(engine, changed[0]) == REUSED_TOKENS
    assert cached(engine, exact[1]) == 0
    node.close()

    node = life(engine, codec="none")
    assert cached(engine, changed[1]) == 0
    engine.call("reset")
    again = engine.generate(exact[2:3], max_tokens=6, logprobs=3)
    assert again[0]["cached"] == REUSED_TOKENS
    same(again, reference.generate(exact[2:3], max_tokens=6, logprobs=3))
    engine.close()
    node.close()
