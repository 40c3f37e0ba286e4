"""Command lines of a local stack's engines, and what the demo reads from their counters and streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kvcommons_cli import engines, talk
from kvcommons_cli.demo_steps import Answers, Watch, chat_prompts
from kvcommons_cli.demo_texts import Document
from kvcommons_cli.engines import EngineSpec
from kvcommons_cli.processes import StackError

SPEC = EngineSpec("replica-b", 1, 8_001, Path("/models/m"), Path("/tmp/n.sock"), developer_calls=True)
COUNTERS = """# HELP vllm:prompt_tokens_by_source prompt tokens
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} %d.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} %d.0
vllm:prompt_tokens_by_source_total{engine="1",model_name="m",source="external_kv_transfer"} %d.0
vllm:prompt_tokens_by_source_created{engine="0",source="local_compute"} 1.7e9
"""


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_replica_is_attached_to_the_node_and_recomputes_what_fails() -> None:
    """The connector gets the node's socket, and a failed load must be recomputed instead of failing the request."""
    words = engines.command(SPEC, gpu=False)
    transfer = json.loads(flag(words, "--kv-transfer-config"))
    assert transfer["kv_connector_extra_config"]["socket"] == "/tmp/n.sock"
    assert transfer["kv_load_failure_policy"] == "recompute"
    assert (flag(words, "--dtype"), flag(words, "--host")) == ("float32", "127.0.0.1")


def test_the_engine_without_us_knows_nothing_of_us() -> None:
    """What all others are compared with runs no line of ours."""
    alone = EngineSpec("reference", 2, 8_002, Path("/models/m"), None)
    assert "--kv-transfer-config" not in engines.command(alone, gpu=False)
    assert "VLLM_SERVER_DEV_MODE" not in engines.environment(alone, gpu=False)


def test_each_engine_has_a_core_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default two engines on one machine would pin to the same core; bytecode is written whatever the shell says."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {2, 5})
    first = engines.environment(EngineSpec("replica-a", 0, 8_000, Path("/m"), None), gpu=False)
    second = engines.environment(SPEC, gpu=False)
    assert (first["VLLM_CPU_OMP_THREADS_BIND"], second["VLLM_CPU_OMP_THREADS_BIND"]) == ("2", "5")
    assert second["PYTHONDONTWRITEBYTECODE"] == ""


class Engine(ThreadingHTTPServer):
    """An engine's HTTP side that says what it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes] = {}
        self.asked: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stream(self, *events: object) -> None:
        lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
        self.answers["/v1/chat/completions"] = b"".join(lines)


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.server.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer()

    def _answer(self) -> None:
        content = self.server.answers.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the test's output is its own."""


@contextmanager
def serving() -> Iterator[Engine]:
    with Engine() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def delta(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}}]}


def test_a_stream_gives_text_usage_and_the_time_of_its_first_token() -> None:
    """The first event with text counts as the first token, not the one that only names a role."""
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    with serving() as engine:
        engine.stream(delta(""), delta("Hel"), delta("lo"), {"choices": [], "usage": usage})
        done = talk.complete(engine.url, "/v1/chat/completions", {"model": "m"})
    assert (done.text, done.prompt_tokens, done.cached_tokens) == ("Hello", 9, 4)
    assert 0 < done.ttft_seconds <= done.total_seconds


def test_a_stream_that_breaks_off_is_an_error() -> None:
    """An error in the middle of a stream is not a short answer, and neither is a stream without a token."""
    with serving() as engine:
        engine.stream(delta("Hel"), {"error": {"message": "engine dead"}})
        with pytest.raises(talk.TalkError, match="engine dead"):
            talk.complete(engine.url, "/v1/chat/completions", {})
        engine.stream()
        with pytest.raises(talk.TalkError, match="without a token"):
            talk.complete(engine.url, "/v1/chat/completions", {})


def test_the_replica_that_counted_the_prompt_is_the_one_that_answered() -> None:
    """Who answered, and from where its KV came, is read from the engines' own counters."""
    with serving() as idle, serving() as busy:
        specs = {
            name: EngineSpec(name, 0, int(engine.url.rpartition(":")[2]), Path("/m"), None)
            for name, engine in (("replica-a", idle), ("replica-b", busy))
        }
        for engine in (idle, busy):
            engine.answers["/metrics"] = (COUNTERS % (100, 20, 0)).encode()
        watch = Watch(specs)
        watch.start()
        busy.answers["/metrics"] = (COUNTERS % (110, 20, 512)).encode()
        reuse = watch.finish(522)
    assert (reuse.replica, reuse.own_tokens, reuse.commons_tokens, reuse.computed_tokens) == ("replica-b", 0, 512, 10)


def test_a_chat_s_prompts_are_made_of_the_answers_without_us() -> None:
    """Each turn's prompt holds the earlier answers of the engine without us, so that all engines are asked the same."""
    with serving() as engine:
        engine.stream(delta("Aye."))
        engine.answers["/tokenize"] = b'{"tokens": [1, 2, 3]}'
        answers = Answers(engine.url)
        prompts = chat_prompts(Document("t", "text", ("one", "two")), answers)
    assert [message["content"] for message in prompts[1]] == ["text", "one", "Aye.", "two"]
    assert (answers.text(prompts[1]), answers.tokens(prompts[1])) == ("Aye.", [1, 2, 3])


def test_an_engine_that_gives_no_tokens_is_told_by_its_address() -> None:
    """What cannot be counted ends the demo with a message, not with a wrong table."""
    with serving() as engine:
        engine.stream(delta("Aye."))
        engine.answers["/tokenize"] = b"{}"
        with pytest.raises(StackError, match="gives no tokens"):
            Answers(engine.url).learn([{"role": "user", "content": "x"}])
