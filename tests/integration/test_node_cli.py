"""The command against a control API: what it shows, what it refuses, and in which words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kvcommons_cli import clear, lookup, stats
from kvcommons_core.redis_server import free_port

FINGERPRINT = "ab" * 32
REFUSAL = {"error": {"type": "invalid_request", "message": "too short", "field": "fingerprint", "remedy": "look it up"}}


class Node(ThreadingHTTPServer):
    """Answers with what it was asked, or refuses."""

    daemon_threads = True
    refusing = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, Any, str | None]] = []

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
        content = json.dumps(REFUSAL if self.server.refusing else {"hit_chunks": 2}).encode()
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


def test_lookup_sends_tokens_from_a_file_with_their_salt(node: Node, tmp_path: Path) -> None:
    """Tokens are read from a file; only what was given is sent, so that the node's own defaults hold."""
    file = tmp_path / "tokens.json"
    file.write_text("[1, 2, 3]")
    assert lookup.main(["--url", node.url, "--fingerprint", FINGERPRINT, "--tokens", str(file), "--salt", "s"]) == 0
    assert node.asked[0][2] == {"fingerprint": FINGERPRINT, "tokens": [1, 2, 3], "salt": "s"}


def test_clear_wants_one_target(node: Node) -> None:
    """Without a target nothing is asked of the node."""
    with pytest.raises(SystemExit) as ended:
        clear.main(["--url", node.url])
    assert ended.value.code == 2
    assert node.asked == []
    assert clear.main(["--url", node.url, "--all"]) == 0
    assert node.asked[0][2] == {"all": True}


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
