"""Settings, layouts, identities and fences of the connector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_connector.config import ConnectorConfig, parse_bytes, parse_config
from kvcommons_connector.fences import FrozenBlocks
from kvcommons_connector.identity import TextHints, parse_hints
from kvcommons_connector.layout import LayoutError, kv_shards, layer_layout
from kvcommons_connector.stats import Counters, merged, split_name
from kvcommons_connector.vllm_request import LoraIdentities, track
from kvcommons_core.errors import ConfigurationError, NotCacheableError, UnknownSettingError


@dataclass
class Tensor:
    """Shape and strides, as torch gives them."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item: int = 4

    def stride(self) -> Sequence[int]:
        """In elements."""
        return self.strides

    def element_size(self) -> int:
        """In bytes."""
        return self.item

    def data_ptr(self) -> int:
        """Any address."""
        return 4096


def test_an_unknown_setting_names_the_nearest_one() -> None:
    """A typing error must not silently mean a default."""
    with pytest.raises(UnknownSettingError, match="chunk_tokens"):
        parse_config({"chunk_token": 256})


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"socket": "/a", "size": "1GiB"}, "not both"),
        ({"chunk_tokens": 0}, "at least 1"),
        ({"store": "yes"}, "true or false"),
        ({"socket": "/" + "x" * 200}, "107"),
        ({"size": "lots"}, "GiB"),
        ({"lookup_ms_max": "5"}, "whole number"),
        ({"device": "gpu"}, "device.*gpu.*auto.*host.*stream.*cuda"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_the_remedy(extra: dict[str, object], what: str) -> None:
    """Field, value and remedy."""
    with pytest.raises(ConfigurationError, match=what):
        parse_config(extra)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2GiB", 2 << 30), ("512 MB", 512 * 10**6), ("1.5Gi", 3 << 29), ("64k", 64_000), (7, 7), ("10", 10)],
)
def test_sizes_are_read_as_people_write_them(text: object, value: int) -> None:
    """Binary and decimal units."""
    assert parse_bytes(text) == value


def test_the_socket_comes_from_the_setting_then_the_environment_then_the_default() -> None:
    """In this order."""
    assert ConnectorConfig(socket="/a").socket_path({"KVCOMMONS_SOCKET": "/b"}) == "/a"
    assert ConnectorConfig().socket_path({"KVCOMMONS_SOCKET": "/b"}) == "/b"
    assert ConnectorConfig().socket_path({}) == "/run/kvcommons/node.sock"


def test_a_block_that_lies_in_one_piece_is_one_run() -> None:
    """vLLM on the CPU: heads, tokens, K and V one after another."""
    layout, kind = layer_layout(Tensor((10, 3, 128, 128), (3 * 128 * 128, 128 * 128, 128, 1)), 10)
    assert (layout.planes, layout.runs, layout.run_bytes, layout.block_stride_bytes) == (
        1,
        1,
        3 * 128 * 128 * 4,
        3 * 128 * 128 * 4,
    )
    assert kind == "HNC:split1:tokens128:content512"


def test_heads_that_lie_apart_are_runs() -> None:
    """A layout with the heads outside the blocks."""
    layout, _ = layer_layout(Tensor((10, 3, 128, 64), (128 * 64, 10 * 128 * 64, 64, 1)), 10)
    assert (layout.planes, layout.runs, layout.run_stride_bytes, layout.run_bytes) == (
        1,
        3,
        10 * 128 * 64 * 4,
        128 * 64 * 4,
    )


def test_kernel_blocks_that_are_smaller_than_the_managers_are_put_together() -> None:
    """Two kernel blocks of 64 make one block of 128."""
    layout, kind = layer_layout(Tensor((20, 3, 64, 64), (3 * 64 * 64, 64 * 64, 64, 1)), 10)
    assert (layout.blocks, layout.block_stride_bytes, layout.block_bytes) == (
        10,
        2 * 3 * 64 * 64 * 4,
        2 * 3 * 64 * 64 * 4,
    )
    assert "split2" in kind


def test_one_head_of_a_rank_has_the_same_class_as_three() -> None:
    """Tensor parallelism divides heads; the order of what remains is the same."""
    one, many = Tensor((10, 1, 128, 64), (8192, 8192, 64, 1)), Tensor((10, 3, 128, 64), (3 * 8192, 8192, 64, 1))
    assert layer_layout(one, 10)[1] == layer_layout(many, 10)[1]


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor((2, 10, 3, 128, 64), (1,) * 5),
        Tensor((10, 3, 128, 64), (0, 0, 64, 1)),
        Tensor((11, 3, 128, 64), (24576, 8192, 64, 1)),
        Tensor((10, 3, 128, 64), (9_000_000, 90_000, 300, 2)),
    ],
)
def test_what_cannot_be_described_is_refused(tensor: Tensor) -> None:
    """Rather no cache than a guess."""
    with pytest.raises(LayoutError):
        layer_layout(tensor, 10)


@given(st.permutations([0, 1, 2]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2))
def test_the_runs_of_a_block_are_exactly_its_bytes(
    order: list[int], heads: int, tokens: int, content: int, gap: int
) -> None:
    """Whatever the order of dimensions in memory, walking planes, runs and bytes meets each element of the block once."""
    sizes = [heads, tokens, content]
    strides, step = [0, 0, 0], 1
    for axis in reversed(order):
        strides[axis] = step
        step *= sizes[axis]
    tensor = Tensor((4, heads, tokens, content), (step + gap, *strides), item=1)
    if heads * tokens * content == 1:
        return
    layout, _ = layer_layout(tensor, 4)
    walked = sorted(
        plane * layout.plane_stride_bytes + run * layout.run_stride_bytes + byte
        for plane in range(layout.planes)
        for run in range(layout.runs)
        for byte in range(layout.run_bytes)
    )
    assert walked == list(range(step))
    assert layout.block_stride_bytes == step + gap


def test_shards_cover_the_model_once() -> None:
    """Two stages of two layers, four heads on two ranks."""
    shards = kv_shards(layers=[(0, 2), (2, 4)], heads=4, tp_size=2, tp_replicas=1, layer_chunk_bytes=100)
    assert shards == (((0, 2, 0, 2), 200), ((0, 2, 2, 4), 200), ((2, 4, 0, 2), 200), ((2, 4, 2, 4), 200))
    assert kv_shards(layers=[(0, 2)], heads=1, tp_size=4, tp_replicas=4, layer_chunk_bytes=100) == (
        ((0, 2, 0, 1), 200),
    )
    with pytest.raises(LayoutError):
        kv_shards(layers=[(0, 2)], heads=3, tp_size=2, tp_replicas=1, layer_chunk_bytes=100)


def test_text_steps_belong_to_the_chunk_in_which_they_end() -> None:
    """8 steps of 2,048 bytes over 4,096 tokens: half a step a chunk of 256, so every second chunk ends one."""
    hints = TextHints(text_keys=tuple(range(1, 9)), text_bytes=8 * 2048)
    assert hints.by_chunk(4096, 256, 0, 4) == [[], [1], [], [2]]
    assert hints.by_chunk(4096, 256, 14, 18) == [[], [8], [], []]


@given(st.integers(0, 300), st.integers(1, 5000), st.integers(1, 40))
def test_each_text_step_is_given_to_at_most_one_chunk(steps: int, prompt: int, cut: int) -> None:
    """However the stores are divided, the chunks' text keys are the request's, in order, none twice."""
    hints = TextHints(text_keys=tuple(range(1, steps + 1)), text_bytes=steps * 2048 + 17)
    chunks = prompt // 64
    whole = [key for keys in hints.by_chunk(prompt, 64, 0, chunks) for key in keys]
    parts = [
        key
        for begin in range(0, chunks, cut)
        for keys in hints.by_chunk(prompt, 64, begin, min(begin + cut, chunks))
        for key in keys
    ]
    assert parts == whole == sorted(set(whole))


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"kvcommons": 3},
        {"kvcommons": {"v": 2}},
        {"kvcommons": {"v": 1, "text_keys": ["zz"] * 3, "text_bytes": "x"}},
        {"kvcommons": {"v": 1, "text_keys": ["-00000000000000f"], "text_bytes": 10**400}},
        {"kvcommons": {"v": 1, "text_keys": ["0x00000000000000"]}},
        "kvcommons",
    ],
)
def test_malformed_hints_are_no_hints(params: object) -> None:
    """They come from outside; nothing but routing rests on them."""
    assert parse_hints(params) == TextHints()


def test_hints_are_read_as_the_router_writes_them() -> None:
    """16 hexadecimal digits a key."""
    hints = parse_hints(
        {"kvcommons": {"v": 1, "request_id": "r", "text_keys": ["00000000000000ff"], "text_bytes": 2048}}
    )
    assert hints == TextHints("r", (255,), 2048)


def test_a_block_is_frozen_by_each_store_that_reads_it() -> None:
    """Two requests that shared a block: both stores must end."""
    frozen = FrozenBlocks()
    frozen.freeze(1, [5, 6])
    frozen.freeze(2, [6, 7])
    assert frozen.jobs_reading({6, 9}) == {1, 2}
    frozen.thaw(1, [5, 6])
    assert frozen.jobs_reading({6}) == {2}
    frozen.thaw(2, [6, 7])
    assert len(frozen) == 0


def test_counters_add_up_by_label() -> None:
    """Two processes' intervals, merged, and read back."""
    counters = Counters()
    counters.add("lookups", 1, status="ok")
    counters.add("load_bytes", 5)
    total = merged(counters.take(), {"lookups|status=ok": 2, "lookups|status=gone": 1})
    assert total == {"lookups|status=ok": 3, "lookups|status=gone": 1, "load_bytes": 5}
    assert split_name("lookups|status=ok") == ("lookups", "status", "ok")
    assert split_name("load_bytes") == ("load_bytes", "", "")
    assert counters.take() == {}


def request(**changes: Any) -> SimpleNamespace:
    """What is read of a vLLM request."""
    fields: dict[str, Any] = {
        "request_id": "r",
        "num_prompt_tokens": 3,
        "prompt_token_ids": [1, 2, 3],
        "prompt_embeds": None,
        "prompt_is_token_ids": None,
        "resumable": False,
        "lora_request": None,
        "cache_salt": None,
        "mm_features": [],
        "kv_transfer_params": None,
    }
    return SimpleNamespace(**(fields | changes))


def adapter(path: Path, number: int = 1, **changes: Any) -> SimpleNamespace:
    """What is read of a LoRA request."""
    return SimpleNamespace(
        **({"lora_name": "a", "lora_int_id": number, "lora_path": str(path), "load_inplace": False} | changes)
    )


def feature(identifier: str, mm_hash: str | None = None) -> SimpleNamespace:
    """What is read of a multimodal item."""
    return SimpleNamespace(
        modality="image", identifier=identifier, mm_hash=mm_hash, mm_position=SimpleNamespace(offset=4, length=9)
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_embeds": object()}, "prompt_embeds"),
        ({"prompt_token_ids": None}, "prompt_embeds"),
        ({"prompt_is_token_ids": [True, False]}, "prompt_embeds"),
        ({"resumable": True}, "streaming_input"),
        ({"mm_features": [feature("picture-1")]}, "mm_identity"),
    ],
)
def test_a_request_that_keys_cannot_name_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    """It is served, and counted."""
    assert track(request(**changes), LoraIdentities(), "").reason == reason


def test_images_are_named_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's content hash, with or without the name of a LoRA adapter before it, and where the image stands."""
    item = track(request(mm_features=[feature("lora:" + "ab" * 32)]), LoraIdentities(), "").identity.items[0]
    assert (item.offset_tokens, item.length_tokens, item.content_hash) == (4, 9, b"image:" + b"ab" * 32)


def test_an_adapter_is_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another content under the old name is another identity; files that change under a loaded adapter make it uncacheable."""
    monkeypatch.setenv("KVCOMMONS_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"one")
    loras = LoraIdentities()
    first = loras.digest(adapter(folder, 1))
    (folder / "adapter_model.safetensors").write_bytes(b"two!")
    with pytest.raises(NotCacheableError, match="lora_changed"):
        loras.digest(adapter(folder, 2))  # the engine's own cache may have KV of the former content
    assert loras.digest(adapter(folder, 2), cache_life=1) != first
    with pytest.raises(NotCacheableError, match="lora_changed"):
        loras.digest(adapter(folder, 1))
    with pytest.raises(NotCacheableError, match="lora_inplace"):
        loras.digest(adapter(folder, 3, load_inplace=True))
    with pytest.raises(NotCacheableError, match="lora_path"):
        loras.digest(adapter(tmp_path / "hub-name", 4))
