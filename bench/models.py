"""Small models with random weights, made in a second and always the same: real architectures at a size that two cores carry.

Prompts are token ids, so none of them needs a tokenizer (`skip_tokenizer_init`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

VOCABULARY = 4_096


def small_llama(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Eight layers, eight KV heads of 64, 16,384 positions: KV of 8 KiB a token and layer pair in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 16_384,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.06,
    } | changes
    return _saved(LlamaForCausalLM, LlamaConfig(**settings), folder, seed)


def tiny_llama(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """The smallest that still has several layers and heads; for tests."""
    settings = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "initializer_range": 0.2,
    }
    return small_llama(folder, seed=seed, **(settings | changes))


def _saved(model_class: Any, config: Any, folder: Path, seed: int) -> Path:
    import torch

    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        model_class(config).to(torch.float32).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(small_llama(Path(sys.argv[1])))
