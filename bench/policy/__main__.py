"""Routing policies on a trace, simulated: ours by the code that the router runs, the peers' by their formulas, tuned on that very trace.

    python -m bench.policy TRACE [--speed 4] [--replicas 8] [--blocks 1000] [--commons 60000] [--routers 1] [--seeds 101]

A TRACE has one JSON object a line with `timestamp` (ms), `hash_ids` (one number for each 512 tokens of a prompt) and `output_length`, as the
FAST'25 traces of kvcache-ai/Mooncake. It is run with one cache in each replica, then with a commons beside them; made-up workloads come after
(`--seeds ''` for none). Prints a line a run, in milliseconds from arrival to first byte, then the front: what nothing else beats in mean and p99.

`figures.mean_ms` and `p99_ms` are the default policy's; `best_peer_mean_ms` and `best_peer_p99_ms` each the best that any peer reached with
any of its settings, not necessarily at once. bench/policy/world.py says what is simulated, peers.py what was tried.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kvcommons_router.picker import Policy

from bench.common import report
from bench.policy import ours, peers, workloads
from bench.policy.world import MakePolicy, Request, Setup, World

LIMITS: Final = {"mean_over_best_peer": 1 / 1.5, "p99_over_best_peer": 1.0, "commons_mean_over_best_peer": 1.0}
DEFAULT: Final = "cost, late binding"
OURS: Final[dict[str, MakePolicy]] = {
    DEFAULT: ours.late(),
    "cost": ours.on_arrival(Policy.COST),
    "prefixHash": ours.on_arrival(Policy.PREFIX_HASH),
    "leastLoad": ours.on_arrival(Policy.LEAST_LOAD),
    "roundRobin": ours.on_arrival(Policy.ROUND_ROBIN),
}


@dataclass(frozen=True)
class Row:
    """One policy with one setting, over one trace."""

    name: str
    peer: bool
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    found: float
    """Share of the blocks that were in the replica."""
    fetched: float
    """Share of the blocks that came from the commons."""
    utilisation: float

    def line(self) -> str:
        """For people."""
        return (
            f"{self.name:<52} mean {self.mean_ms:7.0f}  p50 {self.p50_ms:7.0f}  p90 {self.p90_ms:7.0f}  p99 {self.p99_ms:7.0f}"
            f"  found {self.found:.3f}  fetched {self.fetched:.3f}  busy {self.utilisation:.2f}"
        )


def measure(name: str, setup: Setup, trace: Sequence[Request], make: MakePolicy, *, peer: bool = False) -> Row:
    """Runs one policy."""
    outcome = World(setup, make).run(trace)
    blocks = max(1, outcome.blocks)
    p50, p90, p99 = (outcome.percentile_ms(percent) for percent in (50, 90, 99))
    found, fetched = outcome.found / blocks, outcome.fetched / blocks
    return Row(name, peer, outcome.mean_ms, p50, p90, p99, found, fetched, outcome.utilisation)


def peer_rows(setup: Setup, trace: Sequence[Request], *, quick: bool) -> Iterator[Row]:
    """Every peer with every setting that is tried; with `quick` only with its own."""
    tiers = peers.TIERS if setup.commons and not quick else peers.TIERS[:1]
    for name, one in peers.PEERS.items():
        for settings in one.combinations()[: 1 if quick else None]:
            for tier in tiers:
                shown = " ".join(f"{key} {value:g}" for key, value in settings.items())
                label = f"{name} {shown}" + (f" tier {tier:g}" if len(tiers) > 1 else "")
                yield measure(label, setup, trace, peers.peer(name, settings, tier), peer=True)


def front(rows: Sequence[Row]) -> list[Row]:
    """Those that no other is better than in both mean and p99, by mean."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.mean_ms, row.p99_ms)):
        if not best or row.p99_ms < best[-1].p99_ms:
            best.append(row)
    return best


def compare(title: str, setup: Setup, trace: Sequence[Request], *, quick: bool) -> dict[str, float]:
    """Runs all on one trace, prints them, and gives the figures."""
    print(
        f"# {title}: {len(trace)} requests, {setup.replicas} replicas of {setup.blocks} blocks, commons {setup.commons}, {setup.routers} router(s)"
    )
    began = time.perf_counter()
    rows: list[Row] = []
    for name, make in OURS.items():
        rows.append(measure(name, setup, trace, make))
        print(rows[-1].line(), flush=True)
    rivals = list(peer_rows(setup, trace, quick=quick))
    for name in peers.PEERS:
        own = [row for row in rivals if row.name.split()[0] == name]
        for row in dict.fromkeys((min(own, key=lambda row: row.mean_ms), min(own, key=lambda row: row.p99_ms))):
            print(row.line())
    rows += rivals
    print(f"  front of mean against p99, of {len(rows)} runs in {time.perf_counter() - began:.0f} s:")
    for row in front(rows):
        print(f"    {row.name:<50} {row.mean_ms:7.0f} {row.p99_ms:7.0f}", flush=True)
    best = rows[0]
    return {
        "mean_ms": best.mean_ms,
        "p99_ms": best.p99_ms,
        "best_peer_mean_ms": min(row.mean_ms for row in rivals),
        "best_peer_p99_ms": min(row.p99_ms for row in rivals),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE")
    parser.add_argument("--speed", type=float, default=4.0, help="how many times as fast as recorded")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=1000, help="that a replica has room for")
    parser.add_argument(
        "--commons", type=int, default=60_000, help="blocks that the commons holds; 0 leaves that part out"
    )
    parser.add_argument("--routers", type=int, default=1, help="that share the index and, every 30 ms, their load")
    parser.add_argument("--requests", type=int, default=workloads.REQUESTS_MAX, help="of the trace, from its beginning")
    parser.add_argument("--seeds", default="101", help="of the made-up workloads; empty for none of them")
    parser.add_argument("--kinds", default=",".join(workloads.KINDS), help="of made-up workloads")
    parser.add_argument("--seconds", type=float, default=workloads.DURATION_SECONDS, help="of each made-up workload")
    parser.add_argument("--quick", action="store_true", help="peers with their own settings alone")
    arguments = parser.parse_args()
    setup = Setup(arguments.replicas, arguments.blocks, routers=arguments.routers)
    figures: dict[str, object] = {}
    if arguments.trace is not None:
        trace = workloads.read(arguments.trace, arguments.speed, arguments.requests)
        figures |= compare(arguments.trace.stem, setup, trace, quick=arguments.quick)
        if arguments.commons:
            shared = compare(
                arguments.trace.stem, replace(setup, commons=arguments.commons), trace, quick=arguments.quick
            )
            figures |= {f"commons_{name}": value for name, value in shared.items()}
    for seed in (int(seed) for seed in arguments.seeds.split(",") if seed):
        for kind in arguments.kinds.split(","):
            trace = workloads.make(kind, seed, arguments.seconds)
            found = compare(f"{kind} seed {seed}", setup, trace, quick=arguments.quick)
            figures |= {f"{kind}_{seed}_{name}": value for name, value in found.items()}
    if not figures:
        parser.error("nothing to run: name a TRACE, or seeds of made-up workloads")
    ratios = {
        name.replace("best_peer_mean_ms", "mean_over_best_peer").replace("best_peer_p99_ms", "p99_over_best_peer"): (
            _number(figures[name.replace("best_peer_", "")]) / _number(value)
        )
        for name, value in figures.items()
        if "best_peer" in name
    }
    report("policy", figures, LIMITS, ratios)


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value


if __name__ == "__main__":
    main()
