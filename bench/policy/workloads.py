"""What is asked of a fleet: a recorded trace, and seeded made-up ones of other shapes.

A made-up trace is dimensioned for eight replicas: as they are, its bursts are overload and its mean is not.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.policy.world import Request

REQUESTS_MAX: Final = 1_000_000
DURATION_SECONDS: Final = 600.0


def read(path: Path, speed: float, limit: int = REQUESTS_MAX) -> list[Request]:
    """A trace of one JSON object a line: `timestamp` (ms), `hash_ids`, `output_length`. Requests of one moment are spread until the next.

    :raises ValueError: naming the file, the line and what it must hold.
    """
    rows: list[tuple[float, list[int], int]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if number > limit:
                break
            value = json.loads(line)
            row = (
                (value.get("timestamp"), value.get("hash_ids"), value.get("output_length"))
                if isinstance(value, dict)
                else None
            )
            if (
                row is None
                or not isinstance(row[0], int | float)
                or not isinstance(row[1], list)
                or not isinstance(row[2], int)
            ):
                raise ValueError(
                    f"{path}:{number}: has no timestamp, hash_ids and output_length: write an object with these three"
                )
            if row[1]:
                rows.append((row[0] / 1000, row[1], row[2]))
    rows.sort(key=lambda row: row[0])
    found: list[Request] = []
    for moment, group in itertools.groupby(rows, key=lambda row: row[0]):
        same = list(group)
        at = len(found) + len(same)
        gap = rows[at][0] - moment if at < len(rows) else 1.0
        found += [
            Request((moment + gap * place / len(same)) / speed, blocks, answer)
            for place, (_, blocks, answer) in enumerate(same)
        ]
    return found


class Source:
    """What all made-up traces draw from."""

    def __init__(self, kind: str, seed: int) -> None:
        self.random = random.Random(f"{kind}:{seed}")
        self._blocks = itertools.count()
        self._chains: dict[tuple[int, int], int] = {}

    def fresh(self, blocks: int) -> list[int]:
        """Texts that nobody has asked for."""
        return list(itertools.islice(self._blocks, blocks))

    def chain(self, texts: list[int]) -> list[int]:
        """Equal numbers for equal beginnings."""
        before, found = -1, []
        for text in texts:
            before = self._chains.setdefault((before, text), len(self._chains))
            found.append(before)
        return found

    def zipf(self, count: int, exponent: float) -> Callable[[], int]:
        """Choices of uneven popularity."""
        bounds = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(count)))
        return lambda: bisect(bounds, self.random.random() * bounds[-1], hi=count - 1)

    def length(self, median: float, spread: float, most: int) -> int:
        """A number of blocks, some of them much larger than most."""
        return max(1, min(most, round(self.random.lognormvariate(math.log(median), spread))))

    def answer(self) -> int:
        """Tokens of an answer."""
        return 1 + round(self.random.expovariate(1 / 250))


def _sessions(source: Source, rate: Callable[[float], float], rate_max: float) -> Iterator[Request]:
    """Conversations that grow, at a rate of new ones that may change."""
    rng = source.random
    systems = [source.fresh(rng.choice((1, 2, 4, 8))) for _ in range(20)]
    system, serial = source.zipf(len(systems), 1.2), itertools.count()
    due: list[tuple[float, int, list[int]]] = []
    clock = 0.0
    while True:
        clock += rng.expovariate(rate_max)
        if rng.random() * rate_max < rate(clock):
            heapq.heappush(due, (clock, next(serial), systems[system()] + source.fresh(source.length(6, 1.2, 120))))
        while due and due[0][0] <= clock:
            at, _, texts = heapq.heappop(due)
            answer = source.answer()
            yield Request(at, source.chain(texts), answer)
            if rng.random() < 0.75:
                think = rng.lognormvariate(3.0, 1.0) + answer * 0.02
                grown = texts + source.fresh(source.length(2, 0.8, 30))
                heapq.heappush(due, (at + think, next(serial), grown))


def _chat(source: Source) -> Iterator[Request]:
    """Conversations that grow turn by turn after thinking times, under a few system prompts."""
    return _sessions(source, lambda _: 4.0, 4.0)


def _bursts(source: Source) -> Iterator[Request]:
    """The same, where half a minute of every two brings four times as many."""
    return _sessions(source, lambda clock: 7.0 if clock % 120 < 30 else 1.75, 7.0)


def _rag(source: Source) -> Iterator[Request]:
    """Instructions, one to three documents of uneven popularity, a question that nobody asks twice."""
    rng = source.random
    instructions = [source.fresh(2) for _ in range(4)]
    documents = [source.fresh(source.length(8, 0.8, 60)) for _ in range(1500)]
    document, clock = source.zipf(len(documents), 1.0), 0.0
    while True:
        clock += rng.expovariate(16.0)
        texts = list(rng.choice(instructions))
        for _ in range(rng.choice((1, 1, 2, 3))):
            texts += documents[document()]
        yield Request(clock, source.chain(texts + source.fresh(1)), source.answer())


def _agents(source: Source) -> Iterator[Request]:
    """Runs of many quick steps over long tool descriptions, and now and then a batch of documents that are read once."""
    rng = source.random
    tools = [source.fresh(rng.choice((8, 16, 32))) for _ in range(12)]
    tool, serial = source.zipf(len(tools), 0.9), itertools.count()
    due: list[tuple[float, int, int, list[int]]] = []
    clock = 0.0
    while True:
        clock += rng.expovariate(2.5)
        steps = 1 + round(rng.expovariate(1 / 14))
        heapq.heappush(due, (clock, next(serial), steps, tools[tool()] + source.fresh(3)))
        if rng.random() < 0.01:
            for _ in range(rng.randrange(10, 40)):
                heapq.heappush(due, (clock, next(serial), 1, source.fresh(source.length(16, 0.7, 100))))
        while due and due[0][0] <= clock:
            at, _, left, texts = heapq.heappop(due)
            answer = 1 + round(rng.expovariate(1 / 60))
            yield Request(at, source.chain(texts), answer)
            if left > 1:
                pause = answer * 0.02 + rng.expovariate(1 / 3)
                heapq.heappush(
                    due, (at + pause, next(serial), left - 1, texts + source.fresh(source.length(1.5, 0.8, 20)))
                )


KINDS: Final[dict[str, Callable[[Source], Iterator[Request]]]] = {
    "chat": _chat,
    "rag": _rag,
    "agents": _agents,
    "bursts": _bursts,
}


def make(kind: str, seed: int, seconds: float = DURATION_SECONDS) -> list[Request]:
    """So many seconds of a made-up trace."""
    found = itertools.takewhile(lambda request: request.at < seconds, KINDS[kind](Source(kind, seed)))
    return sorted(found, key=lambda request: request.at)
