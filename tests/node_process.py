"""A node as a process of its own, with its real core, for tests that talk to it."""

from __future__ import annotations

import json
import os
import select
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvcommons_core.redis_server import free_port

SECONDS_MAX = 30.0
POLL_SECONDS = 0.01
ARENA = "16MiB"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process is about to do; it has no way to call back."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], POLL_SECONDS)


class NodeProcess:
    """A node's process and its addresses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket_path = folder / "n.sock"
        self.port = free_port()
        self.scheme = "http"
        self.authority: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        words = ["--arena-bytes", ARENA, "--socket-path", str(self.socket_path), "--state-dir", str(self.folder / "s")]
        words += ["--control-port", str(self.port), "--node-id", "under-test", "--holder-idle-seconds", "20", *more]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kvcommons_node", *words], stdout=log, stderr=log
            )
        until(self.serves, self.log())

    def serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/readyz")[0] == 200
        except (urllib.error.URLError, ConnectionError):  # reset: by the end of the life before
            return False

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        context = ssl.create_default_context(cafile=self.authority) if self.authority is not None else None
        url = f"{self.scheme}://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return response.status, json.load(response)

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        """Also of what is refused."""
        context = ssl.create_default_context(cafile=self.authority) if self.authority is not None else None
        url = f"{self.scheme}://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    def stats(self) -> dict[str, Any]:
        return self.get("/v1/stats")[1]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(SECONDS_MAX)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(SECONDS_MAX)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def holders(self) -> list[int]:
        """Pids of holders of this node's socket."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"kvcommons_node.holder" in words and os.fsencode(f"{self.socket_path}.hold") in words:
                found.append(int(entry.name))
        return found


@contextmanager
def node_in(folder: Path) -> Iterator[NodeProcess]:
    node = NodeProcess(folder)
    try:
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            node.stop()
        for pid in node.holders():
            os.kill(pid, signal.SIGTERM)
