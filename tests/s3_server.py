"""A real S3-compatible server of our own, as a process: its objects are files in a folder."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvcommons_core.redis_server import free_port

BUCKET = "kvc-bucket"
READY_SECONDS_MAX = 20.0


class S3Server:
    """One server; `stop` and `start` keep its objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = folder / BUCKET
        self.bucket.mkdir(parents=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [sys.executable, "-P", "-m", "localbucket", "--port", str(self.port), str(self.folder)]
        with (self.folder.parent / "s3.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self._answers():
            assert self.process.poll() is None, (self.folder.parent / "s3.log").read_text()
            assert time.monotonic() < deadline, "the S3 server does not answer"
            select.select([], [], [], 0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def objects(self) -> list[Path]:
        # The server takes folders away meanwhile, which os.walk bears.
        return [Path(root, name) for root, _, names in os.walk(self.bucket) for name in names]

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def s3_running(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder / "s3")
    server.start()
    try:
        yield server
    finally:
        server.kill()
