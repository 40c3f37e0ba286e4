"""Two engines under load while their node is killed again and again, at points that a printed seed chooses: the words never change."""

from __future__ import annotations

import os
import random
import select
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from engine.conftest import forge, models, prompt, reference, tiny
from engine.engine_client import Engine, Forge, Node, connector
from engine.test_failures import at_rest, await_stats
from engine.test_main_path import same

__all__ = ["forge", "models", "prompt", "reference", "tiny"]  # fixtures of the engine suite

Prompt = dict[str, Any]
ROUNDS = int(os.environ.get("KVCOMMONS_KILL_ROUNDS", "20"))


@pytest.fixture
def node(tmp_path: Path) -> Generator[Node]:
    """A node that is started again after each kill."""
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture
def engines(forge: Forge, node: Node, tiny: str) -> Generator[list[Engine]]:
    """Two engines with room for few prompts each, so that they preempt as well."""
    small = {"model": tiny, "num_gpu_blocks_override": 40, "max_model_len": 2_048}
    begun = [forge.begin(small, connector(socket=node.socket)) for _ in range(2)]
    made = [Engine(*item) for item in begun]
    yield made
    for engine in made:
        engine.close()


def reached(node: Node, lookups: int) -> None:
    """Until the node has been asked so often, or the engines are done asking."""
    for _ in range(400):
        if node.stats()["lookups"] >= lookups:
            return
        select.select([], [], [], 0.005)


@pytest.mark.timeout(1_200)
def test_a_node_killed_at_any_point_changes_no_word(
    node: Node, engines: list[Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Loads and stores are cut off in the middle, on a new and on a known text; each answer is what it is without us."""
    seed = int(os.environ.get("KVCOMMONS_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"KVCOMMONS_SEED={seed}")  # noqa: T201 - repeats this run
    source = random.Random(seed)
    shared = prompt(700)
    for _ in range(ROUNDS):
        texts = [prompt(source.choice([700, 1100, 1500]), shared) for _ in range(4)]
        expected = reference.generate(texts, max_tokens=6, logprobs=3)
        for engine in engines:
            engine.call("reset")
            engine.start("generate", prompts=texts, max_tokens=6, logprobs=3)
        reached(node, node.stats()["lookups"] + source.randrange(1, 8))
        node.kill()
        back_at_once = source.random() < 0.5
        if back_at_once:
            node.start()
        for engine in engines:
            same(engine.result(), expected)
        if not back_at_once:
            node.start()
        for engine in engines:
            same(engine.generate(texts, max_tokens=6, logprobs=3), expected)
            engine.call("settle")
    await_stats(node, at_rest)
