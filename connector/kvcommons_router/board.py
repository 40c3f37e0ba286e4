"""A text that one process writes and many read, in shared memory: nobody waits for anybody, and a late reader sees the last one.

There are two halves, and each version is written to the one that the version before it is not in. A reader that finds
a half in the middle of being written, by its checksum, looks again later.
"""

from __future__ import annotations

import mmap
import zlib
from typing import Final

TEXT_BYTES_MAX: Final = 4 * 1024 * 1024
HEADER_CELLS: Final = 4  # of each half: version, length, checksum, nothing
CURRENT: Final = HEADER_CELLS * 2


class Board:
    """Shared with every process that is forked after it was made; pages that are never written take no memory."""

    def __init__(self, text_bytes_max: int = TEXT_BYTES_MAX) -> None:
        self.text_bytes_max = text_bytes_max
        self._begin = (CURRENT + 1) * 8
        self._memory = mmap.mmap(-1, self._begin + 2 * text_bytes_max)
        self._cells = memoryview(self._memory)[: self._begin].cast("Q")

    @property
    def version(self) -> int:
        """The number of the last text; 0 for none yet."""
        return self._cells[CURRENT]

    def write(self, text: bytes) -> int:
        """Puts up a text; its version. Only one process may do so.

        :raises ValueError: if it is longer than there is room for; the one before it stays.
        """
        if len(text) > self.text_bytes_max:
            raise ValueError(f"{len(text)} bytes don't fit into {self.text_bytes_max}")
        version = self._cells[CURRENT] + 1
        half = version & 1
        header, begin = half * HEADER_CELLS, self._begin + half * self.text_bytes_max
        self._memory[begin : begin + len(text)] = text
        self._cells[header + 1] = len(text)
        self._cells[header + 2] = zlib.crc32(text)
        self._cells[header] = version
        self._cells[CURRENT] = version
        return version

    def read(self) -> tuple[int, bytes] | None:
        """The last text and its version; None if there is none, or it is being replaced just now."""
        version = self._cells[CURRENT]
        half = version & 1
        header, begin = half * HEADER_CELLS, self._begin + half * self.text_bytes_max
        found, length, checksum = self._cells[header : header + 3].tolist()
        if not version or found != version or length > self.text_bytes_max:
            return None
        text = self._memory[begin : begin + length]
        return (version, text) if zlib.crc32(text) == checksum else None
