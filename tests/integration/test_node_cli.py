"""The command against a control API: what it shows, what it refuses, and in which words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kvcommons_cli import (
    clear,
    compress,
    control,
    decompress,
    events,
    lookup,
    move,
    pin,
    pins,
    prewarm,
    stats,
    unpin,
    why,
)
from kvcommons_core.redis_server import free_port

FINGERPRINT = "ab" * 32
REFUSAL: dict[str, dict[str, Any]] = {
    "error": {"type": "invalid_request", "message": "too short", "field": "fingerprint", "remedy": "look it up"}
}


class Node(ThreadingHTTPServer):
    """Answers with what it was asked, or refuses."""

    daemon_threads = True
    refusing = False
    refusal: dict[str, Any] = REFUSAL
    answers: dict[str, Any]
    """By path without its query; else the one below."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, Any, str | None]] = []
        self.answers = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, method: str, body: Any) -> None:
        self.server.asked.append((method, self.path, body, self.headers.get("Authorization")))
        answer = self.server.answers.get(self.path.partition("?")[0], {"hit_chunks": 2})
        content = json.dumps(self.server.refusal if self.server.refusing else answer).encode()
        self.send_response(400 if self.server.refusing else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_stats_shows_the_answer_as_json(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer goes to standard output as it is, for people and for jq."""
    assert stats.main(["--url", node.url]) == 0
    assert json.loads(capsys.readouterr().out) == {"hit_chunks": 2}


def test_lookup_sends_tokens_from_a_file_with_their_salt(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens are read from a file; only what was given is sent, so that the node's own defaults hold."""
    file = tmp_path / "tokens.json"
    file.write_text("[1, 2, 3]")
    run = {"first": 0, "chunks": 2, "places": ["memory", "disk"], "nodes": [{"node": "b", "tier": "disk"}]}
    node.answers["/v1/lookup"] = {"runs": [run], "chunks": 2, "hit_chunks": 2, "hit_tokens": 512, "here_chunks": 2}
    assert lookup.main(["--url", node.url, "--fingerprint", FINGERPRINT, "--tokens", str(file), "--salt", "s"]) == 0
    assert node.asked[0][2] == {"fingerprint": FINGERPRINT, "tokens": [1, 2, 3], "salt": "s"}
    assert capsys.readouterr().out.splitlines()[1].split() == ["0-1", "2", "memory,", "disk", "b", "(disk)"]


def test_clear_wants_one_target(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a target nothing is asked of the node."""
    with pytest.raises(SystemExit) as ended:
        clear.main(["--url", node.url])
    assert ended.value.code == 2
    assert node.asked == []
    node.answers["/v1/clear"] = {"chunks": 3, "tier_shards": {"disk": 5}, "pins": 1, "limits": ["so far"]}
    assert clear.main(["--url", node.url, "--all"]) == 0
    assert node.asked[0][2] == {"all": True}
    assert capsys.readouterr().out == "cleared 3 chunks from memory, 5 shards from disk, 1 pins ended\nnote: so far\n"


def test_clear_sends_what_is_meant_and_nothing_else(node: Node) -> None:
    """Each filter goes under its name; an age is written as people write one."""
    node.answers["/v1/clear"] = {"chunks": 0}
    words = ["--model", "m", "--salt", "", "--older-than", "2h", "--tier", "memory", "--tier", "disk"]
    assert clear.main(["--url", node.url, *words]) == 0
    assert node.asked[0][2] == {"model": "m", "salt": "", "older_than_seconds": 7_200, "tiers": ["memory", "disk"]}


def test_what_begins_a_job_sends_what_was_given_and_shows_how_it_ends(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """A move to another node, compress and decompress: followed to their end; what failed of it makes the status 1."""
    progress: dict[str, Any] = {"done": 3, "failed": 0, "total": 3, "unit": "shards", "detail": ""}
    job: dict[str, Any] = {
        "job": "ab" * 8,
        "kind": "x",
        "name": "x",
        "state": "done",
        "progress": progress,
        "error": "",
    }
    job |= {"result": {"rewritten": 3}, "running_seconds": 1.0, "age_seconds": 1.0}
    for path in ("/v1/move", "/v1/compress", "/v1/decompress"):
        node.answers[path] = {"job": job, "created": True}
    node.answers["/v1/jobs"] = {"jobs": [job], "next": 0, "kept": 1}
    chain = ["--url", node.url, "--fingerprint", FINGERPRINT, "--key", "cd" * 32]
    assert move.main([*chain, "--to-node", "node-b", "--keep"]) == 0
    assert compress.main([*chain, "--tier", "disk", "--no-memory"]) == 0
    assert "3/3 shards, done\n3 rewritten" in capsys.readouterr().out
    assert decompress.main(["--url", node.url, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == {"rewritten": 3}
    some = {"fingerprint": FINGERPRINT, "keys": ["cd" * 32]}
    assert [one[:3] for one in node.asked if one[0] == "POST"] == [
        ("POST", "/v1/move", {**some, "node": "node-b", "keep": True}),
        ("POST", "/v1/compress", {**some, "codec": "lossless", "tier": "disk", "from_memory": False}),
        ("POST", "/v1/decompress", {}),
    ]
    node.answers["/v1/jobs"] = {"jobs": [job | {"progress": progress | {"done": 2, "failed": 1}}], "next": 0, "kept": 1}
    assert compress.main(["--url", node.url]) == 1


def test_the_token_is_sent(node: Node, tmp_path: Path) -> None:
    """The token comes from a file, so that it stands in no process list."""
    file = tmp_path / "token"
    file.write_text("secret-of-the-node\n")
    assert stats.main(["--url", node.url, "--token-file", str(file)]) == 0
    assert node.asked[0][3] == "Bearer secret-of-the-node"


def test_a_refusal_is_told_in_the_node_s_words(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Field, message and remedy reach the user in one line, and the status is 1."""
    node.refusing = True
    assert clear.main(["--url", node.url, "--fingerprint", "x"]) == 1
    assert capsys.readouterr().err == "kvcommons clear: fingerprint: too short; look it up\n"


def test_a_node_that_is_not_there_is_told_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody at the address: one line that says so, and how to give another."""
    assert stats.main(["--url", f"http://127.0.0.1:{free_port()}"]) == 1
    error = capsys.readouterr().err
    assert "--url" in error
    assert error.count("\n") == 1


def test_a_file_that_is_missing_or_no_json_is_told_by_name(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong tokens file is named; the node is not asked."""
    file = tmp_path / "tokens.json"
    words = ["--url", node.url, "--fingerprint", FINGERPRINT, "--tokens", str(file)]
    assert lookup.main(words) == 1
    file.write_text("one, two")
    assert lookup.main(words) == 1
    assert capsys.readouterr().err.count(str(file)) == 2
    assert node.asked == []


PIN = {
    "name": "doc",
    "fingerprint": FINGERPRINT,
    "chunks": 2,
    "bytes": 8_192,
    "age_seconds": 61.0,
    "ttl_seconds": 7_200.0,
}
LIMITS = {"pinned_bytes": 8_192, "pinned_bytes_max": 1 << 30}


def test_pin_sends_its_time_in_seconds_and_shows_what_is_pinned(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A time as people write it; the answer is a table."""
    node.answers["/v1/pin"] = {"pin": PIN, "asked_chunks": 3, "replaced": False, **LIMITS}
    words = ["--url", node.url, "--fingerprint", FINGERPRINT, "--key", "cd" * 32, "--name", "doc", "--ttl", "2h"]
    assert pin.main(words) == 0
    assert node.asked[0][2] == {
        "fingerprint": FINGERPRINT,
        "keys": ["cd" * 32],
        "name": "doc",
        "ttl_seconds": 7_200,
    }
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == ["doc", FINGERPRINT[:12], "2", "8.0", "KiB", "1m", "2h"]
    assert "8.0 KiB pinned, of 1.0 GiB at most" in shown


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1_800), ("7d", 604_800)])
def test_a_time_is_read_as_people_write_it(text: str, seconds: int) -> None:
    """A number of seconds, or one with its unit."""
    assert control.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1w", "-", "1.5h"])
def test_what_is_no_time_is_refused_before_anything_is_asked(node: Node, text: str) -> None:
    """The parser says which flag it was."""
    with pytest.raises(SystemExit):
        pin.main(["--url", node.url, "--fingerprint", FINGERPRINT, "--key", "cd" * 32, "--ttl", text])
    assert node.asked == []


def test_pins_are_listed_whole_or_as_json(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, the same for jq."""
    node.answers["/v1/pins"] = {"pins": [PIN], "next": "", "total": 1, **LIMITS}
    assert pins.main(["--url", node.url]) == 0
    assert "doc" in capsys.readouterr().out
    assert pins.main(["--url", node.url, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["pins"] == [PIN]


def test_unpin_of_what_is_not_there_says_so(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt name is not passed over in silence."""
    node.answers["/v1/unpin"] = {"pins": 0, "chunks": 0}
    assert unpin.main(["--url", node.url, "dok"]) == 1
    assert "there is no pin 'dok'" in capsys.readouterr().err
    assert unpin.main(["--url", node.url, "--all"]) == 0
    assert [asked[2] for asked in node.asked] == [{"name": "dok"}, {"all": True}]


def test_why_shows_each_reason_in_words_once(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a request, and below what the reasons mean."""
    counts = {"prompt_tokens": 9, "own_tokens": 0, "commons_tokens": 0, "computed_tokens": 9}
    one = {"request_id": "r 1", "age_seconds": 3.0, "reason": "not_found", "explanation": "it is new", **counts}
    node.answers["/v1/requests"] = {"requests": [one, {**one, "request_id": "r2"}], "next": 0, "kept": 2}
    assert why.main(["--url", node.url, "r 1"]) == 0
    assert node.asked[0][1] == "/v1/requests?request=r%201&limit=20&missed=false"
    shown = capsys.readouterr().out
    assert shown.count("not_found: it is new") == 1
    node.answers["/v1/requests"] = {"requests": [], "next": 0, "kept": 2}
    assert why.main(["--url", node.url, "r3"]) == 1
    assert "no such request of the last 2" in capsys.readouterr().err


def test_another_server_s_answer_is_told_as_one(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """An address where something else answers: one line, no traceback."""
    assert pins.main(["--url", node.url]) == 1
    assert "is this a kvcommons node's control API?" in capsys.readouterr().err


def test_events_come_as_json_lines(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """The stream of the node, one object a line, until it ends; a refusal is told in the node's words."""
    node.refusing = True
    assert events.main(["--url", node.url, "--kinds", "x"]) == 1
    assert capsys.readouterr().err == "kvcommons events: fingerprint: too short; look it up\n"


def test_prewarm_sends_every_document_once(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Chats and prompts go where they belong, with one token to be made; the sum says what was there already."""
    usage = {"prompt_tokens": 300, "prompt_tokens_details": {"cached_tokens": 256}}
    node.answers = {"/v1/chat/completions": {"usage": usage}, "/v1/completions": {"usage": usage}}
    file = tmp_path / "documents.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}]}\n{"prompt": "c"}\n')
    assert prewarm.main(["--url", node.url, "--model", "m", "--skip", "1", "-o", "json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "done": 2,
        "failed": 0,
        "prompt_tokens": 600,
        "cached_tokens": 512,
    }
    assert {asked[1] for asked in node.asked} == {"/v1/chat/completions", "/v1/completions"}
    assert all(asked[2]["max_tokens"] == 1 and asked[2]["model"] == "m" for asked in node.asked)


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}', '{"messages": "a"}'])
def test_a_line_that_is_no_document_is_named_before_anything_is_sent(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """The whole file is read first: a bad line is told with its number."""
    file = tmp_path / "documents.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    assert prewarm.main(["--url", node.url, "--model", "m", str(file)]) == 1
    assert f"{file}, line 2: " in capsys.readouterr().err
    assert node.asked == []


def test_documents_that_fail_are_counted_and_named(
    node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the router refuses is not tried again; the status says that not all is warm."""
    node.refusing = True
    file = tmp_path / "documents.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert prewarm.main(["--url", node.url, "--model", "m", "--at-once", "1", str(file)]) == 1
    said = capsys.readouterr()
    assert "line 1: fingerprint: too short" in said.err
    assert "2 failed" in said.out
    assert len(node.asked) == 2


@pytest.mark.parametrize("url", ["127.0.0.1:9470", "foo", "ftp://x", "http://"])
def test_what_is_no_address_is_refused_with_the_form_of_one(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address without its scheme would be taken for a node that is away: it is refused before anything is asked."""
    with pytest.raises(SystemExit) as ended:
        stats.main(["--url", url])
    assert ended.value.code == 2
    assert f"{url!r} is no address: give http://HOST:PORT" in capsys.readouterr().err


def test_a_refusal_names_the_value(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """What was given stands beside its field, so that one sees which of several it was."""
    node.refusing = True
    node.refusal = {"error": {**REFUSAL["error"], "value": "'abc'"}}
    assert clear.main(["--url", node.url, "--fingerprint", "abc"]) == 1
    assert capsys.readouterr().err == "kvcommons clear: fingerprint: 'abc': too short; look it up\n"
