"""What an engine's pod runs before it is stopped: it waits for the answers that are under way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kvcommons_operator.build.engine import DRAIN

BUSY = b'vllm:num_requests_running{model_name="m"} 1.0\nvllm:num_requests_waiting{model_name="m"} 0.0\n'
IDLE = BUSY.replace(b"1.0", b"0.0")


@contextmanager
def engine(answers: list[bytes | None]) -> Iterator[tuple[int, list[int]]]:
    """(port, how many requests came), with these answers in turn; None closes the connection, the last one stays."""
    asked = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers[min(asked[0], len(answers) - 1)]
            asked[0] += 1
            if answer is None:
                self.close_connection = True
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([None, BUSY, None, BUSY, IDLE], 6),
        ([IDLE], 2),
        ([None], 5),
    ],
    ids=["one that is too busy to answer at times", "one that is idle", "one that is dead"],
)
def test_a_pod_goes_when_its_engine_is_idle_or_dead(answers: list[bytes | None], requests: int) -> None:
    """A single question without an answer is no reason to cut the streams of an engine that is merely busy."""
    with engine(answers) as (port, asked):
        done = subprocess.run([sys.executable, "-c", DRAIN, str(port), "30"], timeout=60, check=False)
    assert (done.returncode, asked[0]) == (0, requests)
