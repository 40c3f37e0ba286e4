"""What another server answers, all of it and within a bound."""

from __future__ import annotations

import aiohttp


async def whole(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    """To its end: one read of a stream gives what has come so far. :raises ValueError: if it is longer than `bytes_max`."""
    pieces = bytearray()
    async for piece in content.iter_any():
        pieces += piece
        if len(pieces) > bytes_max:
            raise ValueError(f"its answer is longer than {bytes_max} bytes: ask for less at a time")
    return bytes(pieces)
