"""Native clients of a node's process, and what tests store through them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from typing import Any

from kvcommons_core import _native
from kvcommons_core.keys import namespace_root, token_keys
from node_process import NodeProcess, until

FINGERPRINT = bytes(range(32))
SLOT_BYTES = 8_192
SHARDS = [((0, 2, 0, 1), SLOT_BYTES)]


def connect(node: NodeProcess, role: str, arena_kept_ms: int = 120_000) -> _native.Client:
    own = 0 if role == "worker" else -1
    client = _native.Client(
        socket_path=str(node.socket_path),
        role=role,
        fingerprint=FINGERPRINT,
        chunk_tokens=256,
        shards=SHARDS,
        own_shard=own,
        reconnect_ms_min=1,
        reconnect_ms_max=20,
        arena_kept_ms=arena_kept_ms,
    )
    until(client.ensure_connected, client.last_error)
    return client


def store(client: _native.Client, keys: bytes, payloads: Sequence[bytes], text_keys: Sequence[int] = ()) -> None:
    client.copy_started()
    status, slots = client.reserve(0, bytes(32), keys)
    assert status == "ok"
    for (granted, offset, _generation), payload in zip(slots, payloads, strict=True):
        assert granted == "granted"
        client.write_arena(offset, payload)
    items = [(offset, generation, 0, text_keys) for _granted, offset, generation in slots]
    assert client.commit(items) == ("ok", len(items))
    client.copy_finished()


def read(scheduler: _native.Client, worker: _native.Client, keys: bytes) -> list[bytes]:
    status, lease, hits, _pending = scheduler.lookup(keys, lease=True)
    assert status == "ok"
    if not hits:
        return []
    worker.copy_started()
    status, slots = worker.begin(lease)
    assert status == "ok"
    content = [worker.read_arena(offset, SLOT_BYTES) for offset, _generation in slots]
    worker.release(lease)
    worker.copy_finished()
    scheduler.release(lease)
    return content


def payload(number: int) -> bytes:
    return bytes([number]) * SLOT_BYTES


def keys_of(client: _native.Client, chunks: int) -> bytes:
    root = namespace_root(FINGERPRINT, client.namespace_secret)
    return token_keys(root, list(range(256 * chunks)), 256)


def post(node: NodeProcess, path: str, body: object) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        answer: dict[str, Any] = json.load(response)
        return answer
