"""The loads of the throughput benchmark: always the same, and honest about how much of them can be reused."""

from __future__ import annotations

import pytest
from kvcommons_cli.talk import TalkError
from kvcommons_core.redis_server import free_port

from bench.throughput import (
    BLOCK_TOKENS,
    DOCUMENT_TOKENS,
    TURNS,
    WARM_TURNS,
    Load,
    ask_all,
    chat_load,
    rag_load,
    reuse_possible,
)


def test_loads_are_always_the_same() -> None:
    """Everyone who is compared is asked the same prompts in the same order."""
    assert rag_load(5) == rag_load(5)
    assert chat_load(3) == chat_load(3)


def test_a_chat_s_history_grows_and_its_sessions_share_their_beginning() -> None:
    """A session's turn begins with its whole turn before; all sessions begin with the same system prompt."""
    load = chat_load(3)
    assert len(load.rounds) == TURNS - WARM_TURNS
    assert len(load.warm_up) == 3 * WARM_TURNS
    for earlier, later in zip([load.warm_up, *load.rounds], load.rounds, strict=False):
        assert all(any(prompt[: len(before)] == before for before in earlier) for prompt in later)
    assert len({tuple(prompt[:512]) for prompt in load.prompts}) == 1


def test_what_can_be_reused_counts_whole_blocks_that_came_before() -> None:
    """A block counts only if it and all before it were seen; what the warm-up computed counts, but is not timed."""
    text = list(range(16, 16 + 3 * BLOCK_TOKENS))
    again, other = [*text, 1], [9, *text[1:]]
    assert reuse_possible(Load("x", [], [[text, text]])) == 0.5
    assert reuse_possible(Load("x", [text], [[text]])) == 1.0
    assert reuse_possible(Load("x", [text], [[other]])) == 0.0
    assert reuse_possible(Load("x", [text], [[again]])) == round(3 * BLOCK_TOKENS / len(again), 3)


def test_every_document_has_been_asked_about_before() -> None:
    """The timed questions find each document computed once: 97 % can be reused, the questions themselves can't."""
    load = rag_load(20)
    known = {tuple(prompt[:DOCUMENT_TOKENS]) for prompt in load.warm_up}
    assert all(tuple(prompt[:DOCUMENT_TOKENS]) in known for prompt in load.prompts)
    assert reuse_possible(load) == pytest.approx(0.97, abs=0.001)


def test_an_engine_that_fails_ends_the_measurement() -> None:
    """A failed request is never counted as a fast one."""
    with pytest.raises(TalkError):
        ask_all([[1, 2, 3]] * 4, [f"http://127.0.0.1:{free_port()}"], clients=2)
