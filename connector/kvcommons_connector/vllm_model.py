"""What vLLM has loaded, as the cache needs to know it: identity, layout, shards. Reads vLLM's objects, imports nothing of it.

Whatever can't be told exactly ends in an error here (`IdentityError`, `LayoutError`, `Unsupported`): the engine then serves without the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvcommons_core.errors import KvCommonsError
from kvcommons_core.fingerprint import Json, KvGroup, ModelIdentity
from kvcommons_core.weights import model_weights

from kvcommons_connector.layout import LayerLayout, LayoutError, SlotForm, kv_shards, layer_layout, slot_form

LAYOUT_VERSION: Final = 1
CACHEABLE_SPECS: Final = {"FullAttentionSpec": "full", "MLAAttentionSpec": "mla"}
COMPUTE_FIELDS: Final = ("hf_overrides", "quantization_config", "model_class_overrides")
MEDIA_FIELDS: Final = ("mm_processor_kwargs", "media_io_kwargs", "video_pruning_rate", "mm_encoder_attn_dtype")
DRAFTLESS_METHODS: Final = frozenset({"ngram", "ngram_gpu", "suffix"})


class Unsupported(KvCommonsError):
    """This model's KV can't be cached exactly. The engine serves without the cache; `reason` is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank's part of the model."""

    identity: ModelIdentity
    layers: tuple[LayerLayout, ...]
    layer_index: dict[str, int]
    shards: tuple[tuple[tuple[int, int, int, int], int], ...]
    own_shard: int
    stores: bool
    """False where a rank before this one holds, and stores, the same."""
    form: SlotForm | None = None
    """What a codec must know of the slots."""


def check_model(config: Any, kv_cache_config: Any) -> Any:
    """The one KV group's spec.

    :raises Unsupported: for a model whose KV is more, or other, than one group of full attention."""
    groups = kv_cache_config.kv_cache_groups
    if config.model_config.is_encoder_decoder:
        raise Unsupported("encoder_decoder", "cross attention depends on what the encoder read")
    if len(groups) != 1:
        kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups)
        raise Unsupported(
            "kv_groups", f"the model has {len(groups)} groups of KV ({kinds}); one of full attention is supported"
        )
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ not in CACHEABLE_SPECS:
        raise Unsupported("kv_kind", f"{type(spec).__name__} keeps less than the KV of every token")
    if getattr(spec, "non_causal", False) or getattr(spec, "tokens_per_state", 1) != 1:
        raise Unsupported("kv_kind", "attention is not causal, or a state covers more than one token")
    if not config.scheduler_config.enable_chunked_prefill and not config.cache_config.enable_prefix_caching:
        # vLLM turns both off where its kernels ignore what stands before a prefill: MLA on a CPU without AMX answers wrongly there.
        raise Unsupported(
            "no_prefix", "this engine has chunked prefill and prefix caching off: it can't go on from a prefix"
        )
    parallel = config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise Unsupported("context_parallel", "a sequence is spread over several ranks")
    speculative = config.speculative_config
    if speculative is not None and speculative.method not in DRAFTLESS_METHODS:
        raise Unsupported("draft_model", f"speculative decoding by {speculative.method!r} keeps KV of a second model")
    if getattr(config.cache_config, "calculate_kv_scales", False):
        raise Unsupported(
            "kv_scales", "KV scales are worked out while running, so the same bytes mean different numbers"
        )
    if getattr(config, "weight_transfer_config", None) is not None:
        raise Unsupported(
            "weight_transfer", "this engine's weights are replaced while it runs, and no file tells by what"
        )
    return spec


def describe_rank(
    config: Any,
    kv_cache_config: Any,
    kv_caches: Mapping[str, Any],
    *,
    chunk_tokens: int,
    tp_rank: int,
    pp_rank: int,
    platform: str,
) -> RankView:
    """All that one rank must know before it may touch the cache.

    :param platform: names what else decides the bytes' order on this machine (device, instruction set).
    """
    spec = check_model(config, kv_cache_config)
    parallel, model = config.parallel_config, config.model_config
    if chunk_tokens % spec.block_size:
        raise Unsupported(
            "block_size",
            f"chunk_tokens={chunk_tokens} is not a multiple of the engine's block of {spec.block_size} tokens",
        )
    layers, index, classes = _layouts(kv_cache_config, kv_caches)
    mla = CACHEABLE_SPECS[type(spec).__name__] == "mla"
    heads = 1 if mla else model.get_total_num_kv_heads()
    tp_size, replicas = parallel.tensor_parallel_size, _replicas(kv_cache_config, parallel.tensor_parallel_size, heads)
    total = model.get_total_num_hidden_layers()
    stages = _stages(total, parallel.pipeline_parallel_size)
    if stages[pp_rank][1] - stages[pp_rank][0] != len(layers):
        if parallel.pipeline_parallel_size > 1:
            raise Unsupported("kv_groups", f"stage {pp_rank} has {len(layers)} KV layers for {stages[pp_rank]}")
        stages, total = [(0, len(layers))], len(layers)
    shards = kv_shards(
        layers=stages,
        heads=heads,
        tp_size=tp_size,
        tp_replicas=replicas,
        layer_chunk_bytes=layers[0].block_bytes * (chunk_tokens // spec.block_size),
    )
    group = KvGroup(
        kind=CACHEABLE_SPECS[type(spec).__name__],
        layers=tuple(range(total)),
        kv_heads=heads,
        head_size=spec.head_size,
        block_tokens=spec.block_size,
        window_tokens=spec.sliding_window or 0,
    )
    identity = _identity(config, spec, group, chunk_tokens, f"{platform}:{classes}")
    own = pp_rank * (tp_size // replicas) + tp_rank // replicas
    form = slot_form(
        classes,
        str(spec.dtype).removeprefix("torch."),
        next(iter(kv_caches.values())).element_size(),
        spec.head_size,
        latent=mla,
        backends=platform,
    )
    return RankView(identity, layers, index, shards, own, tp_rank % replicas == 0, form)


def _identity(config: Any, spec: Any, group: KvGroup, chunk_tokens: int, attention: str) -> ModelIdentity:
    model = config.model_config
    if str(config.load_config.load_format) == "dummy":
        raise Unsupported("dummy_weights", "weights that were made up have no identity")
    dtype = str(spec.dtype).removeprefix("torch.")
    return ModelIdentity(
        weights=model_weights(_model_path(model)),
        generation="0",
        compute_dtype=str(model.dtype).removeprefix("torch."),
        weight_quantization=str(model.quantization or "none"),
        kv_dtype=dtype,
        kv_quantization=str(getattr(spec.kv_quant_mode, "name", spec.kv_quant_mode)).lower()
        + f":{config.cache_config.cache_dtype}",
        groups=(group,),
        attention=attention + _overrides(model),
        chunk_tokens=chunk_tokens,
        rope=_rope(model.hf_text_config),
        context_parallel=1,
        context_parallel_interleave=1,
        engine_family="vllm",
        layout="layer.block.run",
        layout_version=LAYOUT_VERSION,
    )


def _layouts(kv_cache_config: Any, kv_caches: Mapping[str, Any]) -> tuple[tuple[LayerLayout, ...], dict[str, int], str]:
    """Layers in the model's order; layers that share a tensor are one."""
    layers: list[LayerLayout] = []
    classes: list[str] = []
    index: dict[str, int] = {}
    by_address: dict[int, int] = {}
    for name, tensor in sorted(kv_caches.items(), key=lambda item: (_numbers(item[0]), item[0])):
        layout, kind = layer_layout(tensor, kv_cache_config.num_blocks)
        if layout.base not in by_address:
            by_address[layout.base] = len(layers)
            layers.append(layout)
            classes.append(kind)
        index[name] = by_address[layout.base]
    if not layers:
        raise Unsupported("no_kv", "the engine registered no KV tensor")
    if len(set(classes)) != 1 or len({layout.block_bytes for layout in layers}) != 1:
        raise LayoutError(f"layers differ in layout: {sorted(set(classes))}")
    return tuple(layers), index, classes[0]


def _numbers(layer_name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in layer_name.split(".") if part.isdecimal())


def _replicas(kv_cache_config: Any, tp_size: int, heads: int) -> int:
    declared = int(getattr(kv_cache_config, "kv_tp_replicas", 1))
    return max(declared, tp_size // heads if heads < tp_size else 1)


def _stages(layers: int, stages: int) -> list[tuple[int, int]]:
    """Layers of each pipeline stage, where they divide evenly; where not, only vLLM knows."""
    if layers % stages:
        raise Unsupported("pipeline", f"{layers} layers in {stages} stages: only an even split is supported")
    width = layers // stages
    return [(stage * width, (stage + 1) * width) for stage in range(stages)]


def _rope(text_config: Any) -> Mapping[str, Json]:
    parameters = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    found: dict[str, Json] = {"rope_type": "none"}
    if isinstance(parameters, Mapping):
        found |= json.loads(json.dumps(dict(parameters), default=str))
    for name in ("rope_theta", "partial_rotary_factor", "max_position_embeddings"):
        value = getattr(text_config, name, None)
        if isinstance(value, int | float):
            found.setdefault(name, value)
    return found


def _overrides(model: Any) -> str:
    """What a user changed of how the model computes, which the weights' digest can't see."""
    if callable(model.hf_overrides):
        raise Unsupported("hf_overrides", "a function changes the model's configuration")
    for name in ("hf_config_path", "model_weights"):
        if getattr(model, name, None):
            raise Unsupported(name, "the model's parts come from several places")
    media = getattr(model, "multimodal_config", None)
    changed = {name: getattr(model, name, None) for name in COMPUTE_FIELDS}
    changed |= {name: getattr(media, name, None) for name in MEDIA_FIELDS}
    given = {name: value for name, value in changed.items() if value}
    if not given:
        return ""
    text = json.dumps(given, sort_keys=True, default=str)
    return ":overrides-" + hashlib.sha256(text.encode()).hexdigest()


def _model_path(model: Any) -> str:
    """The folder that the weights were read from. A hub name is looked up in the local cache by its resolved revision."""
    name = str(model.model)
    if Path(name).exists():
        return name
    try:
        from huggingface_hub import snapshot_download  # vLLM's own dependency: it has loaded the model by it
    except ImportError as error:
        raise Unsupported("weights", f"{name!r} is not a local path") from error
    try:
        return str(snapshot_download(name, revision=model.revision and str(model.revision), local_files_only=True))
    except (OSError, ValueError) as error:
        raise Unsupported("weights", f"no local snapshot of {name!r}: {error}") from error
