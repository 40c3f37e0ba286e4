"""A cache node's control API as the operator sees it: answers what it is told to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTROL_PORT = 9470


@dataclass
class Asked:
    """One call."""

    path: str
    token: str
    body: dict[str, Any]
    at: float


@dataclass
class ControlStandIn:
    """Listens on an address of the loopback network of its own. `start`, then `stop`."""

    address: str
    member: str
    asked: list[Asked] = field(default_factory=list)
    held: bool = False
    answers: bool = True
    arena_bytes: int = 1 << 30
    refuses: str = ""
    """Why it takes no other size."""

    def start(self) -> ControlStandIn:
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({}, node.stats())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/resize":
                    self._answer(body, node.resize(body["arena_bytes"]))
                    return
                node.held = not body.get("release") and (node.held or bool(body.get("hold")))
                self._answer(body, {"fenced": body.get("members", []), "unknown": [], "held": node.held})

            def _answer(self, body: dict[str, Any], answer: dict[str, Any]) -> None:
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                node.asked.append(Asked(self.path, token, body, time.monotonic()))
                raw = json.dumps(answer).encode()
                self.send_response(409 if "error" in answer else 200 if node.answers else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer((self.address, CONTROL_PORT), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def stats(self) -> dict[str, Any]:
        index = {"state": "disconnected" if self.held else "connected", "held": self.held, "pending": 0}
        return {"node_id": self.member, "index": index, "core": {"chunks": 1, "arena_bytes": self.arena_bytes}}

    def resize(self, arena_bytes: int) -> dict[str, Any]:
        """Begins anew with another size: not held any more."""
        if self.refuses:
            return {"error": {"message": self.refuses}}
        before, self.arena_bytes = self.arena_bytes, arena_bytes
        self.held = self.held and before == arena_bytes
        return {"before_bytes": before, "arena_bytes": arena_bytes, "restarts": before != arena_bytes}

    def fences(self) -> list[Asked]:
        return [one for one in list(self.asked) if one.path == "/v1/fence"]
