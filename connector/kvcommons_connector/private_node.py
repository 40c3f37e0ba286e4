"""A private cache for one engine: a process of its own that serves a socket and ends with the engine. No Redis, no router.

The engine's process starts it (`PrivateNode`); what runs in the child is `main`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvcommons_connector.config import SOCKET_PATH_BYTES_MAX

READY_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 10.0
READY: Final = b"ready\n"


def private_socket(engine_id: str) -> str:
    """The socket of an engine's private node, known to all of the engine's processes without a word between them."""
    name = f"kvc-{os.getuid()}-{hashlib.sha256(engine_id.encode()).hexdigest()[:16]}"
    folders = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    paths = [str(Path(folder) / name / "node.sock") for folder in folders if folder]
    return next((path for path in paths if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX), paths[-1])


class PrivateNode:
    """The child process, held by the engine's core. It ends when this process does, however it does."""

    def __init__(self, socket_path: str, arena_bytes: int) -> None:
        """:raises RuntimeError: if the node does not come up, with what it said."""
        self._folder = Path(socket_path).parent
        self._folder.mkdir(mode=0o700, parents=False, exist_ok=True)
        if self._folder.stat().st_uid != os.getuid():
            raise RuntimeError(f"{self._folder} belongs to another user: set XDG_RUNTIME_DIR to a folder of your own")
        command = [
            sys.executable,
            "-m",
            "kvcommons_connector.private_node",
            "--socket",
            socket_path,
            "--bytes",
            str(arena_bytes),
            "--parent",
            str(os.getpid()),
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(  # its standard input is a pipe that closes when this process ends
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._await_ready()

    def _await_ready(self) -> None:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], READY_SECONDS_MAX)
        line = self._process.stdout.readline() if readable else b""
        if line != READY:
            self.stop()
            raise RuntimeError(
                f"the private cache node did not start (exit status {self._process.returncode}): its message is above; "
                "a smaller `size` may help"
            )

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def stop(self) -> None:
        """End the child and remove its folder. Safe to call twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until standard input closes or the parent is gone."""
    parser = argparse.ArgumentParser(prog="kvcommons-private-node", description="A cache node for one engine.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--bytes", required=True, type=int)
    parser.add_argument("--parent", required=True, type=int)
    options = parser.parse_args(arguments)
    from kvcommons_core import _native

    try:
        parent = os.pidfd_open(options.parent)
        node = _native.NodeCore(
            socket_path=options.socket,
            arena_bytes=options.bytes,
            node_id="private",
            namespace_secret=secrets.token_bytes(32),
            populate=False,
            events_max=1024,
        )
        node.start()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"kvcommons: private cache node: {error}\n")
        return 1
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    _wait_for_end(parent)
    node.stop()
    shutil.rmtree(Path(options.socket).parent, ignore_errors=True)
    return 0


def _wait_for_end(parent: int) -> None:
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    while not any(fd == parent or event & select.POLLHUP or not os.read(fd, 1) for fd, event in poll.poll()):
        pass


if __name__ == "__main__":
    sys.exit(main())
