"""Time to first token: cold, from the engine's own prefix cache, and from the commons in an engine that never saw the text.

Two engines on one node, in their default multi-process form. The first computes each prompt (cold) and so stores it. The second, whose
KV pool has been touched before, is asked for it (commons) and asked again (its own prefix cache, native): the same tokens are computed
both times, one block of 128, so the ratio of the two is what moving KV costs. Then it forgets its own prefix cache, and the pair is
asked again. On a machine that does other things too, neighbours in time are compared: each ratio is the median of those of the pairs.
Beside it, the native load alone against the best plain copy of the same bytes.

    python -m bench.ttft [--model small|DIR] [--lengths 1024,2048,4096] [--rounds 5] [--pairs 4] [--peers [--peer-python PYTHON]]

A prompt is a text of the given length, which is what can be reused, and 128 tokens more, so that every connector computes the same:
ours could reuse the last chunk in part, others cannot. --peers measures vLLM's ExampleConnector and, where the interpreter that
--peer-python names has it beside vLLM, LMCache's multi-process server in the same way, each against the native hit of its own engine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from kvcommons_cli.progress import Progress

from bench import common, rivals
from bench.models import VOCABULARY, small_llama
from bench.raw_load import load_over_memcpy

ARENA_BYTES = 2 << 30
POOL_TOKENS = 16_384
BLOCK_TOKENS = 128
SETTLE_SECONDS = 0.3  # for stores in the background, a peer's too, of which nobody tells when they have ended
LIMITS = {"pool_over_native_4096": 1.08, "load_over_memcpy": 0.8}
KINDS = ("cold", "commons", "native")

Times = dict[int, dict[str, list[float]]]


def run_node(connection: Connection, socket: str) -> None:
    """A cache node's core, until the other side hangs up."""
    from kvcommons_core import _native

    node = _native.NodeCore(
        socket_path=socket,
        arena_bytes=ARENA_BYTES,
        node_id="bench",
        namespace_secret=bytes(32),
        slab_bytes=256 << 20,
        populate=True,
    )
    node.start()
    connection.send("ready")
    try:
        connection.recv()
    except EOFError:
        node.stop()


class Node:
    """The node in a process of its own."""

    def __init__(self, socket: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_node, args=(theirs, socket))
        self._process.start()
        theirs.close()
        if self._connection.recv() != "ready":
            raise RuntimeError("the node did not come up")

    def close(self) -> None:
        """Hang up and wait."""
        self._connection.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Engine:
    """An engine in a process of its own; see ttft_engine.py."""

    def __init__(self, python: str, folder: Path, model: str, transfer: dict[str, Any], core: int) -> None:
        address = str(folder / f"engine-{core}.sock")
        settings = {"model": model, "transfer": transfer, "core": core, "blocks": POOL_TOKENS // BLOCK_TOKENS}
        script = str(Path(__file__).with_name("ttft_engine.py"))
        with Listener(address, family="AF_UNIX") as listener:
            self._process = subprocess.Popen(
                [python, "-P", script, address, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                env=os.environ | rivals.ENVIRONMENT,
            )
            self._connection = listener.accept()

    def ready(self) -> None:
        """Wait until it is."""
        if self._connection.recv() != "ready":
            raise RuntimeError("an engine did not come up")

    def ask(self, ids: Sequence[int]) -> tuple[float, list[int], int]:
        """Milliseconds, the answer, and how many tokens were not computed."""
        self._connection.send(list(ids))
        return self._connection.recv()  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Empty the engine's own prefix cache."""
        for _ in range(100):
            self._connection.send(None)
            if self._connection.recv():
                return
            self.ask([11, 12, 13])  # blocks that a store holds are given back by a step
        raise RuntimeError("the engine does not reset its prefix cache")

    def close(self) -> None:
        """Hang up and wait."""
        self._connection.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure(first: Engine, second: Engine, lengths: Sequence[int], rounds: int, pairs: int) -> Times:
    """Milliseconds of each kind by length; commons and native side by side. Raises if an answer or what was reused is not as expected."""
    source = random.Random(7)
    _warm(first, second, source, max(lengths))
    times: Times = {length: {kind: [] for kind in KINDS} for length in lengths}
    for _ in range(rounds):
        for length in lengths:
            ids = _prompt(source, length)
            cold, expected, _ = first.ask(ids)
            _settle(first)
            times[length]["cold"].append(cold)
            for _ in range(pairs):
                second.forget()
                for kind in ("commons", "native"):
                    took, answer, reused = second.ask(ids)
                    if answer != expected or reused != length:
                        raise RuntimeError(f"{kind}, {length}: {answer} with {reused} reused, {expected} cold")
                    times[length][kind].append(took)
    return times


def _prompt(source: random.Random, length: int) -> list[int]:
    return [source.randrange(10, VOCABULARY - 10) for _ in range(length + BLOCK_TOKENS)]


def _settle(engine: Engine) -> None:
    time.sleep(SETTLE_SECONDS)
    engine.ask([11, 12, 13])  # a step, so that the stores are known to have ended


def _warm(first: Engine, second: Engine, source: random.Random, length: int) -> None:
    """Touch every block of both pools, run each path twice."""
    for number in range(POOL_TOKENS // length + 2):
        ids = _prompt(source, length)
        first.ask(ids)
        _settle(first)
        for _ in range(2 if number < 2 else 1):
            second.ask(ids)


def engines_on(python: str, folder: Path, model: str, transfer: dict[str, Any], options: argparse.Namespace) -> Times:
    """Two engines with a connector, measured."""
    started: list[Engine] = []
    try:
        for core in range(2):
            started.append(Engine(python, folder, model, transfer, core % (os.cpu_count() or 1)))
        for engine in started:
            engine.ready()
        return measure(started[0], started[1], options.lengths, options.rounds, options.pairs)
    finally:
        for engine in started:
            engine.close()


def ours(folder: Path, model: str, options: argparse.Namespace) -> tuple[dict[str, float], Times]:
    """The native load alone, then the engines on the same node."""
    socket = str(folder / "node.sock")
    transfer = {
        "kv_connector": "KVCommonsConnector",
        "kv_connector_module_path": "kvcommons_connector.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": socket},
    }
    node = Node(socket)
    try:
        raw = load_over_memcpy(socket, 25)
        return raw, engines_on(sys.executable, folder, model, transfer, options)
    finally:
        node.close()


def example(folder: Path, model: str, options: argparse.Namespace) -> Times:
    """vLLM's own connector to files: here the page cache."""
    transfer = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "example")},
    }
    return engines_on(sys.executable, folder, model, transfer, options)


def lmcache(folder: Path, model: str, options: argparse.Namespace) -> Times:
    """LMCache's multi-process server."""
    with rivals.lmcache_server(folder, Progress(), options.peer_python, ARENA_BYTES) as transfer:
        return engines_on(str(options.peer_python), folder, model, transfer, options)


def ratio_of_pairs(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of what was measured side by side."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def report(raw: dict[str, float], times: dict[str, Times], options: argparse.Namespace) -> None:
    """The one line."""
    ratios = {"load_over_memcpy": raw.pop("load_over_memcpy")}
    for who, measured in times.items():
        name = "pool" if who == "ours" else who
        for length, kinds in measured.items():
            ratios[f"{name}_over_native_{length}"] = ratio_of_pairs(kinds["commons"], kinds["native"])
            medians = {kind: statistics.median(values) for kind, values in kinds.items()}
            ratios[f"cold_over_{name}_{length}"] = round(medians["cold"] / medians["commons"], 1)
    shown: dict[str, Any] = {
        who: {
            length: {
                kind: {"median": round(statistics.median(values), 2), "min": round(min(values), 2)}
                for kind, values in kinds.items()
            }
            for length, kinds in measured.items()
        }
        for who, measured in times.items()
    }
    pairs = options.rounds * options.pairs
    figures = {"model": options.model, "pairs": pairs, "ttft_ms": shown.pop("ours"), "raw_load": raw}
    figures["peers_ttft_ms"] = shown
    common.report("ttft", figures, {name: LIMITS[name] for name in LIMITS if name in ratios}, ratios)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help='"small": a random Llama; or the folder of a model')
    parser.add_argument(
        "--lengths",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[1024, 2048, 4096],
        help="multiples of 256",
    )
    parser.add_argument("--rounds", type=int, default=5, help="prompts of each length")
    parser.add_argument("--pairs", type=int, default=4, help="commons and native, how often for each prompt")
    parser.add_argument("--peers", action="store_true", help="also vLLM's ExampleConnector and LMCache")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has lmcache beside vLLM")
    return parser.parse_args()


def main() -> int:
    """Print one JSON line."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="kvc-") as name:
        folder, model = Path(name), options.model
        if model == "small":
            model = str(small_llama(Path(os.environ.get("KVCOMMONS_CACHE", folder)) / "random-models" / "small-llama"))
        raw, measured = ours(folder, model, options)
        times = {"ours": measured}
        if options.peers:
            times["example"] = example(folder, model, options)
            if options.peer_python:
                times["lmcache"] = lmcache(folder, model, options)
            else:
                print("LMCache is left out: --peer-python names no interpreter that has it", file=sys.stderr)
        report(raw, times, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
