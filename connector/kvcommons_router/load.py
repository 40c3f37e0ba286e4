"""How busy each instance is: what this worker sent there, plus what others did.

`LoadSource` is what other workers and routers are read through; the picker sees one sum.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from kvcommons_router.metrics import Layout
from kvcommons_router.picker import Candidate

WINDOW_SECONDS: Final = 60
MICROSECONDS: Final = 1_000_000


class InstanceLoad(NamedTuple):
    """What somebody has under way at one instance."""

    waiting_tokens: int
    decoding: int
    requests: int
    head_at: float = 0.0
    """When the prefill under way there began, as far as they know."""


NOTHING: Final = InstanceLoad(0, 0, 0)
NOBODY: Final = Candidate(b"")  # stands where there is no instance


class LoadSource(Protocol):
    """Load that others put on our instances."""

    def read(self, count: int) -> Sequence[InstanceLoad]:
        """What is under way now at the first so many instances, by index."""


class Load:
    """This worker's counters and everybody's sum, kept up to date in the picker's candidates."""

    def __init__(self, layout: Layout, row: memoryview, sources: Sequence[LoadSource]) -> None:
        count = layout.instances_max
        self._candidates = [NOBODY] * count
        self._present: list[int] = []
        self.sources = list(sources)
        self._row = row
        self._tokens_column = layout.waiting_tokens
        self._decoding_column = layout.decoding
        self._requests_column = layout.dispatched
        self._work_column = layout.prefill_work
        self._others: list[InstanceLoad] = [NOTHING] * count

    def follow(self, candidates: Mapping[int, Candidate]) -> None:
        """Takes which instances there are, by index; a new one has nothing under way from here."""
        for index in set(self._present) | set(candidates):
            candidate = candidates.get(index, NOBODY)
            if candidate is not self._candidates[index]:
                self._candidates[index] = candidate
                self._others[index] = NOTHING
        self._present = sorted(candidates)

    def dispatched(self, index: int, tokens: int, work_seconds: float, now: float) -> None:
        """A request with this much to prefill went to an instance."""
        row, candidate = self._row, self._candidates[index]
        if candidate.requests <= candidate.decoding:
            candidate.head_at = now
        row[self._tokens_column + index] += tokens
        row[self._requests_column + index] += 1
        row[self._work_column] += int(work_seconds * MICROSECONDS)
        candidate.waiting_tokens += tokens
        candidate.requests += 1

    def prefilled(self, index: int, tokens: int, now: float) -> None:
        """Its first byte came: the prefill is done and decoding begins, and that of the next one, too."""
        row, candidate = self._row, self._candidates[index]
        candidate.head_at = now
        row[self._tokens_column + index] -= tokens
        row[self._decoding_column + index] += 1
        candidate.waiting_tokens -= tokens
        candidate.decoding += 1

    def finished(self, index: int, tokens: int, *, was_decoding: bool) -> None:
        """It ended, however it did."""
        row, candidate = self._row, self._candidates[index]
        row[self._requests_column + index] -= 1
        candidate.requests -= 1
        if was_decoding:
            row[self._decoding_column + index] -= 1
            candidate.decoding -= 1
        else:
            row[self._tokens_column + index] -= tokens
            candidate.waiting_tokens -= tokens

    def own(self) -> Sequence[tuple[int, int, int]]:
        """What this worker has under way at each instance, by index: tokens, decoding, requests."""
        count = self._present[-1] + 1 if self._present else 0
        columns = (self._tokens_column, self._decoding_column, self._requests_column)
        return list(zip(*[self._row[first : first + count].tolist() for first in columns], strict=True))

    def refresh(self) -> None:
        """Reads the others' load again; called every few ten milliseconds."""
        if not self.sources or not self._present:
            return
        read = [source.read(self._present[-1] + 1) for source in self.sources]
        for index in self._present:
            candidate = self._candidates[index]
            loads = [source[index] for source in read]
            tokens = sum([load.waiting_tokens for load in loads])
            decoding = sum([load.decoding for load in loads])
            requests = sum([load.requests for load in loads])
            heads = [load.head_at for load in loads]
            before = self._others[index]
            candidate.waiting_tokens += tokens - before.waiting_tokens
            candidate.decoding += decoding - before.decoding
            candidate.requests += requests - before.requests
            candidate.head_at = max(candidate.head_at, *heads)
            self._others[index] = InstanceLoad(tokens, decoding, requests)


class Utilisation:
    """The share of the last minute that the fleet spent prefilling, from a counter of the work sent out."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW_SECONDS + 2)
        self.rho = 0.0

    def sample(self, work_seconds_total: float, instances: int, now: float | None = None) -> float:
        """Takes the counter's value about once a second; the share so far."""
        now = time.monotonic() if now is None else now
        samples = self._samples
        if not samples or now - samples[-1][0] >= 1.0:
            samples.append((now, work_seconds_total))
        while len(samples) > 2 and now - samples[1][0] >= WINDOW_SECONDS:
            samples.popleft()
        then, before = samples[0]
        # In the first seconds there is no minute to look back on; two seconds of work make no busy fleet.
        span = max(now - then, 2.0)
        self.rho = min(1.0, max(0.0, (work_seconds_total - before) / (max(1, instances) * span)))
        return self.rho
