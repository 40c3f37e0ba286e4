"""Processes of a local stack: each behind a guard, with a log file, and ended without leaving anything behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
GRACE_SECONDS_DEFAULT = 5.0
STOP_SECONDS_MAX = 15.0
SPAWN_SECONDS_MAX = 10.0
TAIL_LINES = 25
TAIL_BYTES_MAX = 64 << 10


class StackError(Exception):
    """The local stack cannot do what it should; the message says which part, why, and what to look at."""


@dataclass
class Guarded:
    """One process, its guard and its log."""

    name: str
    guard: subprocess.Popen[bytes]
    pid: int
    """Of the process itself, not of its guard."""
    log: Path

    def alive(self) -> bool:
        return self.guard.poll() is None

    def kill(self) -> None:
        """SIGKILL to the process itself: what a crash is. Returns when it is gone, its guard too."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.guard.wait(STOP_SECONDS_MAX)

    def request_stop(self) -> None:
        if self.alive():
            self.guard.terminate()

    def wait_stopped(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """After request_stop. A guard that does not obey is killed, and its process with it."""
        try:
            self.guard.wait(seconds_max)
        except subprocess.TimeoutExpired:
            self.guard.kill()
            self.guard.wait(STOP_SECONDS_MAX)

    def tail(self) -> str:
        """The last lines of its log, for an error message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES_MAX))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(f"    {line}" for line in lines[-TAIL_LINES:]) or "    (the log is empty)"

    def failure(self, what: str) -> StackError:
        return StackError(f"{self.name}: {what}. The end of {self.log}:\n{self.tail()}")


def spawn(
    name: str,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    grace_seconds: float = GRACE_SECONDS_DEFAULT,
) -> Guarded:
    """Start a process behind a guard. Must be called from the main thread: the kernel watches the thread that forked.

    :raises StackError: if it could not be started at all."""
    guarded = [sys.executable, "-I", "-S", str(GUARD)]
    log.parent.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    try:
        with log.open("ab") as output:
            guard = subprocess.Popen(
                [*guarded, str(os.getpid()), str(write_end), str(grace_seconds), "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                pass_fds=(write_end,),
                start_new_session=True,  # Ctrl-C in the terminal is for us, who end them in order
            )
    finally:
        os.close(write_end)
    with open(read_end, "rb") as status:
        text = status.read()
    if not text:
        guard.wait(SPAWN_SECONDS_MAX)
        raise Guarded(name, guard, 0, log).failure("could not be started")
    return Guarded(name, guard, int(text), log)


def stop_all(processes: Sequence[Guarded]) -> None:
    """End them together, and come back when all are gone."""
    for process in processes:
        process.request_stop()
    deadline = time.monotonic() + STOP_SECONDS_MAX
    for process in processes:
        process.wait_stopped(max(0.1, deadline - time.monotonic()))
