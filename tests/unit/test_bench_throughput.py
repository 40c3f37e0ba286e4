"""The throughput benchmark: loads that are always the same and honest about what can be reused, processor time by part, ratios."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvcommons_cli.talk import TalkError
from kvcommons_core.redis_server import free_port

from bench.loads import BLOCK_TOKENS, Chats, Load, Question, chat_load, rag_load, reuse_possible, sent_to
from bench.processor_time import TICKS_S, grown_ms, processor_seconds
from bench.throughput import ask_all, ratios_of


def test_loads_are_always_the_same() -> None:
    """Everyone who is compared is asked the same prompts in the same order."""
    assert rag_load(5) == rag_load(5)
    assert chat_load(Chats(3)) == chat_load(Chats(3))


def test_a_chat_s_history_grows_and_its_sessions_share_their_beginning() -> None:
    """A session's turn begins with its whole turn before; all sessions begin with the same system prompt."""
    chats = Chats(3)
    load = chat_load(chats)
    assert len(load.rounds) == chats.timed_turns
    assert len(load.warm_up) == 3
    for earlier, later in zip([load.warm_up, *load.rounds], load.rounds, strict=False):
        for question in later:
            before = [asked.ids for asked in earlier if asked.place == question.place][-1]
            assert question.ids[: len(before)] == before
    assert len({tuple(question.ids[: chats.system_tokens]) for question in load.questions}) == 1


def once(*prompts: list[int]) -> list[Question]:
    """Prompts of one place."""
    return [Question(0, ids) for ids in prompts]


def test_what_can_be_reused_counts_whole_blocks_that_came_before() -> None:
    """A block counts only if it and all before it were seen; what the warm-up computed counts, but is not timed."""
    text = list(range(16, 16 + 3 * BLOCK_TOKENS))
    again, other = [*text, 1], [9, *text[1:]]
    assert reuse_possible(Load("x", [], [once(text, text)])) == 0.5
    assert reuse_possible(Load("x", once(text), [once(text)])) == 1.0
    assert reuse_possible(Load("x", once(text), [once(other)])) == 0.0
    assert reuse_possible(Load("x", once(text), [once(again)])) == round(3 * BLOCK_TOKENS / len(again), 3)


def test_every_document_has_been_asked_about_before() -> None:
    """The timed questions find each document computed once: 97 % can be reused, the questions themselves can't."""
    load = rag_load(20)
    known = {question.place: question.ids[:2_048] for question in load.warm_up}
    assert all(question.ids[:2_048] == known[question.place] for question in load.questions)
    assert reuse_possible(load) == pytest.approx(0.97, abs=0.001)


def test_who_keeps_to_a_place_always_asks_the_same_engine() -> None:
    """The ceiling's clients find what their chat has computed; the others take turns, as a plain service does."""
    asked = [Question(place, [1]) for place in (0, 0, 1, 0)]
    assert sent_to(asked, ["a", "b"], by_place=True) == ["a", "a", "b", "a"]
    assert sent_to(asked, ["a", "b"], by_place=False) == ["a", "b", "a", "b"]


def test_an_engine_that_fails_ends_the_measurement() -> None:
    """A failed request is never counted as a fast one."""
    with pytest.raises(TalkError):
        ask_all(once([1, 2, 3]) * 4, [f"http://127.0.0.1:{free_port()}"] * 4, clients=2, answer_tokens=1)


def test_ratios_compare_with_everybody_and_with_the_ceiling() -> None:
    """What a perfect cache would have reached stands beside what we reached, both over vLLM alone."""
    rates = {"vllm": 2.0, "ceiling": 5.0, "kvcommons": 4.0, "lmcache": 3.2}
    figures = {
        "chat": {"prompts": 9}
        | {who: {"requests_s": rate, "cpu_ms_request": {"all": 900 / rate}} for who, rate in rates.items()}
    }
    assert ratios_of(figures, [Load("chat", [], [])]) == {
        "chat_over_vllm": 2.0,
        "chat_over_lmcache": 1.25,
        "chat_of_ceiling": 0.8,
        "chat_ceiling_over_vllm": 2.5,
        "chat_over_vllm_by_cpu": 2.0,
        "chat_ceiling_over_vllm_by_cpu": 2.5,
    }


def test_processor_time_is_counted_by_what_a_process_is(tmp_path: Path) -> None:
    """What an API server started is its engine; a guard is told from the command that it guards; others' processes don't count."""
    lines = {
        10: (1, "python -m bench.throughput", 5),
        11: (10, "python -I guard.py 1 2 3 -- python -m vllm.entrypoints.openai.api_server", 1),
        12: (11, "python -m vllm.entrypoints.openai.api_server", 20),
        13: (12, "VLLM::EngineCore) R 1 (", 300),
        14: (10, "python -m kvcommons_node.holder", 2),
        15: (10, "python -m kvcommons_node --node-id local", 4),
        16: (1, "python -m kvcommons_router", 999),
    }
    for pid, (parent, line, ticks) in lines.items():
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes(line.encode().replace(b" ", b"\0"))
        (folder / "stat").write_text(
            f"{pid} ({line[-15:]}) S {parent} " + "0 " * 9 + f"{ticks} 0 0 0", encoding="utf-8"
        )
    found = {part: round(seconds * TICKS_S) for part, seconds in processor_seconds(10, tmp_path).items()}
    assert found == {"client": 5, "guard": 1, "api": 20, "engine": 300, "holder": 2, "node": 4}


def test_processor_time_of_a_request_is_what_has_grown() -> None:
    """Milliseconds a request by part, without parts that did nothing."""
    assert grown_ms({"engine": 1.0, "node": 2.0}, {"engine": 2.0, "node": 2.0, "api": 0.5}, 10) == {
        "api": 50.0,
        "engine": 100.0,
        "all": 150.0,
    }
