"""The node as a process with its real core: a native client stores and reads, the node is killed, and its arena survives."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kvcommons_cli import doctor, events, status
from kvcommons_core import _native
from node_clients import FINGERPRINT, SLOT_BYTES, connect, keys_of, payload, post, read, store
from node_process import ARENA, SECONDS_MAX, NodeProcess, node_in, until


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with TemporaryDirectory(prefix="kvn-") as folder, node_in(Path(folder)) as made:
        yield made


def own_arenas() -> set[str]:
    """Inodes of the arenas that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "kvcommons-arena" in line}


def test_what_a_client_stores_the_control_api_finds(node: NodeProcess) -> None:
    """Chunks stored over the socket are found by their tokens over HTTP, counted in stats, and gone after a clear."""
    node.start()
    worker = connect(node, "worker")
    store(worker, keys_of(worker, 3), [payload(1), payload(2), payload(3)])
    body = {"fingerprint": FINGERPRINT.hex(), "tokens": list(range(256 * 3 + 5))}
    answer = post(node, "/v1/lookup", body)
    assert (answer["chunks"], answer["hit_chunks"], answer["hit_tokens"]) == (3, 3, 768)
    assert answer["places"] == {"memory": 3}
    assert node.stats()["core"]["chunks"] == 3
    cleared = post(node, "/v1/clear", {"all": True})
    assert (cleared["chunks"], cleared["pins"], cleared["epoch"]) == (3, 0, None)
    assert post(node, "/v1/lookup", body)["hit_chunks"] == 0
    worker.close()


def test_kill_9_of_the_node_loses_no_chunk_and_no_client(node: NodeProcess) -> None:
    """A restarted node adopts the arena: attached clients come back by themselves and read the same bytes."""
    node.start()
    scheduler, worker = connect(node, "scheduler"), connect(node, "worker")
    keys = keys_of(worker, 3)
    stored = [payload(number) for number in (7, 8, 9)]
    store(worker, keys, stored)
    node.kill()
    assert scheduler.lookup(keys)[0] != "ok"
    node.start()
    assert node.stats()["adopted"] is True
    until(lambda: scheduler.ensure_connected() and worker.ensure_connected(), scheduler.last_error)
    assert read(scheduler, worker, keys) == stored
    assert len(node.holders()) == 1
    scheduler.close()
    worker.close()


def test_pinned_chunks_outlive_eviction_and_kill_9(node: NodeProcess) -> None:
    """What is pinned is still there after the arena was filled twice over, before and after a crash, and goes once unpinned."""
    node.start("--pinned-bytes-max", "1MiB")
    worker = connect(node, "worker")
    store(worker, keys_of(worker, 2), [payload(1), payload(2)])
    body = {"fingerprint": FINGERPRINT.hex(), "tokens": list(range(512))}
    assert post(node, "/v1/pin", {**body, "name": "doc"})["pin"]["chunks"] == 2
    fill(worker, seed=1)
    assert post(node, "/v1/lookup", body)["hit_chunks"] == 2
    node.kill()
    node.start("--pinned-bytes-max", "1MiB")
    until(worker.ensure_connected, worker.last_error)
    assert [one["name"] for one in node.get("/v1/pins")[1]["pins"]] == ["doc"]
    fill(worker, seed=2)
    assert post(node, "/v1/lookup", body)["hit_chunks"] == 2
    assert post(node, "/v1/unpin", {"name": "doc"}) == {"pins": 1, "chunks": 2}
    fill(worker, seed=3)
    assert post(node, "/v1/lookup", body)["hit_chunks"] == 0
    worker.close()


def fill(worker: _native.Client, seed: int) -> None:
    """Twice as much as the arena holds, of chains of one chunk."""
    for number in range(2 * (16 << 20) // SLOT_BYTES):
        name = hashlib.sha256(f"{seed}-{number}".encode()).digest()
        store(worker, name, [payload(number % 251)])


def test_a_client_sees_a_dead_connection_before_it_uses_it(node: NodeProcess) -> None:
    """After a restart of the node ensure_connected attaches anew, so that the first load is not refused as stale."""
    node.start()
    worker = connect(node, "worker")
    assert worker.attach_count == 1
    node.kill()
    until(lambda: not worker.ensure_connected(), "the dead connection is not noticed")
    node.start()
    until(worker.ensure_connected, worker.last_error)
    assert worker.attach_count == 2
    worker.close()


def test_an_idle_engine_lets_go_of_a_dead_node_s_arena_and_finds_the_next_node(node: NodeProcess) -> None:
    """Without a call of its own, an engine's transfer unmaps what a dead node has left, so that the memory is free; and attaches anew."""
    node.start("--holder-socket", "none")
    worker = connect(node, "worker", arena_kept_ms=0)
    blocks = ctypes.create_string_buffer(SLOT_BYTES)
    base, half = ctypes.addressof(blocks), SLOT_BYTES // 2
    layers = [(base + layer * half, 1, half, 1, 0, 1, 0, half) for layer in range(2)]
    transfer = _native.Transfer(worker, blocks_per_chunk=1, layers=layers)
    mapped = own_arenas()
    assert len(mapped) == 1
    node.kill()
    until(lambda: not own_arenas(), "the dead node's arena is still mapped")
    assert not worker.connected
    node.start("--holder-socket", "none")
    until(lambda: worker.connected, "the next node is not found")
    assert len(own_arenas() - mapped) == 1
    del transfer
    worker.close()


def test_statistics_name_the_processes_behind_a_fingerprint(node: NodeProcess) -> None:
    """Who looks for what may be cleared sees how much there is of it, and which processes use it."""
    node.start()
    worker = connect(node, "worker")
    store(worker, keys_of(worker, 2), [payload(1), payload(2)])
    (listed,) = node.stats()["fingerprints"]
    assert (listed["fingerprint"], listed["chunks"], listed["used_bytes"]) == (FINGERPRINT.hex(), 2, 2 * SLOT_BYTES)
    assert [engine["pid"] for engine in listed["engines"]] == [os.getpid()]
    assert listed["engines"][0]["name"]
    assert post(node, "/v1/clear", {"fingerprint": FINGERPRINT.hex()[:8]})["chunks"] == 2
    worker.close()


def test_a_node_without_a_cluster_is_shown_as_a_table(node: NodeProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """`kvcommons status --local` tells a person how one node is; `kvcommons doctor` that an engine may attach to it."""
    node.start()
    worker = connect(node, "worker")
    store(worker, keys_of(worker, 2), [payload(1), payload(2)])
    words = ["--local", "--url", f"http://127.0.0.1:{node.port}"]
    assert status.main(words) == 0
    text = capsys.readouterr().out
    headings, row = text.splitlines()[:2]
    assert headings.split("  ")[0] == "CACHE NODE"
    assert row.split()[:4] == ["under-test", "yes", "16", "MiB"]
    assert FINGERPRINT.hex()[:12] in text
    assert str(node.socket_path) in text
    assert doctor.main(words) == 0
    found = capsys.readouterr().out
    assert "[ok  ] node: under-test answers" in found
    assert f"may connect to {node.socket_path}" in found
    worker.close()


def test_the_log_says_where_the_node_serves(node: NodeProcess) -> None:
    """The line that says that the node serves has the addresses and the size, for whoever has only the log."""
    node.start()
    (line,) = [line for line in node.log().splitlines() if "serving as under-test" in line]
    assert str(node.socket_path) in line
    assert f"http://127.0.0.1:{node.port}" in line
    assert f"arena of {ARENA}" in line


def test_the_arena_is_held_once_over_a_restart(node: NodeProcess) -> None:
    """The restarted node maps the arena that the holder kept; it does not make another."""
    node.start()
    before = arenas(node)
    node.kill()
    node.start()
    assert arenas(node) == before


def test_a_disk_keeps_chunks_over_a_clean_stop(node: NodeProcess) -> None:
    """Settings reach the core: what was stored is on the disk when the memory is gone, and the next life answers from there."""
    disk = node.folder / "disk"
    disk.mkdir()
    table = {"type": "disk", "paths": [str(disk)], "capacity_bytes": "64MiB", "segment_bytes": "8MiB", "buffered": True}
    node.start("--tiers", json.dumps([table]))
    worker, scheduler = connect(node, "worker"), connect(node, "scheduler")
    keys = keys_of(worker, 4)
    store(worker, keys, [payload(n) for n in range(4)])
    until(lambda: node.stats()["core"]["tier_written"] == 4, "the chunks are on the disk")
    assert node.stop() == 0
    node.start("--tiers", json.dumps([table]))
    assert node.get("/readyz")[1]["tiers"][0]["health"] == "serving"
    assert node.stats()["core"]["chunks"] == 0
    until(scheduler.ensure_connected, scheduler.last_error)
    until(worker.ensure_connected, worker.last_error)
    until(lambda: scheduler.lookup(keys)[2:] == (4, 0), "the chunks are in memory")
    assert read(scheduler, worker, keys) == [payload(n) for n in range(4)]


def test_a_clean_stop_leaves_nothing(node: NodeProcess) -> None:
    """SIGTERM ends the node with status 0, its holder with it; of sockets and lock files none is left."""
    node.start()
    holders = node.holders()
    assert len(holders) == 1
    assert node.stop() == 0
    until(lambda: not node.holders(), "the holder is still there")
    assert sorted(entry.name for entry in node.folder.iterdir()) == ["log", "s"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_holder_of_its_own_leaves_no_file_behind(folder: Path, number: signal.Signals) -> None:
    """However a person ends it, a closed terminal among that, its socket and its lock go with it."""
    held = folder / "h.sock"
    command = [sys.executable, "-P", "-m", "kvcommons_node.holder", "--socket", str(held), "--idle-seconds", "60"]
    with subprocess.Popen(command) as holder:
        until(held.is_socket, "the holder does not serve")
        holder.send_signal(number)
        assert holder.wait(30) == 0
    assert list(folder.iterdir()) == []


def test_a_holder_without_a_node_ends_by_itself(node: NodeProcess) -> None:
    """After a crash the holder waits for a node for its idle time, then gives the memory back."""
    node.start("--holder-idle-seconds", "1")
    node.kill()
    until(lambda: not node.holders(), "the holder outlived its idle time")


def test_an_external_holder_is_used_and_left_alone(node: NodeProcess) -> None:
    """With holder_socket set the node starts no holder and ends none, and content survives even a clean restart."""
    held = str(node.folder / "h.sock")
    command = [sys.executable, "-P", "-m", "kvcommons_node.holder", "--socket", held, "--idle-seconds", "60"]
    external = subprocess.Popen(command)
    try:
        until(Path(held).is_socket, "the holder does not serve")
        node.start("--holder-socket", held)
        worker = connect(node, "worker")
        store(worker, keys_of(worker, 1), [payload(5)])
        worker.close()
        assert node.stop() == 0
        assert external.poll() is None
        node.start("--holder-socket", held)
        assert (node.stats()["adopted"], node.stats()["core"]["chunks"]) == (True, 1)
        assert node.holders() == []
    finally:
        external.terminate()
        external.wait(SECONDS_MAX)


def test_a_holder_ends_by_itself_at_sigterm(tmp_path: Path) -> None:
    """It has a handler (else its status were that of the signal): a container's first process is ended by no signal without one."""
    held = tmp_path / "h.sock"
    holder = subprocess.Popen([sys.executable, "-P", "-m", "kvcommons_node.holder", "--socket", str(held)])
    try:
        until(held.is_socket, "the holder does not serve")
        holder.terminate()
        assert holder.wait(SECONDS_MAX) == 0
    finally:
        holder.kill()
        holder.wait()


def test_a_second_node_on_the_same_socket_is_refused(node: NodeProcess) -> None:
    """The second one exits with 2 and one message; the first one serves on."""
    node.start()
    words = ["--socket-path", str(node.socket_path), "--state-dir", str(node.folder / "other"), "--control-port", "0"]
    second = run_node(*words, "--arena-bytes", ARENA)
    assert second.returncode == 2
    assert "in use by a running node" in second.stderr
    assert "Traceback" not in second.stderr
    assert node.serves()


def test_an_http_port_in_use_is_refused(node: NodeProcess) -> None:
    """A control port that somebody else has is refused by name, before the arena is made."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["--socket-path", str(node.socket_path), "--state-dir", str(node.folder / "s")]
        refused = run_node(*words, "--control-port", str(taken.getsockname()[1]), "--arena-bytes", ARENA)
    assert refused.returncode == 2
    assert "control_port" in refused.stderr
    assert not node.socket_path.exists()


def test_a_capacity_over_the_machine_s_memory_is_refused(node: NodeProcess) -> None:
    """An impossible size exits with 2 and says what is possible."""
    words = ["--socket-path", str(node.socket_path), "--state-dir", str(node.folder / "s")]
    refused = run_node(*words, "--arena-bytes", "900TiB")
    assert refused.returncode == 2
    assert "set it to at most" in refused.stderr


def run_node(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "kvcommons_node", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


def arenas(node: NodeProcess) -> set[tuple[int, int]]:
    """(device, inode) of every anonymous file that the node and its holder hold open and that is as large as the arena."""
    assert node.process is not None
    found = set()
    for pid in (node.process.pid, *node.holders()):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).startswith("/memfd:") and entry.stat().st_size >= 16 << 20:
                found.add((entry.stat().st_dev, entry.stat().st_ino))
    return found


def test_events_of_a_running_node_are_followed_by_the_command(node: NodeProcess) -> None:
    """`kvcommons events` hears of an engine that attaches, as it happens, and ends with the node."""
    node.start()
    heard: list[str] = []
    url = f"http://127.0.0.1:{node.port}/v1/events?kinds=session_opened"
    following = threading.Thread(target=lambda: heard.extend(kind for kind, _ in events.follow(url, {})))
    following.start()

    def attached() -> bool:
        connect(node, "worker").close()
        return bool(heard)

    until(attached, "no event came")
    node.stop()
    following.join(SECONDS_MAX)
    assert not following.is_alive()
    assert set(heard) == {"session_opened"}
