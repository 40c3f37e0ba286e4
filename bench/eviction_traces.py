"""Made-up streams of requests for the eviction benchmark: chat, RAG, agents, and a day in which these follow one another.

A request is a list of chunk numbers. A number stands for a chunk and all before it, as a token key does: the same text after another
beginning has another number. The same kind and seed make the same stream.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect
from collections.abc import Callable, Iterator
from typing import Final

Trace = list[list[int]]
ACCESSES: Final = 120_000
"""Chunks asked for in a stream, about."""


class Numbers:
    """A number for each chain of texts."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, int], int] = {}

    def chain(self, texts: list[int], before: int = -1) -> list[int]:
        chain = []
        for text in texts:
            before = self._of.setdefault((before, text), len(self._of))
            chain.append(before)
        return chain


class Source:
    """What all streams draw from: fresh texts, and choices of uneven popularity."""

    def __init__(self, kind: str, seed: int) -> None:
        self.random = random.Random(f"{kind}:{seed}")
        self._texts = itertools.count()
        self.numbers = Numbers()

    def fresh(self, chunks: int) -> list[int]:
        return list(itertools.islice(self._texts, chunks))

    def zipf(self, count: int, exponent: float) -> Callable[[], int]:
        bounds = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(count)))
        return lambda: bisect(bounds, self.random.random() * bounds[-1], hi=count - 1)

    def length(self, mean: float) -> int:
        return max(1, round(self.random.expovariate(1 / mean)))


def _chat(source: Source) -> Iterator[list[int]]:
    """Conversations that grow turn by turn after thinking times, under a few system prompts. Many end after one turn."""
    rng = source.random
    systems = [source.fresh(rng.choice((1, 2, 4, 8))) for _ in range(40)]
    system, serial = source.zipf(len(systems), 1.2), itertools.count()
    clock, arrival = 0.0, rng.choice((0.5, 1.0, 2.0))
    due: list[tuple[float, int, list[int]]] = []
    while True:
        clock += rng.expovariate(arrival)
        heapq.heappush(due, (clock, next(serial), systems[system()] + source.fresh(source.length(4))))
        while due and due[0][0] <= clock:
            at, _, texts = heapq.heappop(due)
            yield source.numbers.chain(texts)
            if rng.random() < 0.72:
                think = rng.lognormvariate(3.5, 1.2)
                heapq.heappush(due, (at + think, next(serial), texts + source.fresh(source.length(2))))


def _rag(source: Source) -> Iterator[list[int]]:
    """Instructions, then documents of uneven and drifting popularity, then a question that nobody asks twice."""
    rng = source.random
    instructions = [source.fresh(3) for _ in range(4)]
    documents = [source.fresh(source.length(6)) for _ in range(3_000)]
    rank, drift = source.zipf(len(documents), rng.choice((0.8, 1.0, 1.2))), 0
    while True:
        texts = list(rng.choice(instructions))
        for _ in range(rng.choice((1, 2, 2, 3))):
            texts += documents[(rank() + drift) % len(documents)]
        yield source.numbers.chain(texts + source.fresh(1))
        if rng.random() < 0.01:
            drift += rng.randrange(20)


def _agents(source: Source) -> Iterator[list[int]]:
    """Runs of many quick steps over long tool descriptions, now and then a batch of documents that are read once."""
    rng = source.random
    tools = [source.fresh(rng.choice((8, 16, 32))) for _ in range(12)]
    tool, serial = source.zipf(len(tools), 0.9), itertools.count()
    due: list[tuple[float, int, int, list[int]]] = []
    clock = 0.0
    while True:
        clock += rng.expovariate(0.25)
        heapq.heappush(due, (clock, next(serial), source.length(15), tools[tool()] + source.fresh(2)))
        if rng.random() < 0.02:
            for _ in range(rng.randrange(20, 120)):
                yield source.numbers.chain(source.fresh(source.length(12)))
        while due and due[0][0] <= clock:
            at, _, left, texts = heapq.heappop(due)
            yield source.numbers.chain(texts)
            if left > 1:
                pause = rng.expovariate(1 / 3) if rng.random() < 0.95 else rng.expovariate(1 / 120)
                step = (at + pause, next(serial), left - 1, texts + source.fresh(source.length(1.5)))
                heapq.heappush(due, step)


def _phases(source: Source) -> Iterator[list[int]]:
    """One after the other: what was best for an hour is not for the next."""
    streams = [_chat(source), _rag(source), _agents(source)]
    source.random.shuffle(streams)
    while True:
        for stream in streams:
            accesses = 0
            while accesses < ACCESSES // 6:
                request = next(stream)
                accesses += len(request)
                yield request


KINDS: Final[dict[str, Callable[[Source], Iterator[list[int]]]]] = {
    "chat": _chat,
    "rag": _rag,
    "agents": _agents,
    "phases": _phases,
}


def make(kind: str, seed: int, accesses: int = ACCESSES) -> Trace:
    """A stream of about so many accesses to chunks."""
    trace: Trace = []
    total = 0
    for request in KINDS[kind](Source(kind, seed)):
        trace.append(request)
        total += len(request)
        if total >= accesses:
            break
    return trace
