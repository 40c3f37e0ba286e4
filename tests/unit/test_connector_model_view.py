"""What the connector makes of a model that vLLM has loaded: identity, shards, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kvcommons_connector.layout import LayoutError
from kvcommons_connector.vllm_model import RankView, Unsupported, check_model, describe_rank


@dataclass
class FullAttentionSpec:
    """As vLLM's, as far as it is read; told apart by the class's name."""

    block_size: int = 128
    head_size: int = 64
    dtype: str = "torch.float32"
    sliding_window: int | None = None
    non_causal: bool = False
    tokens_per_state: int = 1
    kv_quant_mode: str = "NONE"


class MLAAttentionSpec(FullAttentionSpec):
    """One latent for all heads."""


class SlidingWindowSpec(FullAttentionSpec):
    """Keeps a window only."""


class Tensor:
    """A layer's KV: [blocks, heads, tokens, content], contiguous float32."""

    def __init__(self, address: int, heads: int = 2, blocks: int = 10) -> None:
        self.shape, self._address = (blocks, heads, 128, 128), address
        self._strides = (heads * 128 * 128, 128 * 128, 128, 1)

    def stride(self) -> tuple[int, ...]:
        """In elements."""
        return self._strides

    def element_size(self) -> int:
        """Of float32."""
        return 4

    def data_ptr(self) -> int:
        """Differs by layer."""
        return self._address


def config(tmp_path: Path, **changes: Any) -> Any:
    """A vLLM configuration; a change is named section__field."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    sections = {
        "model_config": SimpleNamespace(
            is_encoder_decoder=False,
            model=str(tmp_path),
            revision=None,
            dtype="torch.float32",
            quantization=None,
            hf_overrides={},
            hf_text_config=SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
            get_total_num_kv_heads=lambda: 4,
            get_total_num_hidden_layers=lambda: 4,
        ),
        "parallel_config": SimpleNamespace(
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        "scheduler_config": SimpleNamespace(enable_chunked_prefill=True),
        "cache_config": SimpleNamespace(enable_prefix_caching=True, cache_dtype="auto", calculate_kv_scales=False),
        "load_config": SimpleNamespace(load_format="auto"),
    }
    speculative = changes.pop("speculative_config", None)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        setattr(sections[section], field, value)
    return SimpleNamespace(**sections, speculative_config=speculative)


def kv_config(*specs: Any, **fields: Any) -> Any:
    """vLLM's KV cache configuration."""
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs or (FullAttentionSpec(),)]
    return SimpleNamespace(**({"kv_cache_groups": groups, "num_blocks": 10, "kv_tp_replicas": 1} | fields))


def tensors(layers: range, heads: int = 2) -> dict[str, Tensor]:
    """In an order that is not the model's."""
    return {f"model.layers.{layer}.attn": Tensor(4096 * (layer + 1), heads) for layer in reversed(layers)}


def view(
    tmp_path: Path, kv_caches: dict[str, Tensor], kv: Any = None, *, tp_rank: int = 0, pp_rank: int = 0, **changes: Any
) -> RankView:
    """One rank."""
    return describe_rank(
        config(tmp_path, **changes),
        kv or kv_config(),
        kv_caches,
        chunk_tokens=256,
        tp_rank=tp_rank,
        pp_rank=pp_rank,
        platform="cpu:test",
    )


@pytest.fixture(autouse=True)
def _digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCOMMONS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("changes", "specs", "reason"),
    [
        ({"model_config__is_encoder_decoder": True}, (), "encoder_decoder"),
        ({}, (FullAttentionSpec(), SlidingWindowSpec()), "kv_groups"),
        ({}, (SlidingWindowSpec(),), "kv_kind"),
        ({}, (FullAttentionSpec(non_causal=True),), "kv_kind"),
        (
            {"scheduler_config__enable_chunked_prefill": False, "cache_config__enable_prefix_caching": False},
            (),
            "no_prefix",
        ),
        ({"parallel_config__decode_context_parallel_size": 2}, (), "context_parallel"),
        ({"speculative_config": SimpleNamespace(method="eagle")}, (), "draft_model"),
        ({"cache_config__calculate_kv_scales": True}, (), "kv_scales"),
    ],
)
def test_a_model_that_cannot_be_cached_exactly_has_a_reason(
    tmp_path: Path, changes: dict[str, Any], specs: tuple[Any, ...], reason: str
) -> None:
    """Both sides of the connector come to the same verdict, before anything is opened."""
    with pytest.raises(Unsupported) as caught:
        check_model(config(tmp_path, **changes), kv_config(*specs))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"load_config__load_format": "dummy"}, "dummy_weights"),
        ({"model_config__hf_overrides": lambda config: config}, "hf_overrides"),
        ({"model_config__hf_config_path": "elsewhere"}, "hf_config_path"),
        ({"model_config__model_weights": "s3://bucket/model"}, "model_weights"),
        ({"parallel_config__pipeline_parallel_size": 3}, "pipeline"),
    ],
)
def test_an_identity_that_is_not_known_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """Made-up weights, a configuration changed by a program, layers divided in a way that only vLLM knows."""
    with pytest.raises(Unsupported) as caught:
        view(tmp_path, tensors(range(4)), **changes)
    assert caught.value.reason == reason


def test_speculation_without_a_second_model_is_fine(tmp_path: Path) -> None:
    """It keeps no KV of its own."""
    check_model(config(tmp_path, speculative_config=SimpleNamespace(method="ngram")), kv_config())


def test_layers_stand_in_the_models_order(tmp_path: Path) -> None:
    """Whatever order they were registered in; layers that share a tensor are one."""
    caches = tensors(range(4), heads=4) | {"model.layers.3.shared": Tensor(4096 * 4, 4)}
    seen = view(tmp_path, caches)
    assert [layer.base for layer in seen.layers] == [4096, 8192, 12288, 16384]
    assert seen.layer_index["model.layers.3.shared"] == seen.layer_index["model.layers.3.attn"] == 3
    assert seen.shards == (((0, 4, 0, 4), 4 * 2 * 4 * 128 * 128 * 4),)


def test_ranks_share_one_fingerprint_and_own_different_shards(tmp_path: Path) -> None:
    """Two tensor-parallel ranks in two stages: four shards, one identity; and the same identity as a single rank's."""
    single = view(tmp_path, tensors(range(4), heads=4))
    sizes = {"parallel_config__tensor_parallel_size": 2, "parallel_config__pipeline_parallel_size": 2}
    ranks = [
        view(tmp_path, tensors(range(2 * pp, 2 * pp + 2)), tp_rank=tp, pp_rank=pp, **sizes)
        for pp in range(2)
        for tp in range(2)
    ]
    assert {rank.identity.fingerprint() for rank in [*ranks, single]} == {single.identity.fingerprint()}
    assert [rank.own_shard for rank in ranks] == [0, 1, 2, 3]
    assert [rect for rect, _ in ranks[0].shards] == [(0, 2, 0, 2), (0, 2, 2, 4), (2, 4, 0, 2), (2, 4, 2, 4)]


def test_what_all_ranks_hold_alike_is_stored_by_one(tmp_path: Path) -> None:
    """MLA: one shard, of which the first rank alone stores."""
    kv = kv_config(MLAAttentionSpec(), kv_tp_replicas=2)
    ranks = [
        view(tmp_path, tensors(range(4), heads=1), kv, tp_rank=rank, parallel_config__tensor_parallel_size=2)
        for rank in range(2)
    ]
    assert [(rank.own_shard, rank.stores) for rank in ranks] == [(0, True), (0, False)]
    assert len(ranks[0].shards) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model_config__dtype": "torch.bfloat16"},
        {"model_config__quantization": "awq"},
        {"model_config__hf_overrides": {"rope_theta": 5}},
        {"model_config__quantization_config": {"bits": 4}},
        {"model_config__multimodal_config": SimpleNamespace(mm_processor_kwargs={"max_pixels": 9})},
        {"model_config__hf_text_config": SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 5.0})},
        {"cache_config__cache_dtype": "fp8"},
    ],
)
def test_what_changes_the_bytes_changes_the_fingerprint(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each of these would make one engine's KV wrong in another."""
    caches = tensors(range(4), heads=4)
    assert view(tmp_path, caches, **changes).identity.fingerprint() != view(tmp_path, caches).identity.fingerprint()


def test_other_weights_are_another_fingerprint(tmp_path: Path) -> None:
    """By content, not by name."""
    caches = tensors(range(4), heads=4)
    before = view(tmp_path, caches).identity.fingerprint()
    changed = config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    after = describe_rank(changed, kv_config(), caches, chunk_tokens=256, tp_rank=0, pp_rank=0, platform="cpu:test")
    assert after.identity.fingerprint() != before


def test_layers_that_differ_are_refused(tmp_path: Path) -> None:
    """A chunk's slot has one layout."""
    with pytest.raises(LayoutError, match="differ"):
        view(tmp_path, tensors(range(3), heads=4) | {"model.layers.3.attn": Tensor(99 * 4096, heads=2)})


def test_a_chunk_is_a_whole_number_of_blocks(tmp_path: Path) -> None:
    """Else the engine's blocks and the cache's chunks would never meet."""
    with pytest.raises(Unsupported) as caught:
        view(tmp_path, tensors(range(4), heads=4), kv_config(FullAttentionSpec(block_size=96)))
    assert caught.value.reason == "block_size"
