"""What the scheduler's side of the connector sends to the workers each step, and what they send back."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass(slots=True)
class LoadPlan:
    """One request's blocks to fill from leased chunks."""

    request_id: str
    job: int
    lease: int
    first_block: int
    """In blocks from the first leased chunk: what the engine has already is skipped."""
    block_ids: array[int]
    asynchronous: bool
    """True: between steps, reported when finished; False: beside this step's forward, layer by layer."""


@dataclass(slots=True)
class StorePlan:
    """Complete chunks whose KV is in the engine once this step has run."""

    job: int
    tenant: int
    parent: bytes
    keys: bytes
    block_ids: array[int]
    text_keys: list[list[int]]
    hints: int = 0
    """For eviction, packed as RESERVE carries them."""


@dataclass(slots=True)
class StepPlan:
    """One step's work for every worker."""

    loads: list[LoadPlan] = field(default_factory=list)
    stores: list[StorePlan] = field(default_factory=list)
    fence_jobs: list[int] = field(default_factory=list)
    """Stores that still read blocks which this step may overwrite: wait for exactly these first."""


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one worker found out about itself, for the scheduler's side to open its session with."""

    rank: int
    fingerprint: bytes
    chunk_tokens: int
    shards: tuple[tuple[tuple[int, int, int, int], int], ...]
    reason: str
    """Why this rank can't use the cache; empty if it can."""


@dataclass(slots=True)
class WorkerReport:
    """What the workers did since the last step, merged over the ranks."""

    stores_done: dict[int, int] = field(default_factory=dict)
    """Job -> number of ranks that no longer read its blocks."""
    ranks: list[RankReport] = field(default_factory=list)

    def merge(self, other: WorkerReport) -> WorkerReport:
        """Add another rank's report to this one."""
        for job, ranks in other.stores_done.items():
            self.stores_done[job] = self.stores_done.get(job, 0) + ranks
        self.ranks.extend(other.ranks)
        return self
