"""Tiny random models of each kind, and a LoRA adapter. Made once, with fixed seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.models import tiny_llama

COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "max_position_embeddings": 16_384,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
AUDIO_TOKEN = 5
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def saved(model_class: Any, config: Any, folder: Path, seed: int = 0) -> str:
    """Weights as transformers makes them for this seed."""
    import torch

    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        model_class(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def sliding_window(folder: Path) -> str:
    """Every layer sees 512 tokens only."""
    from transformers import MistralConfig, MistralForCausalLM

    return saved(MistralForCausalLM, MistralConfig(**COMMON, **SMALL, sliding_window=512), folder)


def mixed_windows(folder: Path) -> str:
    """Layers with a window beside layers without."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **COMMON,
        **SMALL,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=32,
    )
    return saved(Gemma3ForCausalLM, config, folder)


def hybrid_delta(folder: Path) -> str:
    """Attention beside gated delta nets."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        **COMMON,
        **SMALL,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
    )
    return saved(Qwen3NextForCausalLM, config, folder)


def latent_attention(folder: Path) -> str:
    """DeepSeek's MLA: one latent a token, for all heads."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = DeepseekV2Config(
        **COMMON,
        **{key: value for key, value in SMALL.items() if key not in ("head_dim", "num_key_value_heads")},
        num_key_value_heads=4,
        kv_lora_rank=512,  # the only size that vLLM's CPU kernel has
        q_lora_rank=None,
        qk_nope_head_dim=32,
        qk_rope_head_dim=64,
        v_head_dim=32,
        n_routed_experts=8,
        first_k_dense_replace=4,
        moe_intermediate_size=64,
        num_experts_per_tok=2,
        n_shared_experts=1,
        topk_method="greedy",
        n_group=1,
        topk_group=1,
    )
    return saved(DeepseekV2ForCausalLM, config, folder)


def multimodal(folder: Path) -> str:
    """Qwen2-Audio: a second of sound becomes 25 tokens. With a processor and a tokenizer, for vLLM reads sounds by them."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, models
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        Qwen2Config,
        WhisperFeatureExtractor,
    )

    special = {
        "<s>": 0,
        "</s>": 1,
        "<pad>": 2,
        "<unk>": 3,
        "<|AUDIO|>": AUDIO_TOKEN,
        "<|audio_bos|>": 6,
        "<|audio_eos|>": 7,
    }
    words = special | {f"w{i}": i for i in range(4096) if i not in special.values()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"],
    )
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=128,
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=128,
        max_source_positions=1500,
        initializer_range=0.2,
    )
    text = Qwen2Config(**COMMON, **{key: value for key, value in SMALL.items() if key != "head_dim"})
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=AUDIO_TOKEN)
    config.initializer_range = COMMON["initializer_range"]
    path = saved(Qwen2AudioForConditionalGeneration, config, folder)
    weights = (
        folder / "model.safetensors"
    )  # vLLM knows the names that published models have, not those that are saved today
    tensors = {name.replace(".model.model.", ".model."): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    Qwen2AudioProcessor(
        feature_extractor=WhisperFeatureExtractor(feature_size=128), tokenizer=tokenizer
    ).save_pretrained(path)
    return path


def with_words(folder: Path) -> str:
    """The smallest Llama, two layers, with a tokenizer, for it is opened as a user opens a model: by its path alone."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(COMMON["vocab_size"])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")),
        bos_token="w0",
        eos_token="w1",
        pad_token="w2",
        unk_token="w3",
    ).save_pretrained(tiny_llama(folder, num_hidden_layers=2))
    return str(folder)


def lora(folder: Path, model: str, seed: int) -> str:
    """An adapter of rank 8 on the attention of every layer, with weights large enough to change what is said."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((Path(model) / "config.json").read_text())
    hidden, head = config["hidden_size"], config["head_dim"]
    outputs = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in outputs.items():
            base = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{base}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) * 0.3
            tensors[f"{base}.lora_B.weight"] = torch.randn(width, 8, generator=generator) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": model,
                "r": 8,
                "lora_alpha": 8,
                "lora_dropout": 0.0,
                "bias": "none",
                "target_modules": sorted(outputs),
            }
        )
    )
    return str(folder)
