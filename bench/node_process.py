"""A node's core in a process of its own, for benchmarks that are its clients."""

from __future__ import annotations

import contextlib
import multiprocessing
import secrets
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from kvcommons_core import _native

SPAWN = multiprocessing.get_context("spawn")


def wait_for_end(pipe: Connection) -> None:
    """Return when the other end of the pipe has been closed, or has said anything."""
    with contextlib.suppress(EOFError):
        pipe.recv()


@contextlib.contextmanager
def running_node(*, arena_bytes: int, populate: bool = False) -> Iterator[str]:
    """The path of the socket of a node that serves until the block is left.

    :param populate: whether the arena's pages are there before the node serves.
    """
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        path = str(Path(folder) / "s")
        ours, theirs = SPAWN.Pipe()
        node = SPAWN.Process(target=_serve, args=(path, arena_bytes, populate, theirs), daemon=True)
        node.start()
        theirs.close()
        try:
            ours.recv()
            yield path
        finally:
            ours.close()
            node.join()


def _serve(path: str, arena_bytes: int, populate: bool, ready: Connection) -> None:
    node = _native.NodeCore(
        socket_path=path,
        arena_bytes=arena_bytes,
        node_id="bench",
        namespace_secret=secrets.token_bytes(32),
        populate=populate,
    )
    node.start()
    ready.send(True)
    wait_for_end(ready)
    node.stop()
