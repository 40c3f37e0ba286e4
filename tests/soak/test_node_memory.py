"""A node in a memory cgroup of its arena and a tenth more: it starts, is killed, adopts, and never holds the arena twice."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kvcommons_core.redis_server import free_port

ARENA_BYTES = 1 << 30
LIMIT_BYTES = ARENA_BYTES * 11 // 10
SECONDS_MAX = 60.0
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
# sh puts itself into the cgroup and becomes the node: nothing of the node is charged elsewhere.
ENTER = 'echo $$ > "$0" && exec "$@"'


def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, what()
        select.select([], [], [], 0.02)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of LIMIT_BYTES, of version 1 or 2."""
    version_1 = (V1 / "memory.limit_in_bytes").exists()
    folder = (V1 if version_1 else V2) / f"kvcommons-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        (folder / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT_BYTES))
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: not (folder / "cgroup.procs").read_text().split(), lambda: "the cgroup's processes did not end")
        folder.rmdir()


def used_bytes(cgroup: Path) -> int:
    """Peak of what the cgroup was charged."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (cgroup / name).exists():
            return int((cgroup / name).read_text())
    return int((cgroup / "memory.current").read_text())


def oom_kills(cgroup: Path) -> int:
    """How often the kernel ended a process of the cgroup."""
    for name in ("memory.oom_control", "memory.events"):
        if (cgroup / name).exists():
            rows = dict(line.split() for line in (cgroup / name).read_text().splitlines())
            return int(rows.get("oom_kill", 0))
    return 0


def start(cgroup: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A node in the cgroup that answers /readyz."""
    words = [sys.executable, "-P", "-m", "kvcommons_node", "--arena-bytes", str(ARENA_BYTES)]
    words += ["--socket-path", str(folder / "n.sock"), "--state-dir", str(folder / "s"), "--control-port", str(port)]
    words += ["--node-id", "bounded", "--holder-idle-seconds", "30"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(["sh", "-c", ENTER, str(cgroup / "cgroup.procs"), *words], stdout=log, stderr=log)

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    until(ready, lambda: (folder / "log").read_text())
    return process


def test_a_killed_node_adopts_its_arena_within_a_limit_that_holds_it_once(cgroup: Path) -> None:
    """Twice the arena would be ended by the kernel; the second and third daemon take the first one's."""
    with TemporaryDirectory(prefix="kvm-") as name:
        folder, port = Path(name), free_port()
        for _ in range(3):
            process = start(cgroup, folder, port)
            assert used_bytes(cgroup) >= ARENA_BYTES, "the arena was not populated at start, so nobody paid for it"
            process.kill()
            process.wait(SECONDS_MAX)
        assert oom_kills(cgroup) == 0
        process = start(cgroup, folder, port)
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
