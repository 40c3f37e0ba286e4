"""A pool at work, to be watched: Redis, two nodes with disks, a router, and engines that speak to both as real ones do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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


class WireEngine:
    """An engine without a model: what a document is comes with the request, its chunks go to a real node and come from there."""

    def __init__(self, name: str, node: PeerNode) -> None:
        self.name, self.node = name, node
        self.failing = False
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
                engine.serve(int(body["document"]), self.headers["X-Request-Id"])
                self.answer(200, b'{"choices": []}')

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, document: int, request_id: str) -> None:
        """What a connector does: ask the node, load what is there, store the rest, and report at the end."""
        keys = chain(document, CHUNKS)
        hit = self.node.read(keys)
        if hit < CHUNKS:
            self.node.store(keys[hit * 32 :] if hit else keys)
        self.report(request_id, hit * 256)

    def report(self, request_id: str, commons: int) -> None:
        fields = {
            "request_id": request_id,
            "prompt_tokens": TOKENS + 7,
            "own_tokens": 0,
            "commons_tokens": commons,
            "computed_tokens": TOKENS + 7 - commons,
            "reason": "" if commons == TOKENS else "not_found" if not commons else "partly_found",
            "model": "m",
        }
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
        limit = {"KVCOMMONS_ROUTER__LIMITS__BODY_BYTES_MAX": str(BODY_BYTES_MAX)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env={**os.environ, **limit}, stdout=log, stderr=log)

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

    @property
    def targets(self) -> list[tuple[str, dict[str, str]]]:
        """What Prometheus scrapes, with the labels that its operator would give."""
        nodes = [(f"127.0.0.1:{node.process.port}", {**POOL, "pod": node.name}) for node in self.nodes]
        return [*nodes, (f"127.0.0.1:{self.port}", {**ROUTER, "pod": "router"})]

    def ask(self, document: int, text: str = "") -> int:
        """A chat about a document through the router; the status."""
        content = text or f"document {document}: {TEXT * 60}"
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "document": document}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def page(self, address: str) -> str:
        """What a target shows."""
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            found: bytes = answer.read()
            return found.decode()

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            return {}

    def start_router(self) -> None:
        self.router.start()
        until(lambda: self.health().get("status") == "ok", "the router serves")
        until(lambda: self.health().get("index") == "connected", "the router has Redis")


def disk(folder: Path) -> str:
    """A node's setting of a disk of its own."""
    folder.mkdir()
    tier = {"type": "disk", "paths": [str(folder)], "capacity_bytes": 64 << 20, "segment_bytes": 4 << 20}
    return json.dumps([tier | {"buffered": True}])


@contextmanager
def pool_at_work(folder: Path) -> Iterator[Run]:
    """Until the end of the block."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server.running())
        nodes = stack.enter_context(peer_nodes(folder))
        secret = make_secret(folder)
        for node in nodes:
            node.start(redis.url, secret, "--tiers", disk(folder / f"{node.name}-disk"))
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
        run.port = port
        run.start_router()
        yield run
