"""Counters of several worker processes in one piece of shared memory: a row a worker, a column a number.

A worker writes its own row alone, so nothing is locked; whoever asks sums the column. A worker that is started again
goes on in the row of the one before it, so counters never fall.
"""

from __future__ import annotations

import mmap

CELL_BYTES = 8
COLUMNS_MAX = 1 << 20


class Cells:
    """Rows x columns of u64, shared with every process forked after it was made."""

    def __init__(self, rows: int, columns: int) -> None:
        if not 0 < rows <= 1024 or not 0 < columns <= COLUMNS_MAX:
            raise ValueError(f"{rows} rows of {columns} cells are not a table we make")
        self.rows = rows
        self.columns = columns
        self._memory = mmap.mmap(-1, rows * columns * CELL_BYTES)
        self._all = memoryview(self._memory).cast("Q")

    def row(self, index: int) -> memoryview:
        """The cells that belong to one process; an item is an int."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        return self._all[index * self.columns : (index + 1) * self.columns]

    def total(self, column: int) -> int:
        """The sum over all processes."""
        return sum(self._all[column :: self.columns].tolist())

    def largest(self, column: int) -> int:
        """The largest over all processes."""
        return max(self._all[column :: self.columns].tolist())

    def totals(self, first: int, count: int) -> list[int]:
        """The sums of some columns that lie side by side."""
        rows = [self._all[at + first : at + first + count].tolist() for at in range(0, len(self._all), self.columns)]
        return [sum(column) for column in zip(*rows, strict=True)]

    def smallest(self, column: int, rows: int) -> int:
        """The smallest over the first so many processes."""
        return min(self._all[column :: self.columns].tolist()[:rows])

    def column(self, column: int) -> list[int]:
        """A column's cells, by row."""
        return self._all[column :: self.columns].tolist()
