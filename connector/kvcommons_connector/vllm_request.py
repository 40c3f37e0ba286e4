"""What a vLLM request is beyond its token ids. Reads vLLM's objects, imports nothing of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from kvcommons_core.errors import IdentityError, NotCacheableError
from kvcommons_core.keys import MultimodalItem
from kvcommons_core.weights import lora_digest

from kvcommons_connector.hints import packed_hints
from kvcommons_connector.identity import RequestIdentity, parse_hints
from kvcommons_connector.tracking import Tracked

CONTENT_HASH: Final = re.compile(r"[0-9a-f]{64}")
LORAS_MAX: Final = 10_000


class LoraIdentities:
    """Digests of adapters as they were when they were first used: what the engine has loaded must be what was hashed."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        # Name and folder -> content, and the life of the engine's own cache in which it was seen.
        self._places: dict[tuple[str, str], tuple[bytes, int]] = {}

    def digest(self, lora: Any, cache_life: int = 0) -> bytes:
        """`cache_life`: how often the engine's own prefix cache was emptied.

        :raises NotCacheableError: if the adapter's content can't be told, or its files changed under a loaded adapter, or under the engine's
            own cache: that one knows an adapter by name and folder, and gives the former content's KV to the new one."""
        if lora.load_inplace:
            raise NotCacheableError(
                "lora_inplace", f"{lora.lora_name!r} is loaded anew in place, at a moment only the worker knows"
            )
        path = Path(lora.lora_path)
        if not path.is_dir():
            raise NotCacheableError("lora_path", f"{lora.lora_path!r} is not a folder on this machine")
        try:
            digest = lora_digest(path)
        except (IdentityError, OSError) as error:
            raise NotCacheableError("lora_unreadable", str(error)) from error
        if len(self._digests) >= LORAS_MAX and lora.lora_int_id not in self._digests:
            raise NotCacheableError("lora_limit", f"more than {LORAS_MAX} adapters")
        if self._digests.setdefault(lora.lora_int_id, digest) != digest:
            raise NotCacheableError("lora_changed", f"the files of {lora.lora_name!r} changed after it was loaded")
        place = (lora.lora_name, lora.lora_path)
        known, life = self._places.get(place, (digest, cache_life))
        if known != digest and life == cache_life:
            raise NotCacheableError(
                "lora_changed", f"the engine's own cache has KV of the former {lora.lora_name!r}: reset it"
            )
        if len(self._places) < LORAS_MAX or place in self._places:
            self._places[place] = (digest, cache_life)
        return digest


def track(request: Any, loras: LoraIdentities, model_reason: str, cache_life: int = 0) -> Tracked:
    """The connector's view of a request that has just arrived."""
    identity, reason = RequestIdentity(), model_reason
    try:
        identity = _identity(request, loras, cache_life)
    except NotCacheableError as error:
        reason = reason or error.reason
    return Tracked(
        request_id=request.request_id,
        prompt_tokens=request.num_prompt_tokens,
        identity=identity,
        hints=parse_hints(request.kv_transfer_params),
        eviction_hints=packed_hints(request.kv_transfer_params),
        reason=reason,
    )


def _identity(request: Any, loras: LoraIdentities, cache_life: int) -> RequestIdentity:
    if request.prompt_embeds is not None or request.prompt_token_ids is None or request.prompt_is_token_ids is not None:
        raise NotCacheableError("prompt_embeds", "embeddings have no token ids")
    if request.resumable:
        raise NotCacheableError("streaming_input", "the prompt of a streaming session changes while it runs")
    lora = loras.digest(request.lora_request, cache_life) if request.lora_request is not None else None
    return RequestIdentity(
        salt=request.cache_salt or "", lora=lora, items=tuple(_item(feature) for feature in request.mm_features)
    )


def _item(feature: Any) -> MultimodalItem:
    """vLLM's hash of the item's content. What a client named by an id of its own says nothing about content."""
    content = (feature.mm_hash or feature.identifier).rpartition(":")[2]
    if not CONTENT_HASH.fullmatch(content):
        raise NotCacheableError(
            "mm_identity", f"{feature.modality} is named by {feature.identifier!r}, which is no content hash"
        )
    position = feature.mm_position
    if position.offset < 0 or position.length < 1:
        raise NotCacheableError(
            "mm_position", f"{feature.modality} stands for {position.length} tokens at {position.offset}"
        )
    return MultimodalItem(position.offset, position.length, f"{feature.modality}:{content}".encode())
