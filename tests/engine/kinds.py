"""Tiny random models of each kind, and a LoRA adapter. Made once, with fixed seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "max_position_embeddings": 16_384,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
IMAGE_TOKEN = 5
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


def hybrid_mamba(folder: Path) -> str:
    """Attention beside recurrent (Mamba) layers."""
    from transformers import JambaConfig, JambaForCausalLM

    config = JambaConfig(
        **COMMON,
        **{key: value for key, value in SMALL.items() if key != "head_dim"},
        attn_layer_period=4,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=16,
        use_mamba_kernels=False,
    )
    return saved(JambaForCausalLM, config, folder)


def hybrid_falcon(folder: Path) -> str:
    """Attention and Mamba 2 side by side in every layer."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    config = FalconH1Config(
        **COMMON,
        **SMALL,
        mamba_d_ssm=256,
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_state=32,
        mamba_n_groups=1,
        mamba_chunk_size=64,
    )
    return saved(FalconH1ForCausalLM, config, folder)


def hybrid_convolution(folder: Path) -> str:
    """Attention beside layers with a short convolution, whose state is recurrent as Mamba's is."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        **COMMON,
        **{key: value for key, value in SMALL.items() if key != "head_dim"},
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        block_ff_dim=256,
        conv_L_cache=3,
    )
    config.conv_dim = SMALL["hidden_size"]
    return saved(Lfm2ForCausalLM, config, folder)


def hybrid_delta(folder: Path) -> str:
    """Attention beside gated delta nets."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        **COMMON,
        **SMALL,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
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
    """LLaVA: an image of 56 x 56 becomes 16 tokens. With a processor and a tokenizer, for vLLM reads images by them."""
    from tokenizers import Tokenizer, models
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "w4": 4, "<image>": IMAGE_TOKEN} | {
        f"w{i}": i for i in range(6, 4096)
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=64,
        initializer_factor=8.0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**COMMON, **SMALL),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    config.initializer_range = COMMON["initializer_range"]
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    path = saved(LlavaForConditionalGeneration, config, folder)
    processor.save_pretrained(path)
    return path


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
