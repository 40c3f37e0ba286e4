"""A pool at work, to be watched: Redis, two nodes with disks, a router, and engines that speak to both as real ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kvcommons_core import redis_server
from kvcommons_core.redis_server import RedisServer, free_port
from node_process import until
from peer_nodes import PeerNode, chain, know_each_other, make_secret, peer_nodes

CHUNKS = 4
TOKENS = 256 * CHUNKS
TEXT = "a paragraph that many requests share, word by word and line by line; "
NAMESPACE = "watched"
POOL = {"namespace": NAMESPACE, "container": "cache-node"}
ROUTER = {"namespace": NAMESPACE, "service": "chat"}
BODY_BYTES_MAX = 1 << 20
ROUTER_SETTINGS = {
    "LIMITS__BODY_BYTES_MAX": str(BODY_BYTES_MAX),
    "QUEUE__ENABLED": "true",
    "QUEUE__WINDOW_TOKENS": "1",
    "QUEUE__WINDOW_SECONDS": "0.001",
}
"""A queue in the router as soon as two requests meet."""
SHADOWS = ("--shadow-chunks-max", "1024")
AT_ONCE = 6


class Server(ThreadingHTTPServer):
    """Says nothing of clients that leave."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # as it came


class WireEngine:
    """An engine without a model: what a document is comes with the request, its chunks go to a real node and come from there."""

    def __init__(self, name: str, node: PeerNode) -> None:
        self.name, self.node = name, node
        self.failing = False
        self.one_by_one = threading.Lock()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(503 if engine.failing else 200, b"{}")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if engine.failing:
                    self.answer(503, b"{}")
                    return
                request_id = self.headers["X-Request-Id"]
                engine.serve(int(body["document"]), request_id)
                self.answer(200, json.dumps({"id": request_id, "choices": []}).encode())

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Nothing."""

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, document: int, request_id: str) -> None:
        """What a connector does: ask the node, load what is there, store the rest, and report at the end."""
        keys = chain(document, CHUNKS)
        with self.one_by_one:  # else two would store the same
            hit = self.node.read(keys)
            if not hit:
                self.node.store(keys)
        self.report(request_id, keys, hit * 256)

    def report(self, request_id: str, keys: bytes, commons: int) -> None:
        missed = [keys[at : at + 8].hex() for at in range(commons // 256 * 32, len(keys), 32)]
        fields: dict[str, object] = {
            "request_id": request_id,
            "prompt_tokens": TOKENS + 7,
            "own_tokens": 0,
            "commons_tokens": commons,
            "computed_tokens": TOKENS + 7 - commons,
            "reason": "" if commons == TOKENS else "not_found" if not commons else "partly_found",
            "model": "m",
        }
        if missed:
            fields |= {"missed_from": commons // 256, "missed": missed}
        client = self.node.client("scheduler")
        assert client.ensure_connected()
        assert client.feedback(json.dumps(fields)) == "ok"
        client.close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class RouterProcess:
    """The router, which may be killed and started again."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        given = {f"KVCOMMONS_ROUTER__{name}": value for name, value in ROUTER_SETTINGS.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env={**os.environ, **given}, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


class Run:
    """All of it."""

    def __init__(
        self, redis: RedisServer, nodes: list[PeerNode], engines: list[WireEngine], router: RouterProcess
    ) -> None:
        self.redis, self.nodes, self.engines, self.router = redis, nodes, engines, router
        self.port = 0
        self.starts: dict[str, Callable[[], None]] = {}
        self.extra = ExitStack()
        """What is started later, to be ended too."""

    @property
    def targets(self) -> list[tuple[str, dict[str, str]]]:
        """What Prometheus scrapes, with the labels that its operator would give."""
        nodes = [(f"127.0.0.1:{node.process.port}", {**POOL, "pod": node.name}) for node in self.nodes]
        return [*nodes, (f"127.0.0.1:{self.port}", {**ROUTER, "pod": "router"})]

    def ask(self, document: int, text: str = "") -> int:
        """A chat about a document through the router; the status."""
        return self.chat(document, text)[0]

    def chat(self, document: int, text: str = "") -> tuple[int, str]:
        """The same, with the request's id."""
        content = text or f"document {document}: {TEXT * 60}"
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "document": document, "stream": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status), answer.headers["X-Request-Id"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["X-Request-Id"] or ""

    def work(self, turn: int) -> None:
        """A little of everything that is counted: known and new documents, several at once, evictions, a tier and a peer that
        give, an engine that fails once, and a request that is refused."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            assert set(pool.map(self.ask, [turn * 100 + number // 2 for number in range(2 * AT_ONCE)])) == {200}
        one, two = self.nodes
        for number in range(36):
            one.store(chain(turn * 100 + 50 + number, CHUNKS))
        assert one.read(chain(turn * 100 + 50, CHUNKS)) == CHUNKS
        two.read(chain(turn * 100 + 85, CHUNKS))
        self.engines[0].failing = True
        for number in range(4):
            self.ask(turn * 100 + 20 + number)
        self.engines[0].failing = False
        assert self.ask(0, "x" * BODY_BYTES_MAX) == 413

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            return {}

    def mend(self) -> None:
        """Ends the faults that a test has made: what was killed is started again where it was."""
        if not self.redis.alive():
            self.extra.callback(redis_server.start(self.redis.binary, port=self.redis.port).stop)
        for engine in self.engines:
            engine.failing = False
        for node in self.nodes:
            if node.process.process is not None and node.process.process.poll() is not None:
                self.starts[node.name]()
        if self.router.process is None or self.router.process.poll() is not None:
            self.start_router()

    def start_router(self) -> None:
        self.router.start()
        until(lambda: self.health().get("status") == "ok", "the router serves")
        until(lambda: self.health().get("index") == "connected", "the router has Redis")


def disk_in(folder: Path) -> str:
    """A node's setting of a disk of its own."""
    folder.mkdir()
    tier = {"type": "disk", "paths": [str(folder)], "capacity_bytes": 64 << 20, "segment_bytes": 4 << 20}
    return json.dumps([tier | {"buffered": True}])


@contextmanager
def pool_at_work(folder: Path, *, disks: bool = True) -> Iterator[Run]:
    """Until the end of the block."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server.running())
        nodes = stack.enter_context(peer_nodes(folder))
        secret = make_secret(folder)
        starts: dict[str, Callable[[], None]] = {}
        for node in nodes:
            disk = ("--tiers", disk_in(folder / f"{node.name}-disk")) if disks else ()
            starts[node.name] = partial(node.start, redis.url, secret, *disk, *SHADOWS)
            starts[node.name]()
        know_each_other(nodes)
        engines = [WireEngine(f"engine-{node.name}", node) for node in nodes]
        for engine in engines:
            stack.callback(engine.close)
        port = free_port()
        flags = [f"--instance=name={one.name},url={one.url},model=m,node={one.node.name}" for one in engines]
        flags += [f"--listen=127.0.0.1:{port}", "--redis", redis.url]
        router = RouterProcess([sys.executable, "-P", "-m", "kvcommons_router", *flags], folder / "router.log")
        stack.callback(router.stop)
        run = Run(redis, nodes, engines, router)
        run.port, run.starts = port, starts
        stack.callback(run.extra.close)
        run.start_router()
        yield run
