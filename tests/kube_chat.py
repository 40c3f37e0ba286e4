"""A client of a router: one request, or a stream of them while something is broken."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from kube_process import NotReady, wait_for

CONNECT_SECONDS_MAX = 5.0
REQUEST_SECONDS_MAX = 180.0
JOIN_SECONDS_MAX = 200.0
AGAIN_SECONDS_MAX = 10.0
"""How long a client goes on to knock: a killed router's address is given up by the cluster within moments, not at once."""


@dataclass(frozen=True)
class Answer:
    """A whole answer: its tokens, and how many tokens of the prompt were cached."""

    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int


@dataclass
class Outcome:
    """What became of one streamed request."""

    prompt: int
    status: int = 0
    text: str = ""
    done: bool = False
    error: str = ""
    tries: int = 1

    @property
    def began(self) -> bool:
        """Whether any of the answer had arrived."""
        return bool(self.text)


def lines_of(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """Lines as they come. By read1, which tells a body that breaks off (IncompleteRead) from one that ends; iterating does not."""
    rest = b""
    while data := answer.read1():
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    yield rest


class Client:
    """Talks to one address; temperature 0, so that equal prompts have equal answers."""

    def __init__(self, host: str, port: int, model: str) -> None:
        self.host = host
        self.port = port
        self.model = model

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=CONNECT_SECONDS_MAX)
        try:
            connection.connect()
            connection.sock.settimeout(REQUEST_SECONDS_MAX)
            yield connection
        finally:
            connection.close()

    def _body(self, text: str, tokens: int, **extra: Any) -> bytes:
        messages = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": 0, **extra}
        return json.dumps(body).encode()

    def get(self, path: str) -> tuple[int, str]:
        with self._connection() as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def post(self, path: str, body: bytes = b"") -> tuple[int, str]:
        with self._connection() as connection:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def chat(self, text: str, tokens: int = 16) -> Answer:
        """A whole chat, or AssertionError with what was said instead."""
        body = self._body(text, tokens, return_token_ids=True)
        status, answer = self.post("/v1/chat/completions", body)
        assert status == 200, f"{status}: {answer}"
        found = json.loads(answer)
        usage = found["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(tuple(found["choices"][0]["token_ids"]), usage["prompt_tokens"], cached)

    def streamed(self, text: str, prompt: int, tokens: int) -> Outcome:
        """One streamed chat; tried again only where the connection itself failed before any byte of an answer."""
        tries: list[Outcome] = []

        def answered() -> bool:
            outcome = Outcome(prompt, tries=len(tries) + 1)
            tries.append(outcome)
            try:
                self._stream(text, tokens, outcome)
            except (OSError, http.client.HTTPException) as error:
                outcome.error = outcome.error or f"{type(error).__name__}: {error}"
                return bool(outcome.status)
            return True

        with suppress(NotReady):  # the outcome says what was last in the way
            wait_for(answered, "an answer", AGAIN_SECONDS_MAX, every=0.1)
        return tries[-1]

    def _stream(self, text: str, tokens: int, outcome: Outcome) -> None:
        with self._connection() as connection:
            body = self._body(text, tokens, stream=True)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            outcome.status = answer.status
            if answer.status != 200:
                outcome.error = answer.read().decode()
                return
            for line in lines_of(answer):
                self._take(line.strip(), outcome)

    @staticmethod
    def _take(line: bytes, outcome: Outcome) -> None:
        if not line.startswith(b"data: "):
            return
        if line == b"data: [DONE]":
            outcome.done = True
            return
        event = json.loads(line[6:])
        if "error" in event:
            outcome.error = json.dumps(event["error"])
            return
        outcome.text += "".join(choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ()))


@dataclass
class Stream:
    """Requests without a pause from several clients, from entering to leaving."""

    client: Client
    prompts: Sequence[str]
    tokens: int = 8
    clients: int = 2
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS_MAX)

    def _run(self, number: int) -> None:
        turn = number
        while not self._end.is_set():
            prompt = turn % len(self.prompts)
            self.outcomes.append(self.client.streamed(self.prompts[prompt], prompt, self.tokens))
            turn += self.clients

    def answered(self) -> int:
        return sum(outcome.done for outcome in self.outcomes)

    def wait_more(self, count: int, seconds_max: float) -> None:
        """Until so many more were answered."""
        wanted, deadline = self.answered() + count, time.monotonic() + seconds_max
        while self.answered() < wanted:
            assert time.monotonic() < deadline, f"only {self.answered()} of {wanted} answers within {seconds_max:.0f} s"
            self._end.wait(0.1)
