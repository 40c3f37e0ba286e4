"""What codecs cost in quality: SmolLM2 goes on from KV that went through each of them, against the same KV as it was.

The model computes in float32, so that nothing but the codec differs; KV is bfloat16, as an engine keeps it. A passage's context
is prefilled once; each chunk of its KV is encoded and decoded in the layout of vLLM's CPU backend, and the model goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kvcommons_core import _native
from kvcommons_core.codecs import CodecSpec

CHUNK_TOKENS, BLOCK_TOKENS = 256, 32
DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
EXACT = "exact"


@dataclass
class Sums:
    """Of one codec, over all passages."""

    raw_bytes: int = 0
    payload_bytes: int = 0
    nll: list[float] = field(default_factory=list)
    """Of each token of the text that follows."""
    same_text: list[bool] = field(default_factory=list)
    """Whether the likeliest next token is the one that exact KV gives, along that text."""
    same_greedy: list[list[bool]] = field(default_factory=list)
    """The same along what exact KV answers greedily, for each passage."""

    def figures(self, prefix: str) -> dict[str, object]:
        greedy = [same for passage in self.same_greedy for same in passage]
        runs = [_first_false(passage) for passage in self.same_greedy]
        return {
            f"{prefix}_payload_over_raw": self.payload_bytes / self.raw_bytes,
            f"{prefix}_perplexity": math.exp(sum(self.nll) / len(self.nll)),
            f"{prefix}_same_next_token": sum(self.same_text) / len(self.same_text),
            f"{prefix}_same_greedy_token": sum(greedy) / len(greedy),
            f"{prefix}_greedy_tokens_before_first_difference": sum(runs) / len(runs),
        }


def _first_false(values: Sequence[bool]) -> int:
    return next((i for i, value in enumerate(values) if not value), len(values))


class Model:
    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        config = self._model.config
        self.layers, self.heads = config.num_hidden_layers, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape: _native.CodecShape = (
            "bfloat16",
            "HPN",
            self.layers,
            CHUNK_TOKENS // BLOCK_TOKENS,
            BLOCK_TOKENS,
            self.heads,
            self.head_size,
            self.head_size,
        )

    def prefill(self, ids: Sequence[int]) -> tuple[Any, int]:
        """KV as [layers, 2, heads, tokens, channels] bfloat16, and the likeliest next token."""
        with self._torch.no_grad():
            out = self._model(self._torch.tensor([list(ids)]), use_cache=True, logits_to_keep=1)
        kv = self._torch.stack(
            [self._torch.stack((layer.keys[0], layer.values[0])) for layer in out.past_key_values.layers]
        )
        return kv.to(self._torch.bfloat16), int(out.logits[0, -1].argmax())

    def _cache(self, kv: Any) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(kv.to(self._torch.float32)):
            cache.update(keys[None], values[None], index)
        return cache

    def logits(self, kv: Any, ids: Sequence[int]) -> Any:
        """float32 [len(ids), vocabulary]: behind each of the ids, which follow the KV."""
        with self._torch.no_grad():
            out = self._model(self._torch.tensor([list(ids)]), past_key_values=self._cache(kv), use_cache=True)
        return out.logits[0]

    def greedy(self, kv: Any, first: int, count: int) -> list[int]:
        """`first` and the likeliest tokens behind it."""
        cache, ids = self._cache(kv), [first]
        with self._torch.no_grad():
            while len(ids) < count:
                out = self._model(self._torch.tensor([[ids[-1]]]), past_key_values=cache, use_cache=True)
                ids.append(int(out.logits[0, -1].argmax()))
        return ids

    def slots(self, kv: Any) -> Iterator[Any]:
        """Each chunk as a slot holds it: layer, block, head, K or V, token, channel."""
        for at in range(0, kv.shape[3], CHUNK_TOKENS):
            chunk = kv[:, :, :, at : at + CHUNK_TOKENS]
            blocks = chunk.reshape(self.layers, 2, self.heads, -1, BLOCK_TOKENS, self.head_size)
            yield blocks.permute(0, 3, 2, 1, 4, 5).contiguous().view(self._torch.uint16).numpy().reshape(-1)

    def kv_of(self, slots: Sequence[Any]) -> Any:
        """The way back of `slots`."""
        chunks = []
        for slot in slots:
            blocks = self._torch.from_numpy(slot).view(self._torch.bfloat16)
            blocks = blocks.reshape(self.layers, -1, self.heads, 2, BLOCK_TOKENS, self.head_size)
            chunks.append(
                blocks.permute(0, 3, 2, 1, 4, 5).reshape(self.layers, 2, self.heads, CHUNK_TOKENS, self.head_size)
            )
        return self._torch.cat(chunks, dim=3)


def through(spec: CodecSpec, model: Model, kv: Any, sums: Sums) -> Any:
    """The KV after each of its chunks was encoded and decoded."""
    back = []
    out = bytearray(_native.codec_bytes_max(spec.codec.name, model.shape, spec.group))
    for slot in model.slots(kv):
        written = _native.codec_encode(spec.codec.name, model.shape, slot, out, spec.group)
        decoded = np.empty_like(slot)
        _native.codec_decode(memoryview(out)[:written], model.shape, decoded)
        sums.raw_bytes += slot.nbytes
        sums.payload_bytes += written
        back.append(decoded)
    return model.kv_of(back)


def passages(model: Model, count: int, context: int, text: int) -> list[list[int]]:
    """The longest of the project's own pages, each its first `context + text` tokens."""
    pages = sorted((page.read_text(encoding="utf-8") for page in DOCUMENTS.glob("*.md")), key=len, reverse=True)
    found = [model.tokenizer(page)["input_ids"][: context + text] for page in pages]
    long_enough = [ids for ids in found if len(ids) == context + text]
    if len(long_enough) < count:
        raise ValueError(
            f"passages: only {len(long_enough)} pages have {context + text} tokens: ask for fewer or shorter"
        )
    return long_enough[:count]


def _score(sums: Sums, logits: Any, exact: Any, ids: Sequence[int]) -> None:
    """Behind each of the ids but the last stands the next one."""
    log_probabilities = logits[:-1].log_softmax(-1)
    sums.nll += [-float(log_probabilities[i, token]) for i, token in enumerate(ids[1:])]
    sums.same_text += (logits.argmax(-1) == exact.argmax(-1)).tolist()


def measure(
    model: Model, specs: Sequence[CodecSpec], *, count: int, context: int, text: int, answer: int
) -> dict[str, Sums]:
    """Sums of the exact KV (named EXACT) and of each codec."""
    sums = {EXACT: Sums(), **{str(spec): Sums() for spec in specs}}
    for ids in passages(model, count, context, text):
        follows = ids[context:]
        kv, first = model.prefill(ids[:context])
        exact_text = model.logits(kv, follows)
        answered = model.greedy(kv, first, answer)
        exact_greedy = model.logits(kv, answered)
        for name, one in sums.items():
            spec = next((spec for spec in specs if str(spec) == name), None)
            if spec is None:
                size = kv.numel() * 2
                one.raw_bytes, one.payload_bytes = one.raw_bytes + size, one.payload_bytes + size
                text_logits, greedy_logits = exact_text, exact_greedy
            else:
                lossy = through(spec, model, kv, one)
                text_logits, greedy_logits = model.logits(lossy, follows), model.logits(lossy, answered)
            _score(one, text_logits, exact_text, follows)
            one.same_greedy.append((greedy_logits.argmax(-1) == exact_greedy.argmax(-1)).tolist())
    return sums
