"""The native node and client through Python: what the daemon and the connector rely on, over a real socket."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvcommons_core import _native

FINGERPRINT = bytes(range(32))
SLOT_BYTES = 8192
ARENA_BYTES = 16 << 20
WAIT_SECONDS_MAX = 20.0

NODE_PROGRAM = """
import signal, sys
from kvcommons_core import _native
socket_path, holder_socket = sys.argv[1:]
node = _native.NodeCore(
    socket_path=socket_path, arena_bytes=16 << 20, node_id="n", namespace_secret=b"s" * 32, holder_socket=holder_socket
)
node.start()
print("ready", flush=True)
signal.pause()
"""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_SECONDS_MAX:.0f} s"
        select.select([], [], [], 0.002)


def make_node(folder: Path, **settings: object) -> _native.NodeCore:
    arguments: dict[str, object] = {
        "socket_path": str(folder / "n"),
        "arena_bytes": ARENA_BYTES,
        "node_id": "node-1",
        "namespace_secret": b"s" * 32,
    }
    return _native.NodeCore(**(arguments | settings))  # type: ignore[arg-type]  # names and types are those above


@pytest.fixture
def node(folder: Path) -> Iterator[_native.NodeCore]:
    core = make_node(folder)
    core.start()
    yield core
    core.stop()


def make_client(folder: Path, role: str = "worker", **settings: object) -> _native.Client:
    arguments: dict[str, object] = {"socket_path": str(folder / "n"), "role": role, "call_ms_max": 5_000}
    if role != "tool":
        arguments |= {"fingerprint": FINGERPRINT, "chunk_tokens": 256, "shards": [((0, 2, 0, 4), SLOT_BYTES)]}
    if role == "worker":
        arguments["own_shard"] = 0
    arguments |= {"reconnect_ms_min": 1, "reconnect_ms_max": 20}
    return _native.Client(**(arguments | settings))  # type: ignore[arg-type]  # names and types are those above


def keys_of(count: int, seed: int = 0) -> bytes:
    return b"".join(_native.sha256(f"{seed}:{index}".encode()) for index in range(count))


def store(client: _native.Client, keys: bytes) -> None:
    client.copy_started()
    status, slots = client.reserve(7, b"", keys)
    assert status == "ok"
    assert {slot[0] for slot in slots} == {"granted"}
    for index, (_, offset, _) in enumerate(slots):
        client.write_arena(offset, bytes([index + 1]) * SLOT_BYTES)
    items = [(offset, generation, 0, (index, index + 1)) for index, (_, offset, generation) in enumerate(slots)]
    assert client.commit(items) == ("ok", len(slots))
    client.copy_finished()


def test_what_one_process_commits_another_reads(folder: Path, node: _native.NodeCore) -> None:
    """A worker stores, a scheduler finds and leases it, and the bytes that another worker reads are those stored."""
    writer, scheduler, reader = make_client(folder), make_client(folder, "scheduler"), make_client(folder)
    keys = keys_of(8)
    store(writer, keys)
    status, lease, hit_chunks, pending_chunks = scheduler.lookup(keys, 7, lease=True)
    assert (status, hit_chunks, pending_chunks) == ("ok", 8, 0)
    status, slots = reader.begin(lease)
    assert status == "ok"
    assert [reader.read_arena(offset, SLOT_BYTES)[:1] for offset, _ in slots] == [bytes([i + 1]) for i in range(8)]
    assert reader.release(lease) == "ok"
    assert reader.begin(lease)[0] == "gone"
    assert node.lookup(FINGERPRINT, keys) == 8
    assert node.stats()["leases_copying"] == 0


def test_the_greeting_brings_secret_name_and_flags(folder: Path) -> None:
    """An engine learns the namespace secret and whether tenants share the node; a tool does not get the secret."""
    core = make_node(folder, multi_tenant=True)
    core.start()
    worker, tool = make_client(folder), make_client(folder, "tool")
    assert worker.ensure_connected()
    assert tool.ensure_connected()
    assert (worker.namespace_secret, worker.node_id, worker.multi_tenant) == (b"s" * 32, "node-1", True)
    assert tool.namespace_secret == bytes(32)
    assert worker.arena_bytes == ARENA_BYTES
    core.stop()


def test_events_come_in_order_and_the_descriptor_says_when(folder: Path, node: _native.NodeCore) -> None:
    """The event descriptor is readable while events wait, and drained events are complete and in order."""
    assert select.select([node.event_fd()], [], [], 0)[0] == []
    client = make_client(folder)
    keys = keys_of(3)
    store(client, keys)
    assert client.feedback('{"request_id":"r"}') == "ok"
    assert select.select([node.event_fd()], [], [], WAIT_SECONDS_MAX)[0]
    taken = []
    while select.select([node.event_fd()], [], [], 0)[0]:
        events, gap = node.drain_events(2)
        assert not gap
        taken.extend(events)
    assert [event[0] for event in taken] == ["session_opened", "committed", "committed", "committed", "feedback"]
    assert b"".join(event[1] for event in taken[1:4]) == keys
    assert taken[1][2:4] == (FINGERPRINT, (0, 1))
    assert taken[4][4] == '{"request_id":"r"}'
    assert node.clear() == 3
    events, _ = node.drain_events(16)
    assert [event[0] for event in events] == ["freed"] * 3


def test_the_inventory_pages_through_all_that_is_committed(folder: Path, node: _native.NodeCore) -> None:
    """Paging returns each chunk once, with its text keys, and ends with cursor 0."""
    keys = keys_of(10)
    store(make_client(folder), keys)
    seen: dict[bytes, tuple[int, ...]] = {}
    cursor = 0
    while True:
        items, cursor = node.inventory(cursor, 3)
        seen |= {key: text_keys for key, _, text_keys in items}
        if cursor == 0:
            break
    assert seen == {keys[32 * i : 32 * i + 32]: (i, i + 1) for i in range(10)}


def test_counters_are_the_same_over_the_socket_and_in_process(folder: Path, node: _native.NodeCore) -> None:
    """The STAT reply is JSON with every counter that stats() has."""
    store(make_client(folder), keys_of(4))
    tool = make_client(folder, "tool")
    status, text = tool.stat()
    assert status == "ok"
    counters = json.loads(text)
    assert counters.keys() == node.stats().keys()
    assert (counters["chunks"], counters["committed"]) == (4, 4)


def test_a_call_that_waits_does_not_hold_the_interpreter(folder: Path) -> None:
    """While a thread waits for a mute node, other Python threads run."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(str(folder / "n"))
        mute.listen()
        client = make_client(folder, call_ms_max=1_000)
        waiting = threading.Thread(target=lambda: client.lookup(keys_of(1)))
        start = time.monotonic()
        waiting.start()
        steps = 0
        while waiting.is_alive():
            steps += 1
        waiting.join()
        assert time.monotonic() - start >= 0.9
        assert steps > 1_000


def test_arguments_are_refused_with_the_remedy(folder: Path) -> None:
    """Each wrong argument is a ValueError that names it; a node that is not running says so."""
    with pytest.raises(ValueError, match="'scheduler', 'worker' or 'tool'"):
        make_client(folder, role="boss")
    with pytest.raises(ValueError, match="own_shard"):
        make_client(folder, own_shard=3)
    with pytest.raises(ValueError, match="whole keys of 32 bytes"):
        make_client(folder).lookup(b"short")
    with pytest.raises(ValueError, match="no arena is mapped"):
        make_client(folder).read_arena(0, 10)
    with pytest.raises(ValueError, match="arena_bytes"):
        make_node(folder, arena_bytes=1000)
    with pytest.raises(ValueError, match="set at most"):
        make_node(folder, arena_bytes=1 << 40).start()
    with pytest.raises(RuntimeError, match="not running"):
        make_node(folder).stats()


def test_a_socket_in_use_is_an_oserror_with_its_number(folder: Path, node: _native.NodeCore) -> None:
    """A second node on the same socket is refused, and the first goes on."""
    with pytest.raises(OSError, match="in use by a live process") as refused:
        make_node(folder).start()
    assert refused.value.errno == 98
    assert make_client(folder).ensure_connected()


def start_node(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", NODE_PROGRAM, str(folder / "n"), str(folder / "h")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_a_killed_daemon_is_replaced_without_losing_the_arena(folder: Path) -> None:
    """kill -9 of the daemon: the next one adopts the arena from the holder, and the client attaches again by itself."""
    holder = subprocess.Popen(
        [sys.executable, "-m", "kvcommons_node.holder", "--socket", str(folder / "h"), "--idle-seconds", "60"]
    )
    wait_until(lambda: (folder / "h").exists(), "the holder's socket")
    first = start_node(folder)
    second: subprocess.Popen[bytes] | None = None
    client = make_client(folder)
    keys = keys_of(6)
    try:
        store(client, keys)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert client.lookup(keys)[0] == "disconnected"
        second = start_node(folder)
        wait_until(client.ensure_connected, "the client attaches again")
        assert client.lookup(keys)[:3:2] == ("ok", 6)
        assert client.attach_count == 2
        maps = Path(f"/proc/{holder.pid}/maps").read_text()
        assert "kvcommons-arena" not in maps
    finally:
        client.close()
        for process in (first, second):
            if process is not None:
                end(process)
        _native.holder_stop(str(folder / "h"))
        assert holder.wait(timeout=WAIT_SECONDS_MAX) == 0


def test_a_signal_ends_the_holder(folder: Path) -> None:
    """The holder's wait lets Python's signal handlers run: Ctrl-C ends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"from kvcommons_core import _native; _native.holder_serve({str(folder / 'h')!r}, 60)"],
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: (folder / "h").exists(), "the holder's socket")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_SECONDS_MAX)
    assert b"KeyboardInterrupt" in errors
    assert not os.path.exists(folder / "h")
