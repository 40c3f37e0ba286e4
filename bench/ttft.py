"""Time to first token: cold, from the engine's own prefix cache, and from the commons in an engine that never saw the text.

Two engines on one node, in their default multi-process form. The first computes each prompt (cold) and so stores it. The second, whose
KV pool has been touched before, is asked for it (commons) and asked again (its own prefix cache): the same tokens are recomputed both
times, so the ratio of the two is what moving KV costs. Beside it, the native load alone against the best plain copy of the same bytes.

    python -m bench.ttft [--model small|DIR] [--lengths 1024,2048,4096] [--rounds 7] [--peers]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.models import VOCABULARY, small_llama
from bench.raw_load import load_over_memcpy

ARENA_BYTES = 3 << 30
POOL_TOKENS = 16_384
LIMITS = {"pool_over_native_4096": 1.08, "load_over_memcpy": 0.8}


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
    _until_hang_up(connection)
    node.stop()


def run_engine(connection: Connection, model: str, transfer: dict[str, Any], core: int) -> None:
    """One engine: answers a prompt with (milliseconds, tokens, cached tokens)."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_CPU_KVCACHE_SPACE="2",
        VLLM_CPU_OMP_THREADS_BIND=str(core),
    )
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    llm = LLM(
        model=model,
        enforce_eager=True,
        max_model_len=8192,
        dtype="float32",
        seed=0,
        max_num_batched_tokens=8192,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        num_gpu_blocks_override=POOL_TOKENS // 128,
        kv_transfer_config=KVTransferConfig(**transfer),
        disable_hybrid_kv_cache_manager=transfer["kv_connector"] == "ExampleConnector",  # it knows nothing of it
    )
    parameters = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    connection.send("ready")
    while True:
        try:
            ids = connection.recv()
        except EOFError:
            return
        begin = time.perf_counter()
        output = llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)[0]
        connection.send(
            ((time.perf_counter() - begin) * 1e3, list(output.outputs[0].token_ids), output.num_cached_tokens)
        )


def _until_hang_up(connection: Connection) -> None:
    try:
        connection.recv()
    except EOFError:
        return


class Child:
    """A process with a pipe."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until it is."""
        if self.connection.recv() != "ready":
            raise RuntimeError("a child did not come up")

    def ask(self, question: Any) -> Any:
        """One question, one answer."""
        self.connection.send(question)
        return self.connection.recv()

    def close(self) -> None:
        """Hang up and wait."""
        self.connection.close()
        self.process.join(30)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def connector(socket: str) -> dict[str, Any]:
    """As a user writes it."""
    return {
        "kv_connector": "KVCommonsConnector",
        "kv_connector_module_path": "kvcommons_connector.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": socket},
    }


def measure(first: Child, second: Child, lengths: list[int], rounds: int) -> dict[int, dict[str, list[float]]]:
    """Milliseconds of each kind by length; raises if an answer differs or less was reused than can be."""
    source = random.Random(7)
    _warm(first, second, source, max(lengths))
    times: dict[int, dict[str, list[float]]] = {n: {"cold": [], "commons": [], "native": []} for n in lengths}
    for _ in range(rounds):
        for length in lengths:
            ids = [source.randrange(10, VOCABULARY - 10) for _ in range(length)]
            cold, expected, _ = first.ask(ids)
            first.ask(
                [source.randrange(10, 100) for _ in range(3)]
            )  # a step, so that the stores are known to have ended
            commons, answer, reused = second.ask(ids)
            native, again, own = second.ask(ids)
            if not (answer == again == expected and reused == own == (length - 1) // 128 * 128):
                raise RuntimeError(
                    f"{length} tokens: {expected} cold, {answer} with {reused} from the commons, {again} with {own} own"
                )
            for kind, value in (("cold", cold), ("commons", commons), ("native", native)):
                times[length][kind].append(value)
    return times


def _warm(first: Child, second: Child, source: random.Random, length: int) -> None:
    """Touch every block of both pools, run each path once."""
    for _ in range(POOL_TOKENS // length + 1):
        ids = [source.randrange(10, VOCABULARY - 10) for _ in range(length)]
        for engine in (first, second):
            engine.ask(ids)
    for _ in range(2):
        ids = [source.randrange(10, VOCABULARY - 10) for _ in range(length)]
        first.ask(ids)
        first.ask(ids[:5])
        second.ask(ids)
        second.ask(ids)


def engines_on(model: str, transfer: dict[str, Any], lengths: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """Medians by length and kind."""
    first, second = Child(run_engine, model, transfer, 0), Child(run_engine, model, transfer, 1 % (os.cpu_count() or 1))
    try:
        first.ready()
        second.ready()
        times = measure(first, second, lengths, rounds)
        return {
            length: {kind: round(statistics.median(values), 2) for kind, values in kinds.items()}
            for length, kinds in times.items()
        }
    finally:
        second.close()
        first.close()


def main() -> int:
    """Print one JSON line; the exit status says whether the limits held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help='"small": a random Llama; or the folder of a model')
    parser.add_argument("--lengths", default="1024,2048,4096")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="also vLLM's ExampleConnector")
    options = parser.parse_args()
    lengths = [int(text) for text in options.lengths.split(",")]
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        model = options.model
        if model == "small":
            model = str(small_llama(Path(os.environ.get("KVCOMMONS_CACHE", folder)) / "random-models" / "small-llama"))
        socket = str(Path(folder) / "node.sock")
        node = Child(run_node, socket)
        try:
            node.ready()
            raw = load_over_memcpy(socket, 15)
            medians = engines_on(model, connector(socket), lengths, options.rounds)
        finally:
            node.close()
        peers = {}
        if options.peers:
            shared = str(Path(folder) / "example")
            peer = {
                "kv_connector": "ExampleConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {"shared_storage_path": shared},
            }
            peers["example"] = engines_on(model, peer, lengths, options.rounds)
        report(medians, raw, peers, options)
    return 0


def report(
    medians: dict[int, dict[str, float]],
    raw: dict[str, float],
    peers: dict[str, dict[int, dict[str, float]]],
    options: argparse.Namespace,
) -> None:
    """The one line."""
    ratios = {f"pool_over_native_{n}": round(kinds["commons"] / kinds["native"], 3) for n, kinds in medians.items()}
    ratios |= {f"cold_over_pool_{n}": round(kinds["cold"] / kinds["commons"], 1) for n, kinds in medians.items()}
    for peer, theirs in peers.items():
        ratios |= {
            f"{peer}_over_native_{n}": round(kinds["commons"] / kinds["native"], 3) for n, kinds in theirs.items()
        }
    ratios["load_over_memcpy"] = raw.pop("load_over_memcpy")
    figures = {"model": options.model, "ttft_ms": medians, "raw_load": raw, "peers_ttft_ms": peers}
    print(json.dumps({"name": "ttft", "figures": figures, "limits": LIMITS, "ratios": ratios}))


if __name__ == "__main__":
    sys.exit(main())
