"""Requests a second and time to first token at a fixed number of clients: two engines with us, and the same two alone.

The KV space of each engine is too small for the working set, so that an engine by itself must compute again what it has dropped.
Two loads: questions about documents that come again and again (rag), and chats of several turns whose histories grow (chat). Alone,
clients take turns between the engines, as a plain service does; with us they ask the router. Everything else is the same: model,
seeds, prompts, order, clients. `reuse_possible` is the share of prompt tokens that somebody had computed before.

    python -m bench.throughput [--clients 4] [--rag-requests 48] [--chat-sessions 24] [--only rag|chat] [--peers]

--peers measures LMCache's multi-process server beside us, with clients that take turns; --peer-python names the interpreter of an
environment that has vLLM and lmcache, where that is not this one.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from kvcommons_cli import engines, talk
from kvcommons_cli.engines import MODEL_NAME, EngineSpec
from kvcommons_cli.model import make_random_llama
from kvcommons_cli.processes import Guarded, spawn, stop_all
from kvcommons_cli.progress import Progress, wait_ready
from kvcommons_cli.stack import ENGINE_SECONDS_MAX, Stack, StackOptions
from kvcommons_core.redis_server import free_port

from bench import peers

LIMITS = {"rag_over_vllm": 3.0, "chat_over_vllm": 2.0}
VOCABULARY = 4_096
FIRST_WORD = 16
BLOCK_TOKENS = 128
KV_BLOCKS = 64
ARENA_BYTES = 2 << 30
ANSWER_TOKENS = 8
DOCUMENTS = 16
DOCUMENT_TOKENS = 2_048
QUESTION_TOKENS = 64
SYSTEM_TOKENS = 512
TURN_TOKENS = 288
TURNS = 6
WARM_TURNS = 2
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")

Prompt = list[int]
Act = Callable[[Sequence[str], Sequence[EngineSpec]], None]


@dataclass(frozen=True)
class Load:
    """What is asked: rounds of prompts; the next round begins when the one before is answered."""

    name: str
    warm_up: list[Prompt]
    rounds: list[list[Prompt]]

    @property
    def prompts(self) -> list[Prompt]:
        return [prompt for several in self.rounds for prompt in several]


def words(choose: random.Random, count: int) -> Prompt:
    return [choose.randrange(FIRST_WORD, VOCABULARY) for _ in range(count)]


def rag_load(requests: int) -> Load:
    """Each document is asked once before; then questions come in no order."""
    choose = random.Random(3)
    documents = [words(choose, DOCUMENT_TOKENS) for _ in range(DOCUMENTS)]
    asked = [choose.choice(documents) + words(choose, QUESTION_TOKENS) for _ in range(requests)]
    return Load("rag", [document + words(choose, QUESTION_TOKENS) for document in documents], [asked])


def chat_load(sessions: int) -> Load:
    """All sessions take their turns side by side, so that each has been forgotten by an engine when its next turn comes.

    The first turns are not timed: their histories still fit into the engines, and chats of a service stand at all lengths.
    """
    choose = random.Random(4)
    system = words(choose, SYSTEM_TOKENS)
    histories = [list(system) for _ in range(sessions)]
    rounds = []
    for _turn in range(TURNS):
        histories = [history + words(choose, TURN_TOKENS) for history in histories]
        rounds.append(choose.sample(histories, sessions))
    warm_up = [prompt for several in rounds[:WARM_TURNS] for prompt in several]
    return Load("chat", warm_up, rounds[WARM_TURNS:])


def reuse_possible(load: Load) -> float:
    """Share of the timed prompts' blocks that stand in an earlier prompt at the same place, after the same blocks."""
    known: set[int] = set()
    total = found = 0
    for timed, prompts in ((False, load.warm_up), (True, load.prompts)):
        for prompt in prompts:
            name = 0
            for begin in range(0, len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS, BLOCK_TOKENS):
                name = hash((name, tuple(prompt[begin : begin + BLOCK_TOKENS])))
                found += timed and name in known
                known.add(name)
            total += len(prompt) if timed else 0
    return round(found * BLOCK_TOKENS / total, 3)


def ask_all(prompts: Sequence[Prompt], urls: Sequence[str], clients: int) -> list[float]:
    """Each client takes the next prompt as soon as it has its answer; times to first token in seconds."""
    waiting: queue.SimpleQueue[tuple[Prompt, str]] = queue.SimpleQueue()
    for prompt, url in zip(prompts, cycle(urls)):
        waiting.put((prompt, url))
    times: list[float] = []
    failures: list[Exception] = []

    def client() -> None:
        try:
            while True:
                prompt, url = waiting.get_nowait()
                body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0}
                body |= {"ignore_eos": True, "seed": 0}
                times.append(talk.complete(url, "/v1/completions", body).ttft_seconds)
        except queue.Empty:
            return
        except talk.TalkError as error:
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return times


def sources(specs: Sequence[EngineSpec]) -> dict[str, float]:
    """Prompt tokens by where their KV came from, all engines together."""
    totals = dict.fromkeys(SOURCES, 0.0)
    for spec in specs:
        counted = talk.counters(spec.url + "/metrics")
        for source in SOURCES:
            totals[source] += counted.get(f'vllm:prompt_tokens_by_source_total{{source="{source}"}}', 0.0)
    return totals


def measure(load: Load, urls: Sequence[str], specs: Sequence[EngineSpec], clients: int) -> dict[str, Any]:
    """One load on running engines."""
    ask_all(load.warm_up, urls, clients)
    before = sources(specs)
    started = time.monotonic()
    times: list[float] = []
    for prompts in load.rounds:
        times += ask_all(prompts, urls, clients)
    seconds = time.monotonic() - started
    grown = {name: value - before[name] for name, value in sources(specs).items()}
    everything = sum(grown.values()) or 1.0
    return {
        "requests_s": round(len(times) / seconds, 3),
        "ttft_p50_s": round(statistics.median(times), 3),
        "ttft_p99_s": round(sorted(times)[max(0, round(len(times) * 0.99) - 1)], 3),
        "own_cache": round(grown["local_cache_hit"] / everything, 3),
        "commons": round(grown["external_kv_transfer"] / everything, 3),
    }


def command(spec: EngineSpec, gpu: bool) -> list[str]:
    """The demo's engine, in bfloat16 and with little KV space: the last of two equal flags holds."""
    more = ["--dtype", "bfloat16", "--num-gpu-blocks-override", str(KV_BLOCKS), "--max-model-len", "4096"]
    return [*engines.command(spec, gpu), *more]


def two_engines(
    home: Path, progress: Progress, model: Path, name: str, variant: Callable[[list[str]], list[str]], act: Act
) -> None:
    """Two engines without us, by a variant of the same command line, and clients that take turns."""
    specs = [EngineSpec(f"{name}-{index}", index, free_port(), model, None) for index in range(2)]
    gpu = engines.has_gpu()
    running: list[Guarded] = []
    try:
        for spec in specs:
            words = variant(command(spec, gpu))
            log = home / "logs" / f"{spec.name}.log"
            running.append(spawn(spec.name, words, log, {**peers.ENVIRONMENT, **engines.environment(spec, gpu)}))
        health = {
            spec.name: (process, partial(talk.answers, spec.url + "/health"))
            for spec, process in zip(specs, running, strict=True)
        }
        wait_ready(progress, health, ENGINE_SECONDS_MAX)
        act([spec.url for spec in specs], specs)
    finally:
        stop_all(running)


def with_lmcache(home: Path, progress: Progress, model: Path, python: Path, act: Act) -> None:
    """The same with LMCache's server between them."""
    with peers.lmcache_server(home, progress, python, ARENA_BYTES) as transfer:

        def variant(command: list[str]) -> list[str]:
            return [str(python), *command[1:], "--kv-transfer-config", json.dumps(transfer)]

        two_engines(home, progress, model, "lmcache", variant, act)


def with_us(home: Path, progress: Progress, model: Path, act: Act) -> None:
    """The same engines with the connector, a node and the router."""
    options = StackOptions(home=home, arena_bytes=ARENA_BYTES, model=model, engine_command=command)
    with Stack(options, progress) as stack:
        stack.start()
        act([stack.router_url], list(stack.engines.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rag-requests", type=int, default=48)
    parser.add_argument("--chat-sessions", type=int, default=24)
    parser.add_argument("--only", choices=["rag", "chat"])
    parser.add_argument("--peers", action="store_true", help="also LMCache")
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="interpreter that has it")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    progress = Progress()
    model = make_random_llama()
    loads = [rag_load(options.rag_requests), chat_load(options.chat_sessions)]
    loads = [load for load in loads if options.only in (None, load.name)]
    figures: dict[str, Any] = {
        load.name: {"reuse_possible": reuse_possible(load), "prompts": len(load.prompts)} for load in loads
    }

    def measured(who: str) -> Act:
        def act(urls: Sequence[str], specs: Sequence[EngineSpec]) -> None:
            for load in loads:
                figures[load.name][who] = measure(load, urls, specs, options.clients)
                progress.say(f"{load.name}, {who}: {figures[load.name][who]}")

        return act

    with tempfile.TemporaryDirectory(prefix="kvc-throughput-") as folder:
        home = Path(folder)
        two_engines(home, progress, model, "alone", list, measured("vllm"))
        with_us(home / "stack", progress, model, measured("kvcommons"))
        if options.peers:
            with_lmcache(home, progress, model, options.peer_python, measured("lmcache"))
    ratios = {}
    for load in loads:
        rates = {who: found["requests_s"] for who, found in figures[load.name].items() if isinstance(found, dict)}
        for peer in rates.keys() - {"kvcommons"}:
            ratios[f"{load.name}_over_{peer}"] = round(rates["kvcommons"] / rates[peer], 2)
    limits = {name: limit for name, limit in LIMITS.items() if name in ratios}
    print(json.dumps({"name": "throughput", "figures": figures, "limits": limits, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
