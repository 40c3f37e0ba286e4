"""What is looked at before a local stack makes its first file: memory, a port, a folder that nobody else uses."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import IO

from kvcommons_cli.processes import StackError

MEMORY_SPARE_BYTES = 2 << 30
LOCK_ATTEMPTS_MAX = 8


def check_memory(engine_count: int, engine_bytes: int, arena_bytes: int) -> None:
    """:raises StackError: if the machine has not what so many engines need."""
    need = engine_count * engine_bytes + arena_bytes + MEMORY_SPARE_BYTES
    have = available_bytes()
    if have < need:
        raise StackError(
            f"{engine_count} engines and the cache need {need >> 30} GiB of memory; {have >> 30} GiB are available"
        )


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise StackError("/proc/meminfo does not say how much memory is available")


def check_port(port: int) -> None:
    """:raises StackError: if the router could not listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StackError(
                f"--port: {port} cannot be used: {os.strerror(error.errno or 0)}; give another one, or 0 for any free one"
            ) from error


def locked(path: Path) -> IO[str] | None:
    """The file, locked; None where another process holds it. Its holder removes it before giving it up, so a file that is no
    longer at its path is none."""
    for _ in range(LOCK_ATTEMPTS_MAX):
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            file.close()
            return None
        file.close()
    return None


def private_folder(path: Path) -> None:
    """Make a folder in /tmp that is ours alone. :raises StackError: if somebody else has that name."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StackError(f"{path} is not a private folder of this user; remove it")
