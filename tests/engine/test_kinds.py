"""Models of each kind, adapters, embeddings, ranks: identical with the cache, or counted as not cacheable; never wrong."""

from __future__ import annotations

import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import kinds
from engine.engine_client import Engine, Node, connector
from engine.test_main_path import same

Prompt = dict[str, Any]
NOT_CACHEABLE = {
    "sliding_window": "kv_kind",
    "mixed_windows": "kv_groups",
    "hybrid_delta": "kv_groups",
    "latent_attention": "no_prefix",  # vLLM's CPU kernel for MLA can't go on from a prefix (with AMX it can)
}


def cold_and_again(engine: Engine, prompts: list[Prompt], **arguments: Any) -> tuple[list[Any], list[Any]]:
    """The answers of an engine that has never seen the prompts, and again after it has forgotten its own cache."""
    cold = engine.generate(prompts, max_tokens=6, logprobs=3, **arguments)
    engine.call("settle")
    engine.call("reset")
    return cold, engine.generate(prompts, max_tokens=6, logprobs=3, **arguments)


@pytest.mark.parametrize("kind", NOT_CACHEABLE)
def test_a_model_that_keeps_less_than_every_tokens_kv_is_served_and_counted(
    kind: str, engine_of: Callable[..., Engine], models: Path, node: Node, prompt: Callable[..., Prompt]
) -> None:
    """Windows and recurrent states: nothing is stored, nothing loaded, the reason is on /metrics."""
    dtype = "bfloat16" if kind == "hybrid_delta" else "float32"  # the only one that its CPU kernel has
    engine = engine_of({"model": getattr(kinds, kind)(models / kind), "dtype": dtype}, connector(socket=node.socket))
    before = node.stats()["committed"]
    cold, again = cold_and_again(engine, [prompt(1100)])
    same(again, cold)
    assert again[0]["cached"] == 0
    assert node.stats()["committed"] == before
    assert engine.call("metrics")[f"requests|{NOT_CACHEABLE[kind]}"] >= 2


def test_what_is_heard_is_part_of_the_identity(
    engine_of: Callable[..., Engine], models: Path, node: Node, prompt: Callable[..., Prompt]
) -> None:
    """The same tokens with another sound never hit behind it; with the same one they do, and say the same; a sound that the client gave a
    name of its own is not cached."""
    settings = {"model": kinds.multimodal(models / "multimodal"), "skip_tokenizer_init": False}
    engine = engine_of(settings | {"limit_mm_per_prompt": {"audio": 1}}, connector(socket=node.socket))
    text = prompt(1100)
    text["ids"][300] = kinds.AUDIO_TOKEN
    one, other = text | {"sound": 1}, text | {"sound": 2}
    cold, again = cold_and_again(engine, [one])
    assert (cold[0]["cached"], again[0]["cached"]) == (0, 1024)
    same(again, cold)
    assert engine.generate([other], max_tokens=6, logprobs=3)[0]["cached"] <= 300
    named, named_again = cold_and_again(engine, [one | {"sound_id": "my-recording"}])
    same(named_again, named)
    assert named_again[0]["cached"] == 0
    assert engine.call("metrics")["requests|mm_identity"] >= 2


def test_two_ranks_each_keep_their_heads(
    engine_of: Callable[..., Engine], tiny: str, node: Node, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Tensor parallelism: a chunk is there when both ranks have committed their shard, and both load theirs."""
    engine = engine_of({"model": tiny, "tensor_parallel_size": 2}, connector(socket=node.socket))
    assert [rect for rect, _ in engine.call("describe")["shards"]] == [(0, 4, 0, 1), (0, 4, 1, 2)]
    texts = [prompt(1100), prompt(700)]
    cold, again = cold_and_again(engine, texts)
    assert [answer["cached"] for answer in again] == [1024, 512]
    expected = reference.generate(texts, max_tokens=6, logprobs=3)
    same(cold, expected)
    same(again, expected)


def test_a_small_pool_of_blocks_preempts_and_chunks_and_stays_right(
    engine_of: Callable[..., Engine], tiny: str, node: Node, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """Preemption and chunked prefill, with stores in flight and loads of what was stored before."""
    limits = {"num_gpu_blocks_override": 22, "max_model_len": 2048, "max_num_batched_tokens": 384}
    engine = engine_of({"model": tiny, **limits}, connector(socket=node.socket))
    texts = [prompt(700 + 50 * number) for number in range(4)]
    expected = [reference.generate([text], max_tokens=200, logprobs=3)[0] for text in texts]
    for _ in range(2):
        same(engine.generate(texts, max_tokens=200, logprobs=3), expected)
        engine.call("settle")
        engine.call("reset")
    assert engine.call("metrics", prefix="vllm:")["num_preemptions"] > 0
    assert engine.call("metrics")["load_tokens"] > 0


@pytest.fixture(scope="module")
def lora_engine(forge: Any, tiny: str, node: Node) -> Any:
    """An engine that takes adapters and prompt embeddings."""
    settings = {"model": tiny, "enable_lora": True, "max_lora_rank": 8, "max_loras": 2, "enable_prompt_embeds": True}
    engine = forge.engine(settings, connector(socket=node.socket))
    yield engine
    engine.close()


def test_an_adapter_that_was_reloaded_under_its_old_name_is_another(
    lora_engine: Engine, tiny: str, tmp_path: Path, prompt: Callable[..., Prompt]
) -> None:
    """The identity is the adapter's content: not its name, its number or its folder."""
    folder = tmp_path / "adapter"
    text = prompt(1100)
    old = text | {"lora": ["adapter", 1, kinds.lora(folder, tiny, seed=1)]}
    cold, again = cold_and_again(lora_engine, [old])
    assert again[0]["cached"] == 1024
    same(again, cold)
    plain = lora_engine.generate([text], max_tokens=6, logprobs=3)
    assert plain[0]["cached"] == 0
    new = text | {"lora": ["adapter", 2, kinds.lora(folder, tiny, seed=2)]}
    lora_engine.call("reset")
    other, other_again = cold_and_again(lora_engine, [new])
    assert (other[0]["cached"], other_again[0]["cached"]) == (0, 1024)
    same(other_again, other)
    assert other[0]["tokens"] != cold[0]["tokens"]
    copy = text | {"lora": ["another-name", 3, kinds.lora(tmp_path / "copy", tiny, seed=1)]}
    moved = lora_engine.generate([copy], max_tokens=6, logprobs=3)
    assert moved[0]["cached"] == 1024
    same(moved, cold)


def test_prompt_embeddings_are_served_and_counted(lora_engine: Engine) -> None:
    """They have no token ids: not cached, not confused with a prompt of as many zeros."""
    one, two = ({"embeds": seed, "length": 600, "width": 128} for seed in (1, 2))
    cold, again = cold_and_again(lora_engine, [one])
    same(again, cold)
    assert again[0]["cached"] == 0
    assert lora_engine.generate([two], max_tokens=6)[0]["cached"] == 0
    assert lora_engine.generate([{"ids": [0] * 600}], max_tokens=6)[0]["cached"] == 0
    assert lora_engine.call("metrics")["requests|prompt_embeds"] >= 3


def test_under_a_multi_connector(
    engine_of: Callable[..., Engine],
    tiny: str,
    node: Node,
    reference: Engine,
    tmp_path: Path,
    prompt: Callable[..., Prompt],
) -> None:
    """Beside another connector, whose metadata are not ours."""
    ours = connector(socket=node.socket)
    theirs = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    both = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [ours, theirs]},
    }
    engine = engine_of({"model": tiny, "disable_hybrid_kv_cache_manager": True}, both)
    text = prompt(1100)
    expected = reference.generate([text], max_tokens=4, logprobs=3)
    same(engine.generate([text], max_tokens=4, logprobs=3), expected)
    engine.call("reset")
    again = engine.generate([text], max_tokens=4, logprobs=3)
    assert again[0]["cached"] == 1024
    same(again, expected)


def test_an_engine_with_nothing_but_a_size(
    engine_of: Callable[..., Engine], tiny: str, reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """LLM(...) with a size starts a private node, which ends with the engine."""
    engine = engine_of({"model": tiny}, connector(size="64MiB"))
    text = prompt(1100)
    cold, again = cold_and_again(engine, [text])
    assert again[0]["cached"] == 1024
    same(again, cold)
    pid = engine.call("describe")["private_pid"]
    assert Path(f"/proc/{pid}").exists()
    engine.kill()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        select.select([], [], [], 0.05)
    raise AssertionError("the private node outlives its engine")
