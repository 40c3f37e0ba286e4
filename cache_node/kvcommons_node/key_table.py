"""Numbers by 64-bit keys, in arrays of a fixed size: what a node remembers of many chunks costs no object for each."""

from __future__ import annotations

from array import array
from typing import Final

WAYS: Final = 4
MIXER: Final = 0x9E3779B97F4A7C15
BITS_OF_KEY: Final = 64
MASK: Final = (1 << BITS_OF_KEY) - 1


class KeyTable:
    """Rows for keys; whoever has the table keeps arrays of as many rows beside it. A key's row is one of a set of WAYS, and where all of
    them are taken the one that was written longest ago gives way. So nearly all of the last `rows` / 2 keys are here, and no others than
    the last ones of each set. 0 is no key.
    """

    def __init__(self, rows_log2: int) -> None:
        """:param rows_log2: of how many rows; 2 at least."""
        self._shift = BITS_OF_KEY - (rows_log2 - 2)
        self._keys = array("Q", bytes(8 << rows_log2))
        self._written = array("Q", bytes(8 << rows_log2))
        self._writes = 0

    def find(self, key: int) -> int | None:
        """The key's row."""
        first = self._first(key)
        for row in range(first, first + WAYS):
            if self._keys[row] == key:
                return row if key else None
        return None

    def place(self, key: int) -> tuple[int, bool]:
        """(the key's row from now on, whether it was the key's before)."""
        self._writes += 1
        known = self.find(key)
        if known is not None:
            self._written[known] = self._writes
            return known, True
        first = self._first(key)
        row = min(range(first, first + WAYS), key=self._written.__getitem__)
        self._keys[row], self._written[row] = key, self._writes
        return row, False

    def _first(self, key: int) -> int:
        return ((key * MIXER & MASK) >> self._shift) * WAYS
