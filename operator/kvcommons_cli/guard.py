"""A guard around one process of a local stack: when it or its parent ends, so does everything that it started.

Run by its path with the standard library alone (`python -I -S guard.py ...`), so that it is up in milliseconds. The guard
is the subreaper of what it starts: a grandchild whose parent died becomes the guard's own child, and is ended with the
rest. It gets SIGTERM from the kernel when the parent dies in whatever way; its child gets SIGKILL when the guard dies.

    guard.py PARENT_PID STATUS_FD GRACE_SECONDS -- COMMAND...
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WATCHED = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
KILL_SECONDS_MAX = 5.0
POLL_SECONDS = 0.02
NOT_STARTED_STATUS = 127

libc = ctypes.CDLL(None, use_errno=True)


def descendants(root: int) -> list[int]:
    """Every process below `root`, by one pass over /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything: the parent is the second field after the last one.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    wave = children.get(root, [])
    while wave:
        found += wave
        wave = [pid for parent in wave for pid in children.get(parent, [])]
    return found


def reap(main_pid: int) -> int | None:
    """Collect whoever ended; the exit status of the main process if it was among them."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == main_pid:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code


def end_all(signal_number: int) -> bool:
    """Send a signal to everything below. Returns whether anything is left."""
    below = descendants(os.getpid())
    for pid in below:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal_number)
    return bool(below)


def kill_the_rest() -> None:
    """Until nothing is left: what is killed may have started something the moment before."""
    deadline = time.monotonic() + KILL_SECONDS_MAX
    while end_all(signal.SIGKILL) and time.monotonic() < deadline:
        reap(-1)
        time.sleep(POLL_SECONDS)


def die_with_guard() -> None:
    """In the child, between fork and exec: the guard has one thread, so this is safe."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def watch(main_pid: int, grace_seconds: float) -> int:
    """Until the main process has ended, by itself or because the guard was told to end it. Returns its status."""
    deadline: float | None = None
    while True:
        wait = 3_600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        seen = signal.sigtimedwait(WATCHED, wait)
        status = reap(main_pid)
        if status is not None:
            return status
        if seen is None and deadline is not None:
            return 128 + signal.SIGKILL
        if seen is not None and seen.si_signo != signal.SIGCHLD and deadline is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(main_pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds


def main(arguments: list[str]) -> int:
    parent, status_fd, grace = int(arguments[0]), int(arguments[1]), float(arguments[2])
    command = arguments[4:]
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    if os.getppid() != parent:
        return 128 + signal.SIGTERM  # the parent died before the kernel was asked to tell
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)  # noqa: PLW1509
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return NOT_STARTED_STATUS
    os.write(status_fd, f"{child.pid}\n".encode())
    os.close(status_fd)
    status = watch(child.pid, grace)
    kill_the_rest()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
