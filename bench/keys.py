"""Token keys of a long prompt against raw SHA-256 of the same tokens' bytes by hashlib, round by round.

    python -m bench.keys [--tokens 131072] [--rounds 40]

Prints one JSON line. `ratios.over_sha256` is the median of each round's ratio: neighbours on the machine disturb both sides alike. The raw
hash is one call over all bytes; the chain also hashes a parent for each chunk and closes each hash, so it can't reach 1.
"""

from __future__ import annotations

import argparse
import array
import hashlib
import json
import statistics
import time
from collections.abc import Callable

from kvcommons_core import _native

CHUNK_TOKENS = 256
LIMITS = {"over_sha256": 0.65}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(tokens_count: int, rounds: int) -> dict[str, object]:
    tokens = array.array("I", ((index * 2_654_435_761) % 128_000 for index in range(tokens_count)))
    as_list, raw, root = tokens.tolist(), tokens.tobytes(), bytes(32)
    ways: dict[str, Callable[[], object]] = {
        "chain": lambda: _native.chain_keys(root, tokens, CHUNK_TOKENS),
        "sha256": lambda: hashlib.sha256(raw).digest(),
        "list": lambda: _native.chain_keys(root, as_list, CHUNK_TOKENS),
        "segments": lambda: _native.segment_keys(root, tokens, CHUNK_TOKENS),
        "xxh3": lambda: _native.xxh3_64(raw),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(seconds(way))

    def mtok_s(name: str) -> float:
        return round(tokens_count / statistics.median(taken[name]) / 1e6, 1)

    pairs = zip(taken["sha256"], taken["chain"], strict=True)
    return {
        "name": "keys",
        "figures": {
            "mtok_s": mtok_s("chain"),
            "mtok_s_sha256": mtok_s("sha256"),
            "mtok_s_from_list": mtok_s("list"),
            "mtok_s_segments": mtok_s("segments"),
            "xxh3_gb_s": round(len(raw) / statistics.median(taken["xxh3"]) / 1e9, 1),
            "cpu": _native.cpu_features(),
        },
        "limits": LIMITS,
        "ratios": {"over_sha256": round(statistics.median(raw_s / chain_s for raw_s, chain_s in pairs), 3)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.tokens, arguments.rounds)))


if __name__ == "__main__":
    main()
