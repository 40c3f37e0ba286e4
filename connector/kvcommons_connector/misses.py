"""Which chunks of a request were asked for and not found, so that the node can say why of each."""

from __future__ import annotations

from typing import Final

from kvcommons_core.limits import KEY_BYTES

from kvcommons_connector.tracking import Geometry, Tracked

TOLD_MAX: Final = 64
"""Chunks of one request: a report may have 4 KiB."""
ABSENT: Final = frozenset({"not_found", "partly_found"})
"""The node was asked and did not have it. Any other reason is the same for every chunk."""
SHOWN_BYTES: Final = 8
"""Of a key: as many as the index names it by."""


def missed(request: Tracked, geometry: Geometry, reused_tokens: int) -> dict[str, int | list[str]]:
    """For a report: the number of the first chunk that was missed, and each as KEY or KEY:TEXT, in hexadecimal digits."""
    first = reused_tokens // geometry.chunk_tokens
    end = min(len(request.keys) // KEY_BYTES, first + TOLD_MAX)
    if end <= first:
        return {}
    texts = request.hints.by_chunk(request.prompt_tokens, geometry.chunk_tokens, first, end)
    told = []
    for chunk in range(first, end):
        key = request.keys[chunk * KEY_BYTES :][:SHOWN_BYTES].hex()
        text = texts[chunk - first][-1:] if texts else []
        told.append(f"{key}:{text[0]:016x}" if text else key)
    return {"missed_from": first, "missed": told}
