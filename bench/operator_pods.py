"""What the simulated pods answer when the operator asks them: one address for all of them, cache nodes and routers.

Every one of a thousand is asked, and then again and again: an answer here costs next to nothing, so that the machine's time is the
operator's and the cluster's."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

NODE_PORT, ROUTER_PORT = 9470, 8000
STATS = {
    "node_id": "any",
    "index": {"state": "connected", "held": False, "pending": 0},
    "core": {"chunks": 1, "arena_bytes": 1 << 30},
}
FENCED: dict[str, Any] = {"fenced": [], "unknown": [], "held": False}
HEALTH = {"status": "ok", "models": {"model": {"up": 1}}}
START_SECONDS_MAX = 10.0


class Answers(asyncio.Protocol):
    """One connection, which asks once."""

    def __init__(self, get: bytes, post: bytes) -> None:
        self._get = get
        self._post = post
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._transport.write(self._get if self._head.startswith(b"GET") else self._post)
            self._transport.close()


class Pods:
    """Listens on an address of the loopback network of its own. `start`, then `stop`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="pods")

    def start(self) -> Pods:
        self._thread.start()
        assert self._listening.wait(START_SECONDS_MAX), f"nobody could listen on {self._address}"
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        for port, answer in ((NODE_PORT, STATS), (ROUTER_PORT, HEALTH)):
            self._loop.run_until_complete(self._loop.create_server(_answering(answer), self._address, port))
        self._listening.set()
        self._loop.run_forever()


def _answering(answer: dict[str, Any]) -> Callable[[], Answers]:
    get, post = _response(answer), _response(FENCED)
    return lambda: Answers(get, post)


def _response(answer: dict[str, Any]) -> bytes:
    body = json.dumps(answer).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
