"""Eviction policies on recorded and made-up streams of requests: chunks found, at six sizes, against a cache that knows the future.

    python -m bench.eviction [TRACE...] [--seeds 101,102] [--accesses 400000]

A TRACE has one JSON value a line: a request's chunks as a list of integers, or an object with such a list as `hash_ids` (equal numbers have
equal prefixes). Made-up streams (bench/eviction_traces.py) come besides. Each is run through the code that the store evicts by. Sizes are
fractions of the stream's distinct chunks.

Prints a line for each cell and one JSON line. `figures.worst_cell_below_best_static` is how many points of hit rate `auto` lost at most in
a cell to the best of the three others; its constants were found with seeds 1 to 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvcommons_core import _native

from bench.common import report
from bench.eviction_traces import KINDS, Trace, make

STATIC: Final = ("lru", "s3fifo", "cost")
POLICIES: Final = (*STATIC, "auto", "belady")
SIZES: Final = (0.005, 0.01, 0.03, 0.1, 0.25, 0.5)
LIMITS: Final = {"worst_cell_below_best_static": 0.3}
REQUESTS_MAX: Final = 5_000_000


@dataclass(frozen=True)
class Stream:
    """Requests as the native module takes them."""

    name: str
    lengths: array[int]
    keys: array[int]
    distinct: int


@dataclass(frozen=True)
class Cell:
    """One stream at one size."""

    stream: str
    chunks: int
    points: dict[str, float]
    """Hit rate of each policy, in percent of the chunks asked for."""
    switches: int

    @property
    def below_best_static(self) -> float:
        return max(self.points[name] for name in STATIC) - self.points["auto"]


def stream_of(name: str, trace: Iterable[Sequence[int]]) -> Stream:
    lengths, keys = array("I"), array("Q")
    for request in trace:
        lengths.append(len(request))
        keys.extend(request)
    return Stream(name, lengths, keys, len(set(keys)))


def read(path: Path) -> Trace:
    """Raises ValueError naming the file, the line and what it must hold."""
    trace: Trace = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            value = json.loads(line)
            chunks = value.get("hash_ids") if isinstance(value, dict) else value
            if not isinstance(chunks, list) or not all(
                isinstance(chunk, int) and 0 <= chunk < 2**64 for chunk in chunks
            ):
                raise ValueError(
                    f"{path}:{number}: has no list of integers: write [1, 2, ...] or an object with hash_ids"
                )
            trace.append(chunks)
            if number >= REQUESTS_MAX:
                break
    return trace


def measure(stream: Stream, fraction: float) -> Cell:
    chunks = max(1, int(fraction * stream.distinct))
    points, switches = {}, 0
    for policy in POLICIES:
        hits, _, changed = _native.eviction_replay(policy, stream.lengths, stream.keys, chunks)
        points[policy] = 100 * hits / max(1, len(stream.keys))
        switches += changed
    return Cell(stream.name, chunks, points, switches)


def show(cell: Cell) -> None:
    rates = " ".join(f"{name} {cell.points[name]:6.2f}" for name in POLICIES)
    print(
        f"{cell.stream:<24} {cell.chunks:>9} chunks: {rates}  auto {-cell.below_best_static:+.2f}, {cell.switches} changes",
        flush=True,
    )


def figures(cells: Sequence[Cell]) -> dict[str, object]:
    def mean(name: str) -> float:
        return statistics.mean(cell.points[name] for cell in cells)

    worst = max(cells, key=lambda cell: cell.below_best_static)
    return {
        "cells": len(cells),
        "worst_cell_below_best_static": worst.below_best_static,
        "worst_cell": f"{worst.stream} at {worst.chunks} chunks",
        "cells_over_limit": sum(cell.below_best_static > LIMITS["worst_cell_below_best_static"] for cell in cells),
        **{f"mean_points_{name}": mean(name) for name in POLICIES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE")
    parser.add_argument("--seeds", default="101,102", help="of the made-up streams; empty for none of them")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of made-up streams")
    parser.add_argument("--accesses", type=int, default=400_000, help="chunks asked for in each made-up stream, about")
    arguments = parser.parse_args()
    cells: list[Cell] = []

    def run(stream: Stream) -> None:
        for fraction in SIZES:
            cells.append(measure(stream, fraction))
            show(cells[-1])

    for path in arguments.traces:
        run(stream_of(path.stem, read(path)))
    for seed in (int(seed) for seed in arguments.seeds.split(",") if seed):
        for kind in arguments.kinds.split(","):
            run(stream_of(f"{kind} seed {seed}", make(kind, seed, arguments.accesses)))
    if not cells:
        parser.error("nothing to run: name a TRACE, or seeds of made-up streams")
    report("eviction", figures(cells), LIMITS, {})


if __name__ == "__main__":
    main()
