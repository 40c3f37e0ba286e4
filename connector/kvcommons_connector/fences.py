"""Stores in flight, and which of the engine's blocks they still read."""

from __future__ import annotations

from collections.abc import Sequence


class FrozenBlocks:
    """Blocks that were given back to the engine while a store still reads them: reuse must wait for that store."""

    def __init__(self) -> None:
        self._jobs_by_block: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._jobs_by_block)

    def freeze(self, job: int, blocks: Sequence[int]) -> None:
        """`job` reads `blocks`, which their owner has just given back."""
        for block in blocks:
            self._jobs_by_block.setdefault(block, set()).add(job)

    def thaw(self, job: int, blocks: Sequence[int]) -> None:
        """`job` has ended."""
        for block in blocks:
            jobs = self._jobs_by_block.get(block)
            if jobs is not None:
                jobs.discard(job)
                if not jobs:
                    del self._jobs_by_block[block]

    def jobs_reading(self, blocks: set[int]) -> set[int]:
        """The stores that must end before any of `blocks` is written."""
        found: set[int] = set()
        for block in self._jobs_by_block.keys() & blocks:
            found |= self._jobs_by_block[block]
        return found
