"""Listens, and connects, in the network of a pod whose image has no program for it; standard library alone.

    python pod_network.py listen PORT...            # to everybody who comes; a line for each: his address and the port
    python pod_network.py connect ADDRESS:PORT...   # a line for each: open, refused, or what else became of it

As a module: the same for a process in the pod, whose network is entered from outside.
"""

from __future__ import annotations

import errno
import selectors
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONNECT_SECONDS_MAX = 15.0
ALL_SECONDS_MAX = 120.0
PARALLEL = 16
LISTENING = "listening"
# Nobody listens, or a firewall says no.
CLOSED, PROHIBITED = "closed", "refused"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def listen(ports: Sequence[int]) -> None:
    chosen = selectors.DefaultSelector()
    for port in ports:
        chosen.register(socket.create_server(("", port), backlog=128), selectors.EVENT_READ, port)
    say(LISTENING)
    while True:
        for key, _ in chosen.select():
            server: socket.socket = key.fileobj  # type: ignore[assignment]
            connection, peer = server.accept()
            connection.close()
            say(f"{peer[0]} {key.data}")


def outcome(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), timeout=CONNECT_SECONDS_MAX).close()
    except OSError as error:
        known = {errno.EHOSTUNREACH: PROHIBITED, errno.ECONNREFUSED: CLOSED}
        return known.get(error.errno or 0, f"failed: {error}")
    return "open"


def connect(targets: Sequence[str]) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        pairs = (target.rpartition(":") for target in targets)
        for one in pool.map(lambda pair: outcome(pair[0], int(pair[2])), pairs):
            say(one)


def command(pid: int | None, *arguments: object) -> list[str]:
    """This file as a program in the network of a process; None: in this machine's. One that listens does so until it is ended."""
    entered = ["nsenter", "--target", str(pid), "--net", "--"] if pid is not None else []
    return [*entered, sys.executable, "-I", "-S", str(Path(__file__).resolve()), *map(str, arguments)]


def attempts(pid: int | None, targets: Sequence[str]) -> list[str]:
    """What becomes of a connection from there to each of ADDRESS:PORT."""
    done = subprocess.run(
        command(pid, "connect", *targets), capture_output=True, text=True, check=False, timeout=ALL_SECONDS_MAX
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


if __name__ == "__main__":
    {"listen": lambda words: listen([int(word) for word in words]), "connect": connect}[sys.argv[1]](sys.argv[2:])
