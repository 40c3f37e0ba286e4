"""Nodes that are one another's peers: daemons with their real cores, a Redis between them, and engines of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certificates import write_certificate
from kvcommons_core import _native
from kvcommons_core.limits import KEY_BYTES
from kvcommons_core.redis_server import free_port
from node_process import NodeProcess, node_in, until

FINGERPRINT = bytes(range(32))
SLOT_BYTES = 128 << 10
TENANT = 7
PATIENT = {"connect_ms_max": 20_000, "locate_ms_max": 20_000, "fetch_ms_max": 20_000}
"""The machine may be busy: no test here is about a time-out."""


class PeerNode:
    """A daemon with peers, in a folder of its own."""

    def __init__(self, process: NodeProcess, name: str) -> None:
        self.process = process
        self.name = name
        self.port = free_port()

    def start(self, redis_url: str, secret: Path, *more: str, **peers: object) -> None:
        settings = {"listen": f"127.0.0.1:{self.port}"} | PATIENT | peers
        words = ["--node-id", self.name, "--index.url", redis_url, "--namespace-secret-file", str(secret)]
        self.process.start(*words, "--peers", json.dumps(settings), *more)

    def stats(self) -> dict[str, int]:
        core: dict[str, int] = self.process.stats()["core"]
        return core

    def client(self, role: str, fingerprint: bytes = FINGERPRINT) -> _native.Client:
        return _native.Client(
            socket_path=str(self.process.socket_path),
            role=role,
            call_ms_max=5_000,
            fingerprint=fingerprint,
            chunk_tokens=256,
            shards=[((0, 2, 0, 4), SLOT_BYTES)],
            own_shard=0 if role == "worker" else -1,
        )

    def store(self, keys: bytes) -> None:
        """What an engine here does with chunks that it has computed."""
        worker = self.client("worker")
        worker.copy_started()
        status, slots = worker.reserve(TENANT, b"", keys)
        assert (status, {slot[0] for slot in slots}) == ("ok", {"granted"})
        for index, (_, offset, _) in enumerate(slots):
            worker.write_arena(offset, payload(keys, index))
        count = len(keys) // KEY_BYTES
        assert worker.commit([(offset, generation, 0, ()) for _, offset, generation in slots]) == ("ok", count)
        worker.copy_finished()
        worker.close()

    def read(self, keys: bytes, fingerprint: bytes = FINGERPRINT) -> int:
        """What an engine here finds, once nothing is on its way any more; every byte of it is compared."""
        scheduler, reader = self.client("scheduler", fingerprint), self.client("worker", fingerprint)
        assert scheduler.ensure_connected()
        found: dict[str, int] = {}

        def settled() -> bool:
            if found.get("lease"):
                scheduler.release(found["lease"])
            status, lease, hit, pending = scheduler.lookup(keys, TENANT, True)
            assert status == "ok"
            found.update(lease=lease, hit=hit)
            return not pending

        until(settled, "nothing is on its way")
        if found["lease"]:
            status, slots = reader.begin(found["lease"])
            assert status == "ok"
            for index, (offset, _) in enumerate(slots):
                assert reader.read_arena(offset, SLOT_BYTES) == payload(keys, index)
            reader.release(found["lease"])
        scheduler.close()
        reader.close()
        return found["hit"]


def chain(number: int, length: int = 4) -> bytes:
    return b"".join(_native.sha256(f"peers:{number}:{index}".encode()) for index in range(length))


def payload(keys: bytes, index: int) -> bytes:
    return _native.sha256(keys[index * KEY_BYTES :][:KEY_BYTES]) * (SLOT_BYTES // KEY_BYTES)


def make_secret(folder: Path, name: str = "secret") -> Path:
    file = folder / name
    file.touch(mode=0o600)
    file.write_bytes(_native.sha256(name.encode()))
    return file


def make_certificate(folder: Path, name: str) -> dict[str, object]:
    """The TLS settings of a node, of a pool whose authority is its certificate itself."""
    write_certificate(folder, name)
    files = {"tls_ca_file": "crt", "tls_cert_file": "crt", "tls_key_file": "key"}
    return {setting: str(folder / f"{name}.{suffix}") for setting, suffix in files.items()}


@contextmanager
def peer_nodes(folder: Path, names: tuple[str, ...] = ("one", "two")) -> Iterator[list[PeerNode]]:
    """Not started; ended at the end."""
    found: list[PeerNode] = []
    contexts: list[Any] = []
    try:
        for name in names:
            (folder / name).mkdir()
            contexts.append(node_in(folder / name))
            found.append(PeerNode(contexts[-1].__enter__(), name))
        yield found
    finally:
        for context in reversed(contexts):
            context.__exit__(None, None, None)


def know_each_other(nodes: list[PeerNode]) -> None:
    """Each has been told of all others."""
    until(lambda: all(node.stats()["peer_peers"] == len(nodes) - 1 for node in nodes), "the nodes know each other")


def published(node: PeerNode, chunks: int = 4) -> None:
    """So many chunks were published, and none waits to be."""
    until(lambda: node.process.stats()["index"]["published"] >= chunks, f"{chunks} chunks are published")
    until(lambda: node.process.stats()["index"]["pending"] == 0, "nothing waits to be published")
