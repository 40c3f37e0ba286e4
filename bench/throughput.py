"""Requests a second and time to first token at a fixed number of clients: two engines with us, and the same two alone.

The KV space of each engine is too small for the working set, so that an engine by itself must compute again what it has dropped.
Two loads: questions about documents that come again and again (rag), and chats of several turns whose histories grow (chat). Alone,
clients take turns between the engines, as a plain service does; with us they ask the router. Everything else is the same: model,
seeds, prompts, order, clients. `reuse_possible` is the share of prompt tokens that somebody had computed before.

The ceiling is what a perfect cache would reach: the same engines without us, with KV space for everything, and clients that keep to
the engine that knows their chat or document, so that nothing is computed twice, fetched or looked up. `engine` says what the machine
takes for a request of one token, a token of a prompt and a token of an answer, on which it depends how much any cache can give.

    python -m bench.throughput [--model random|smollm2|DIR] [--only rag|chat] [--clients 4] [--peers]
        [--rag-requests 48] [--document-tokens 2048] [--chat-sessions 24] [--system-tokens 512] [--turn-tokens 352] [--turns 9]
        [--answer-tokens 8] [--kv-tokens 12288]

--peers measures LMCache's multi-process server beside us, with clients that take turns; --peer-python names the interpreter of an
environment that has vLLM and lmcache, where that is not this one.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kvcommons_cli import engines, talk
from kvcommons_cli.engines import MODEL_NAME, EngineSpec
from kvcommons_cli.model import make_random_llama, make_smollm2
from kvcommons_cli.processes import Guarded, spawn, stop_all
from kvcommons_cli.progress import Progress, wait_ready
from kvcommons_cli.stack import ENGINE_SECONDS_MAX, Stack, StackOptions
from kvcommons_core.redis_server import free_port

from bench import common, rivals
from bench.loads import BLOCK_TOKENS, FIRST_WORD, Chats, Load, Question, chat_load, rag_load, reuse_possible, sent_to
from bench.processor_time import grown_ms, processor_seconds

LIMITS = {"rag_over_vllm": 3.0, "chat_over_vllm": 2.0}
ARENA_BYTES = 2 << 30
COST_ROUNDS = 5
COST_PROMPT_TOKENS = 1_920
COST_ANSWER_TOKENS = 33
OURS = ("lookup", "load", "store")
SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")

Act = Callable[[Sequence[str], Sequence[EngineSpec]], None]
Command = Callable[[EngineSpec, bool], list[str]]


def ask(url: str, ids: Sequence[int], answer_tokens: int) -> talk.Completion:
    """One streamed answer, greedy and of exactly so many tokens."""
    body = {"model": MODEL_NAME, "prompt": list(ids), "max_tokens": answer_tokens, "temperature": 0}
    return talk.complete(url, "/v1/completions", body | {"ignore_eos": True, "seed": 0})


def ask_all(questions: Sequence[Question], urls: Sequence[str], clients: int, answer_tokens: int) -> list[float]:
    """Each client takes the next question, which has its url, as soon as it has its answer; times to first token in seconds."""
    waiting: queue.SimpleQueue[tuple[Question, str]] = queue.SimpleQueue()
    for question, url in zip(questions, urls, strict=True):
        waiting.put((question, url))
    times: list[float] = []
    failures: list[Exception] = []

    def client() -> None:
        try:
            while True:
                question, url = waiting.get_nowait()
                times.append(ask(url, question.ids, answer_tokens).ttft_seconds)
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


def ours_ms(specs: Sequence[EngineSpec]) -> dict[str, float]:
    """Milliseconds that the connector has spent: in lookups, and in copies beside the forward; zeros without it."""
    totals = dict.fromkeys(OURS, 0.0)
    for spec in specs:
        counted = talk.counters(spec.url + "/metrics")
        for name in OURS:
            totals[name] += 1e3 * counted.get(f"kvcommons_connector_{name}_seconds_total", 0.0)
    return totals


def measure(
    load: Load, urls: Sequence[str], specs: Sequence[EngineSpec], options: argparse.Namespace, by_place: bool = False
) -> dict[str, Any]:
    """One load on running engines."""

    def answered(questions: Sequence[Question]) -> list[float]:
        return ask_all(questions, sent_to(questions, urls, by_place), options.clients, options.answer_tokens)

    answered(load.warm_up)
    before, ours_before, processors_before = sources(specs), ours_ms(specs), processor_seconds()
    started = time.monotonic()
    times = [seconds for questions in load.rounds for seconds in answered(questions)]
    took = time.monotonic() - started
    processors = grown_ms(processors_before, processor_seconds(), len(times))
    grown = {name: value - before[name] for name, value in sources(specs).items()}
    everything = sum(grown.values()) or 1.0
    ours = {name: (value - ours_before[name]) / len(times) for name, value in ours_ms(specs).items()}
    return {
        "requests_s": round(len(times) / took, 3),
        "ttft_p50_s": round(statistics.median(times), 3),
        "ttft_p99_s": round(common.percentile(times, 99), 3),
        "own_cache": round(grown["local_cache_hit"] / everything, 3),
        "commons": round(grown["external_kv_transfer"] / everything, 3),
        "cpu_ms_request": processors,
        "ours_ms_request": {name: round(value, 2) for name, value in ours.items() if value},
    }


def costs(url: str) -> dict[str, float]:
    """What one idle engine takes: milliseconds of a request of one token, of a prompt's token, of an answer's. Nothing is reused."""
    found: dict[str, list[float]] = {"request_ms": [], "prompt_token_ms": [], "answer_token_ms": []}
    for number in range(COST_ROUNDS):
        short = ask(url, [FIRST_WORD + number] * 16, 1).total_seconds * 1e3
        cold = ask(url, [FIRST_WORD + number, *range(FIRST_WORD, FIRST_WORD + COST_PROMPT_TOKENS)], COST_ANSWER_TOKENS)
        found["request_ms"].append(short)
        found["prompt_token_ms"].append((cold.ttft_seconds * 1e3 - short) / COST_PROMPT_TOKENS)
        found["answer_token_ms"].append((cold.total_seconds - cold.ttft_seconds) * 1e3 / (COST_ANSWER_TOKENS - 1))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def small(load_tokens_max: int, answer_tokens: int, kv_tokens: int | None) -> Command:
    """The demo's engine in bfloat16, with so much KV space, else 1 GiB: the last of two equal flags holds."""
    length = (load_tokens_max + answer_tokens) // 1_024 * 1_024 + 1_024
    more = ["--dtype", "bfloat16", "--max-model-len", str(length)]
    if kv_tokens is not None:
        more += ["--num-gpu-blocks-override", str(kv_tokens // BLOCK_TOKENS)]
    return lambda spec, gpu: [*engines.command(spec, gpu), *more]


def two_engines(home: Path, progress: Progress, model: Path, name: str, command: Command, act: Act) -> None:
    """Two engines without us, and clients that ask them directly."""
    specs = [EngineSpec(f"{name}-{index}", index, free_port(), model, None) for index in range(2)]
    gpu = engines.has_gpu()
    running: list[Guarded] = []
    try:
        for spec in specs:
            log = home / "logs" / f"{spec.name}.log"
            variables = {**rivals.ENVIRONMENT, **engines.environment(spec, gpu)}
            running.append(spawn(spec.name, command(spec, gpu), log, variables))
        health = {
            spec.name: (process, partial(talk.answers, spec.url + "/health"))
            for spec, process in zip(specs, running, strict=True)
        }
        wait_ready(progress, health, ENGINE_SECONDS_MAX)
        act([spec.url for spec in specs], specs)
    finally:
        stop_all(running)


def with_lmcache(home: Path, progress: Progress, model: Path, python: Path, command: Command, act: Act) -> None:
    """The same with LMCache's server between them."""
    with rivals.lmcache_server(home, progress, python, ARENA_BYTES) as transfer:

        def theirs(spec: EngineSpec, gpu: bool) -> list[str]:
            return [str(python), *command(spec, gpu)[1:], "--kv-transfer-config", json.dumps(transfer)]

        two_engines(home, progress, model, "lmcache", theirs, act)


def with_us(home: Path, progress: Progress, model: Path, command: Command, act: Act) -> None:
    """The same engines with the connector, a node and the router."""
    options = StackOptions(home=home, arena_bytes=ARENA_BYTES, model=model, engine_command=command)
    with Stack(options, progress) as stack:
        stack.start()
        act([stack.router_url], list(stack.engines.values()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--model", default="random", help='"random": a small random Llama; "smollm2"; or a folder')
    parser.add_argument("--only", choices=["rag", "chat"])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rag-requests", type=int, default=48)
    parser.add_argument("--document-tokens", type=int, default=2_048)
    parser.add_argument("--chat-sessions", type=int, default=24)
    parser.add_argument("--system-tokens", type=int, default=512)
    parser.add_argument("--turn-tokens", type=int, default=352)
    parser.add_argument("--turns", type=int, default=9, help="of which the last four are timed")
    parser.add_argument("--answer-tokens", type=int, default=8)
    parser.add_argument("--kv-tokens", type=int, default=12_288, help="KV space of an engine")
    parser.add_argument("--peers", action="store_true", help="also LMCache")
    parser.add_argument("--peer-python", type=Path, default=Path(sys.executable), help="interpreter that has it")
    return parser.parse_args()


def loads_of(options: argparse.Namespace) -> list[Load]:
    """What was asked for."""
    chats = Chats(options.chat_sessions, options.system_tokens, options.turn_tokens, options.turns)
    loads = [rag_load(options.rag_requests, options.document_tokens), chat_load(chats)]
    return [load for load in loads if options.only in (None, load.name)]


def ratios_of(figures: dict[str, Any], loads: Sequence[Load]) -> dict[str, float]:
    """Requests a second of us over everybody's; what a perfect cache would have over vLLM alone; both by processor time too."""
    ratios: dict[str, float] = {}
    for load in loads:
        arms = {who: found for who, found in figures[load.name].items() if isinstance(found, dict)}
        rates = {who: found["requests_s"] for who, found in arms.items()}
        cpu_ms = {who: found["cpu_ms_request"]["all"] for who, found in arms.items()}
        for peer in sorted(rates.keys() - {"kvcommons", "ceiling"}):
            ratios[f"{load.name}_over_{peer}"] = round(rates["kvcommons"] / rates[peer], 2)
        ratios[f"{load.name}_of_ceiling"] = round(rates["kvcommons"] / rates["ceiling"], 2)
        ratios[f"{load.name}_ceiling_over_vllm"] = round(rates["ceiling"] / rates["vllm"], 2)
        ratios[f"{load.name}_over_vllm_by_cpu"] = round(cpu_ms["vllm"] / cpu_ms["kvcommons"], 2)
        ratios[f"{load.name}_ceiling_over_vllm_by_cpu"] = round(cpu_ms["vllm"] / cpu_ms["ceiling"], 2)
    return ratios


def main() -> int:
    options = arguments()
    progress = Progress()
    made = {"random": make_random_llama, "smollm2": make_smollm2}.get(options.model)
    model = made() if made is not None else Path(options.model)
    loads = loads_of(options)
    figures: dict[str, Any] = {
        load.name: {"reuse_possible": reuse_possible(load), "prompts": len(load.questions)} for load in loads
    }
    figures["model"] = options.model

    def measured(who: str) -> Act:
        def act(urls: Sequence[str], specs: Sequence[EngineSpec]) -> None:
            if who == "ceiling":
                figures["engine"] = costs(urls[0])
                progress.say(f"an idle engine: {figures['engine']}")
            for load in loads:
                figures[load.name][who] = measure(load, urls, specs, options, by_place=who == "ceiling")
                progress.say(f"{load.name}, {who}: {figures[load.name][who]}")

        return act

    longest = max(load.tokens_max for load in loads)
    command = small(longest, options.answer_tokens, options.kv_tokens)
    roomy = small(longest, options.answer_tokens, None)
    with tempfile.TemporaryDirectory(prefix="kvc-throughput-") as folder:
        home = Path(folder)
        two_engines(home, progress, model, "alone", command, measured("vllm"))
        two_engines(home, progress, model, "ceiling", roomy, measured("ceiling"))
        with_us(home / "stack", progress, model, command, measured("kvcommons"))
        if options.peers:
            with_lmcache(home, progress, model, options.peer_python, command, measured("lmcache"))
    ratios = ratios_of(figures, loads)
    limits = {name: limit for name, limit in LIMITS.items() if name in ratios}
    print(json.dumps({"name": "throughput", "figures": figures, "limits": limits, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
