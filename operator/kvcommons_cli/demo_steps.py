"""The requests of the demo: who is asked what, what happens in between, and where the answer's KV came from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from kvcommons_cli import talk
from kvcommons_cli.demo_report import CHUNK_TOKENS, Expected, Row, reusable_tokens
from kvcommons_cli.demo_texts import Document, Message
from kvcommons_cli.engines import MODEL_NAME, EngineSpec
from kvcommons_cli.processes import StackError
from kvcommons_cli.progress import Progress
from kvcommons_cli.stack import Stack

ANSWER_TOKENS_MAX: Final = 16
SETTLE_SECONDS_MAX: Final = 15.0
POLL_SECONDS: Final = 0.05
REPORT_SECONDS_MAX: Final = 3.0
REPORTS_WAITING_MAX: Final = 1_000
SOURCES: Final = {"own": "local_cache_hit", "commons": "external_kv_transfer", "computed": "local_compute"}
SOURCE_COUNTER: Final = 'vllm:prompt_tokens_by_source_total{source="%s"}'


class Answers:
    """The engine without us: its texts are what all others must equal, and its tokenizer counts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._texts: dict[str, str] = {}
        self._tokens: dict[str, list[int]] = {}

    def learn(self, messages: list[Message]) -> str:
        """Its answer to a conversation, asked once."""
        name = repr(messages)
        if name not in self._texts:
            self._texts[name] = talk.complete(self._url, "/v1/chat/completions", request_body(messages)).text
            self._tokens[name] = tokenize(self._url, messages)
        return self._texts[name]

    def text(self, messages: list[Message]) -> str:
        return self._texts[repr(messages)]

    def tokens(self, messages: list[Message]) -> list[int]:
        return self._tokens[repr(messages)]


def request_body(messages: list[Message]) -> dict[str, object]:
    """A greedy question: the same words must come out whichever way the KV came."""
    return {"model": MODEL_NAME, "messages": messages, "max_tokens": ANSWER_TOKENS_MAX, "temperature": 0, "seed": 0}


def tokenize(url: str, messages: list[Message]) -> list[int]:
    """The prompt as the engine reads it."""
    answer = talk.call_json("POST", url + "/tokenize", {"model": MODEL_NAME, "messages": messages})
    tokens = answer.get("tokens")
    if not isinstance(tokens, list):
        raise StackError(f"{url}/tokenize gives no tokens")
    return [int(token) for token in tokens]


def document_prompts(document: Document) -> list[list[Message]]:
    """Each question by itself, after the same long text."""
    return [document.ask(question) for question in document.questions]


def chat_prompts(document: Document, answers: Answers) -> list[list[Message]]:
    """A conversation that grows by what the engine without us answered, so that every turn's prompt is fixed."""
    messages = document.ask(document.questions[0])
    prompts = [list(messages)]
    for question in document.questions[1:]:
        messages += [
            {"role": "assistant", "content": answers.learn(prompts[-1])},
            {"role": "user", "content": question},
        ]
        prompts.append(list(messages))
    answers.learn(prompts[-1])
    return prompts


@dataclass(frozen=True)
class Reuse:
    """Where one request's prompt came from, by the engine's own counters."""

    replica: str
    own_tokens: int
    commons_tokens: int
    computed_tokens: int


@dataclass
class Watch:
    """The counters of all replicas, before and after: which one answered, and from where."""

    engines: dict[str, EngineSpec]
    before: dict[str, dict[str, float]] = field(default_factory=dict)

    def start(self) -> None:
        self.before = {name: talk.counters(spec.url + "/metrics") for name, spec in self.engines.items()}

    def finish(self, prompt_tokens: int) -> Reuse:
        """:raises StackError: if no replica has counted the prompt in SETTLE_SECONDS_MAX."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while time.monotonic() < deadline:
            for name, spec in self.engines.items():
                now = talk.counters(spec.url + "/metrics")
                grown = {
                    source: round(self._of(now, label) - self._of(self.before[name], label))
                    for source, label in SOURCES.items()
                }
                if sum(grown.values()) >= prompt_tokens > 0:
                    return Reuse(name, grown["own"], grown["commons"], grown["computed"])
            time.sleep(POLL_SECONDS)
        raise StackError(f"no replica has counted a prompt of {prompt_tokens} tokens")

    def _of(self, counters: dict[str, float], label: str) -> float:
        return counters.get(SOURCE_COUNTER % label, 0.0)


class Reports:
    """What connectors tell the routers about each request, heard on the pool's channel."""

    def __init__(self, redis_url: str, prefix: str) -> None:
        import redis  # imported here: the other subcommands need no client of Redis

        self._client = redis.Redis.from_url(redis_url)
        self._channel = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]  # redis-py's
        self._channel.subscribe(f"{prefix}fb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_reason: object) -> None:
        self._channel.close()
        self._client.close()

    def skip(self) -> None:
        """Forget what has come so far."""
        for _ in range(REPORTS_WAITING_MAX):
            if self._channel.get_message() is None:
                return

    def take(self, prompt_tokens: int) -> dict[str, object] | None:
        """The report of the request just answered; None if none comes in REPORT_SECONDS_MAX."""
        deadline = time.monotonic() + REPORT_SECONDS_MAX
        while (left := deadline - time.monotonic()) > 0:
            message = self._channel.get_message(timeout=left)
            if message is None or message["type"] != "message":
                continue
            report = json.loads(message["data"])
            if isinstance(report, dict) and report.get("prompt_tokens") == prompt_tokens:
                return report
        return None


class Scenario:
    """One scenario's requests, in order; remembers what was asked, so that what can be reused is known."""

    def __init__(self, name: str, answers: Answers, reports: Reports, stack: Stack, progress: Progress) -> None:
        self.name = name
        self.rows: list[Row] = []
        self._answers = answers
        self._reports = reports
        self._stack = stack
        self._progress = progress
        self._earlier: list[list[int]] = []
        self._cold_seconds = 0.0

    def ask(self, step: str, messages: list[Message], expected: Expected, replica: str | None = None) -> Row:
        """One request, by the router, or of one replica by name."""
        url = self._stack.router_url if replica is None else self._stack.engines[replica].url
        tokens = self._answers.tokens(messages)
        watch = Watch(self._stack.engines)
        watch.start()
        self._reports.skip()
        done = talk.complete(url, "/v1/chat/completions", request_body(messages))
        reuse = watch.finish(len(tokens))
        if expected == "cold":
            self._cold_seconds = done.ttft_seconds
        row = Row(
            scenario=self.name,
            step=step,
            replica=reuse.replica,
            expected=expected,
            prompt_tokens=len(tokens),
            reusable_tokens=reusable_tokens(tokens, self._earlier),
            own_tokens=reuse.own_tokens,
            commons_tokens=reuse.commons_tokens,
            computed_tokens=reuse.computed_tokens,
            ttft_seconds=done.ttft_seconds,
            cold_ttft_seconds=self._cold_seconds,
            text=done.text,
            reference_text=self._answers.text(messages),
            reported=None if expected == "served" else self._reports.take(len(tokens)),
        )
        self._earlier.append(tokens)
        self.rows.append(row)
        self._progress.say(
            f"{self.name}: {step}: {row.replica}, first token after {row.ttft_seconds:.2f} s, "
            f"{row.own_tokens} tokens from its own cache, {row.commons_tokens} from the commons"
        )
        return row

    @property
    def answered_by(self) -> list[str]:
        """Replicas that have answered in this scenario, and so have its prefix in their own caches."""
        return sorted({row.replica for row in self.rows})

    def wait_stored(self, prompt_tokens: int, chunks_before: int) -> None:
        """Until the node has the prompt's whole chunks: storing goes on behind the answer."""
        wanted = chunks_before + prompt_tokens // CHUNK_TOKENS
        await_that(
            lambda: node_counter(self._stack.node_url, "chunks") >= wanted, f"the node never held {wanted} chunks"
        )

    def reset_own_cache(self, replica: str) -> None:
        """Make one replica forget its own prefix cache, as an eviction or a restart would."""
        url = self._stack.engines[replica].url + "/reset_prefix_cache"

        # False while a block is in use: a store may still read it.
        def is_reset() -> bool:
            return talk.call_json("POST", url).get("success") is True

        await_that(is_reset, f"{replica} does not reset its prefix cache")
        self._progress.say(f"{self.name}: reset the own prefix cache of {replica}")

    def other_than(self, replica: str) -> str:
        return next(name for name in self._stack.engines if name != replica)


def node_counter(node_url: str, name: str) -> int:
    """One counter of the node's core."""
    core = talk.call_json("GET", node_url + "/v1/stats").get("core")
    value = core.get(name, 0) if isinstance(core, dict) else 0
    return int(value)


def await_that(condition: Callable[[], bool], otherwise: str) -> None:
    """:raises StackError: with `otherwise`, if it does not become true in SETTLE_SECONDS_MAX."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(otherwise)
        time.sleep(POLL_SECONDS)
