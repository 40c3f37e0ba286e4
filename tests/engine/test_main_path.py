"""One request's KV goes engine -> node -> another engine and comes out as the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine.engine_client import Engine, Node

Prompt = dict[str, Any]
Answer = dict[str, Any]
BLOCK, CHUNK = 128, 256


def same(ours: list[Answer], theirs: list[Answer], *, logprob_slack: float = 1e-3) -> None:
    """The same tokens, and logprobs as near as another batch shape allows in float32 (0: bit for bit)."""
    assert [answer["tokens"] for answer in ours] == [answer["tokens"] for answer in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for mine, yours in zip(one["logprobs"], other["logprobs"], strict=True):
            shared = mine.keys() & yours.keys()
            assert shared
            for token in shared:
                assert abs(mine[token] - yours[token]) <= logprob_slack


@pytest.mark.parametrize("tokens", [255, 256, 257, 1024, 1100, 2047])
def test_a_prompt_of_one_engine_is_a_hit_in_another(
    pair: tuple[Engine, Engine], reference: Engine, prompt: Callable[..., Prompt], tokens: int
) -> None:
    """Cold, from the own cache and from the commons: the same tokens as without any cache, and as many reused as can be."""
    first, second = pair
    prompts = [prompt(tokens)]
    expected = reference.generate(prompts, max_tokens=8, logprobs=3)
    cold = first.generate(prompts, max_tokens=8, logprobs=3)
    first.call("settle")
    own = first.generate(prompts, max_tokens=8, logprobs=3)
    commons = second.generate(prompts, max_tokens=8, logprobs=3)
    reusable = min(tokens // CHUNK * CHUNK, (tokens - 1) // BLOCK * BLOCK)
    assert (cold[0]["cached"], commons[0]["cached"]) == (0, reusable)
    for answers in (cold, own, commons):
        same(answers, expected)
    if own[0]["cached"] == reusable:
        same(commons, own, logprob_slack=0)


def test_loaded_kv_is_byte_for_byte_what_was_computed(
    pair: tuple[Engine, Engine], prompt: Callable[..., Prompt]
) -> None:
    """Every layer's bytes of every loaded block."""
    first, second = pair
    text = prompt(1100)
    a = first.generate([text])[0]
    first.call("settle")
    b = second.generate([text])[0]
    assert b["cached"] == 1024
    assert first.call("kv", request_id=a["id"], first_block=0, last_block=8) == second.call(
        "kv", request_id=b["id"], first_block=0, last_block=8
    )


def test_an_engine_that_forgot_finds_its_own_kv_in_the_commons(
    pair: tuple[Engine, Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """After a reset of the engine's own prefix cache the KV comes back from the node."""
    first, _ = pair
    text = prompt(1500)
    first.generate([text])
    first.call("settle")
    assert first.call("reset")
    again = first.generate([text], max_tokens=4, logprobs=3)
    assert again[0]["cached"] == 1280
    same(again, reference.generate([text], max_tokens=4, logprobs=3))


def test_requests_at_once_with_shared_prefixes(
    pair: tuple[Engine, Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Several requests share a prefix in the commons and differ behind it; some are new; all run in one batch."""
    first, second = pair
    shared = prompt(1024)
    first.generate([shared])
    first.call("settle")
    prompts = [prompt(1024 + 100 * i, shared) for i in range(1, 5)] + [prompt(700), prompt(600, prompt(512, shared))]
    expected = [reference.generate([text], max_tokens=6, logprobs=3)[0] for text in prompts]
    answers = second.generate(prompts, max_tokens=6, logprobs=3)
    assert [answer["cached"] for answer in answers[:4]] == [1024] * 4
    same(answers, expected)


def test_the_next_turn_of_a_chat_reuses_what_was_generated(
    pair: tuple[Engine, Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Generated tokens are stored as their chunks become whole, so the other engine goes on where this one stopped."""
    first, second = pair
    text = prompt(300)
    answer = first.generate([text], max_tokens=300)[0]
    first.call("settle")
    turn = prompt(700, {"ids": text["ids"] + answer["tokens"]})
    answers = second.generate([turn], max_tokens=4, logprobs=3)
    assert answers[0]["cached"] == 512
    same(answers, reference.generate([turn], max_tokens=4, logprobs=3))


def test_only_the_part_behind_the_own_cache_is_loaded(
    pair: tuple[Engine, Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """An engine that has the first blocks itself loads only what follows them."""
    first, second = pair
    head = prompt(384)
    second.generate([head])
    text = prompt(1400, head)
    first.generate([text])
    first.call("settle")
    before = second.call("metrics").get("load_tokens", 0)
    answers = second.generate([text], max_tokens=4, logprobs=3)
    assert answers[0]["cached"] == 1280
    assert second.call("metrics")["load_tokens"] - before == 1280 - 384
    same(answers, reference.generate([text], max_tokens=4, logprobs=3))


def test_tenants_with_the_same_text_never_hit_across(
    pair: tuple[Engine, Engine], prompt: Callable[..., Prompt]
) -> None:
    """Another salt is another namespace, in the engine's own cache as in the commons."""
    first, second = pair
    text = prompt(1100)
    first.generate([text | {"salt": "alice"}])
    first.call("settle")
    assert second.generate([text | {"salt": "bob"}])[0]["cached"] == 0
    assert second.generate([text])[0]["cached"] == 0
    second.call("reset")
    assert second.generate([text | {"salt": "alice"}])[0]["cached"] == 1024


def test_logprobs_of_a_prompt_are_computed_whole(
    pair: tuple[Engine, Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """A request that wants them skips no position, though its KV is in the commons, and is counted."""
    first, second = pair
    text = prompt(600)
    first.generate([text])
    first.call("settle")
    answer = second.generate([text], max_tokens=1, prompt_logprobs=1)[0]
    expected = reference.generate([text], max_tokens=1, prompt_logprobs=1)[0]
    assert len(answer["prompt_logprobs"]) == 600
    for mine, theirs in zip(answer["prompt_logprobs"][1:], expected["prompt_logprobs"][1:], strict=True):
        assert all(abs(mine[token] - theirs[token]) < 1e-3 for token in mine.keys() & theirs.keys())
    assert second.call("metrics").get("requests|prompt_logprobs", 0) >= 1


def test_after_a_reset_of_the_connector_nothing_old_is_found(
    pair: tuple[Engine, Engine], prompt: Callable[..., Prompt]
) -> None:
    """Weights may have been replaced in place: this engine never again hits what was stored before, and stores anew."""
    _, second = pair
    text = prompt(600)
    second.generate([text])
    second.call("settle")
    assert second.call("reset", connector=True)
    assert second.generate([text])[0]["cached"] == 0
    second.call("settle")
    second.call("reset")
    assert second.generate([text])[0]["cached"] == 512


def test_no_lease_and_no_slot_is_left_behind(
    pair: tuple[Engine, Engine], node: Node, prompt: Callable[..., Prompt]
) -> None:
    """When all requests have ended, the node holds no lease and no half-written slot."""
    first, second = pair
    text = prompt(1100)
    first.generate([text])
    first.call("settle")
    second.generate([text])
    second.call("settle")
    stats = node.stats()
    assert (
        stats["leases_pending"] == stats["leases_copying"] == stats["slots_filling"] == stats["slots_quarantined"] == 0
    )
    assert stats["slots_sealed"] > 0
