"""The guard of a local stack: whatever ends it, its parent or its process, nothing that was started stays behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvcommons_cli.processes import Guarded, StackError, spawn, stop_all

SECONDS_MAX = 20
# Starts a grandchild in a session of its own, as a holder is; says both pids; then waits.
PARENT_OF_A_STRAY = """
import subprocess, sys, os, time
stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(os.getpid(), stray.pid, flush=True)
{then}
"""
# A process that spawns a guarded one and then dies as by a crash.
CRASHING_STARTER = """
import os, signal, sys
from pathlib import Path
from kvcommons_cli.processes import spawn
held = spawn("part", [sys.executable, "-c", {program!r}], Path({log!r}))
while len(Path({log!r}).read_text().split()) < 2:
    pass
print(held.guard.pid, *Path({log!r}).read_text().split(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
WAIT = "time.sleep(600)"
STUBBORN = "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n" + WAIT


def ended(pid: int) -> bool:
    """Wait until a process is gone, by its pidfd; one that is gone already has none."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], SECONDS_MAX)[0])
    finally:
        os.close(handle)


def pids(process: Guarded) -> list[int]:
    """What the process said on its log: its own pid and its stray's."""
    while len(process.log.read_text().split()) < 2:
        assert process.alive(), process.tail()
    return [int(word) for word in process.log.read_text().split()]


@pytest.fixture
def started() -> Iterator[list[Guarded]]:
    every: list[Guarded] = []
    yield every
    stop_all(every)


def program(then: str) -> list[str]:
    return [sys.executable, "-c", PARENT_OF_A_STRAY.format(then=then)]


@pytest.mark.parametrize("then", [WAIT, STUBBORN], ids=["obedient", "stubborn"])
def test_stopping_ends_the_process_and_its_strays(tmp_path: Path, started: list[Guarded], then: str) -> None:
    """A stop ends what the process started in other sessions too, even if it does not listen to SIGTERM."""
    process = spawn("part", program(then), tmp_path / "log", grace_seconds=0.2)
    started.append(process)
    below = pids(process)
    assert below[0] == process.pid
    stop_all([process])
    assert all(ended(pid) for pid in below)


def test_a_crash_of_the_process_ends_its_strays(tmp_path: Path, started: list[Guarded]) -> None:
    """When the process is killed, what it had started is ended by the guard."""
    process = spawn("part", program(WAIT), tmp_path / "log")
    started.append(process)
    below = pids(process)
    process.kill()
    assert not process.alive()
    assert ended(below[1])


def test_kill_9_of_the_guard_ends_the_process(tmp_path: Path, started: list[Guarded]) -> None:
    """The kernel ends the process when its guard is killed: no guard, no process."""
    process = spawn(
        "part", [sys.executable, "-c", "import os, time; print(1, 2, flush=True); time.sleep(600)"], tmp_path / "log"
    )
    started.append(process)
    pids(process)
    os.kill(process.guard.pid, signal.SIGKILL)
    assert ended(process.pid)


def test_kill_9_of_whoever_started_it_ends_everything(tmp_path: Path) -> None:
    """A crash of the demo itself leaves no guard, no process and no stray behind."""
    log = tmp_path / "log"
    starter = CRASHING_STARTER.format(program=PARENT_OF_A_STRAY.format(then=WAIT), log=str(log))
    log.touch()
    crashed = subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, timeout=SECONDS_MAX, check=False)
    assert crashed.returncode == -signal.SIGKILL
    left = [int(word) for word in crashed.stdout.split()]
    assert len(left) == 3
    assert all(ended(pid) for pid in left)


def test_the_status_of_a_process_that_ends_by_itself_is_the_guard_s(tmp_path: Path) -> None:
    """A process' own exit status is seen through its guard."""
    process = spawn("part", [sys.executable, "-c", "print('gone'); raise SystemExit(7)"], tmp_path / "log")
    assert process.guard.wait(SECONDS_MAX) == 7
    assert "gone" in process.tail()


def test_a_program_that_is_not_there_is_an_error_with_its_log(tmp_path: Path) -> None:
    """What cannot be started at all says so, by name."""
    with pytest.raises(StackError, match=r"(?s)part: could not be started.*nonesuch: No such file"):
        spawn("part", ["/nonesuch"], tmp_path / "log")
