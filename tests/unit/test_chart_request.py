"""What `helm test` runs in its pod: the operator is asked how it is, and a named router answers a chat."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "charts" / "kvcommons" / "files" / "request.py"
MODELS = {"data": [{"id": "smollm2"}]}
CHAT = {"choices": [{"message": {"content": "Hello."}}]}


class Stub(ThreadingHTTPServer):
    """Operator and router at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refusals = 0
        """How many chats are answered 503 first."""
        self.chat_status = 200
        self.asked: list[tuple[str, str | None, dict[str, object]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def judge(self, path: str) -> tuple[int, object]:
        if path == "/readyz":
            return 200, {"ok": True}
        if path == "/v1/models":
            return 200, MODELS
        if self.refusals:
            self.refusals -= 1
            return 503, {"error": "no engine is ready"}
        return self.chat_status, CHAT


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, object]) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, answer = self.server.judge(self.path)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server that is closed again."""
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def run(stub: Stub, **settings: str) -> subprocess.CompletedProcess[str]:
    """The script with the chart's variables."""
    given = {"OPERATOR_URL": stub.url, "ROUTER_URL": "", "MODEL": "", "TIMEOUT_SECONDS": "20", **settings}
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT)], env=given, capture_output=True, text=True, timeout=60, check=False
    )


def test_without_a_router_only_the_operator_is_asked(stub: Stub) -> None:
    """It succeeds, and says which value would send a request."""
    done = run(stub)
    assert (done.returncode, [path for path, _, _ in stub.asked]) == (0, ["/readyz"])
    assert "test.url" in done.stdout


def test_a_router_is_sent_a_chat_with_the_key(stub: Stub) -> None:
    """A deployment's status.url is taken as it stands, with /v1; what the model said is printed."""
    done = run(stub, ROUTER_URL=f"{stub.url}/v1", API_KEY="secret")
    assert done.returncode == 0, done.stderr
    assert 'router: "Hello."' in done.stdout
    path, key, body = stub.asked[-1]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "smollm2")


def test_a_router_that_is_not_ready_yet_is_asked_again(stub: Stub) -> None:
    """503 is what a deployment says that has no engine yet."""
    stub.refusals = 1
    done = run(stub, ROUTER_URL=stub.url, MODEL="smollm2")
    assert done.returncode == 0, done.stderr
    assert [path for path, _, _ in stub.asked].count("/v1/chat/completions") == 2


def test_a_refusal_fails_the_test_with_what_was_said(stub: Stub) -> None:
    """Asking again would not help where the model is unknown."""
    stub.chat_status = 404
    done = run(stub, ROUTER_URL=stub.url, MODEL="other")
    assert done.returncode != 0
    assert "404" in done.stderr
