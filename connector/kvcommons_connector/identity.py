"""What a request's token ids stand for, and its text keys by chunk: the engine-neutral parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from kvcommons_core import limits
from kvcommons_core.keys import MultimodalItem, chunk_identities

TEXT_KEY: Final = re.compile(r"[0-9a-fA-F]{16}")
TRACED: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]")
TEXT_BYTES_MAX: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class RequestIdentity:
    """Everything but the token ids that decides which KV a request may reuse."""

    salt: str = ""
    lora: bytes | None = None
    items: tuple[MultimodalItem, ...] = ()

    def of_chunks(self, tokens: int, chunk_tokens: int, first_chunk: int) -> list[tuple[int, bytes]]:
        """Identity records of the whole chunks from `first_chunk` on, numbered from it."""
        if self.lora is None and not self.items:
            return []
        return chunk_identities(tokens, chunk_tokens, lora=self.lora, items=self.items, first_chunk=first_chunk)


@dataclass(frozen=True, slots=True)
class TextHints:
    """The router's view of a request: chained keys of its canonical text in equal steps, and its id there."""

    request_id: str = ""
    text_keys: tuple[int, ...] = ()
    text_bytes: int = 0
    other_tenant: bool = False
    """Another tenant sent a text that begins alike: why it is not found, though it was cached."""
    traced: bool = False
    """The router traces it, and wants to know what took how long here."""

    def by_chunk(self, prompt_tokens: int, chunk_tokens: int, first_chunk: int, last_chunk: int) -> list[list[int]]:
        """Text keys for each chunk in [first_chunk, last_chunk): a step belongs to the chunk in which it ends, by proportion."""
        if not self.text_keys or self.text_bytes <= 0 or prompt_tokens <= 0:
            return []
        bytes_a_token = self.text_bytes / prompt_tokens
        step = limits.TEXT_STEP_BYTES

        def steps_before(chunk: int) -> int:
            return min(len(self.text_keys), int(chunk * chunk_tokens * bytes_a_token) // step)

        bounds = [steps_before(chunk) for chunk in range(first_chunk, last_chunk + 1)]
        most = limits.TEXT_KEYS_PER_CHUNK_MAX
        return [list(self.text_keys[max(begin, end - most) : end]) for begin, end in pairwise(bounds)]


def parse_hints(params: object) -> TextHints:
    """The router's part of `kv_transfer_params`. It is a hint: what is malformed is ignored."""
    hints = params.get("kvcommons") if isinstance(params, Mapping) else None
    if not isinstance(hints, Mapping) or hints.get("v") != 1:
        return TextHints()
    trace = hints.get("traceparent")
    request_id, text_keys, text_bytes = hints.get("request_id"), hints.get("text_keys"), hints.get("text_bytes")
    return TextHints(
        request_id=request_id[:256] if isinstance(request_id, str) else "",
        text_keys=_parsed_keys(text_keys) if isinstance(text_keys, Sequence) else (),
        text_bytes=text_bytes if isinstance(text_bytes, int) and 0 < text_bytes <= TEXT_BYTES_MAX else 0,
        other_tenant=hints.get("other_tenant") is True,
        traced=isinstance(trace, str) and TRACED.fullmatch(trace) is not None,
    )


def _parsed_keys(texts: Sequence[object]) -> tuple[int, ...]:
    if len(texts) > limits.TEXT_KEYS_PER_REQUEST_MAX:
        texts = texts[: limits.TEXT_KEYS_PER_REQUEST_MAX]
    keys: list[int] = []
    for text in texts:
        if not isinstance(text, str) or not TEXT_KEY.fullmatch(text):  # int() would take a sign too
            return ()
        keys.append(int(text, 16))
    return tuple(keys)
