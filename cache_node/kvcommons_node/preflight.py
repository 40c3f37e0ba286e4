"""Checks before anything is started: each failure is one message with the remedy, never a traceback."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from kvcommons_core.errors import StartRefusedError
from kvcommons_core.settings_values import format_bytes

SECRET_BYTES = 32
SECRET_GIVEN_BYTES_MIN = 16
OWN_SECRET_NAME = "namespace.secret"
SECRET_DOMAIN = b"kvcommons/namespace/1\0"
TOKEN_CHARACTERS_MIN = 16
SOCKET_PATH_BYTES_MAX = 107
"""sockaddr_un holds 108 bytes with the final zero."""
MEMORY_LEFT_BYTES_MIN = 256 << 20
"""What the machine (or the cgroup) must have left beside the arena."""
SLABS_MIN = 8
"""The native core makes slabs smaller rather than have fewer."""
HOLDER_SUFFIX = ".hold"
CGROUP_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory_bytes() -> int:
    """What this process may use at most: the machine's memory, or its cgroup's limit where that is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in CGROUP_LIMIT_FILES:
        try:
            limit = file.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            memory = min(memory, int(limit))
    return memory


def check_capacity(capacity_bytes: int, memory_bytes: int) -> None:
    """:raises StartRefusedError: if the arena would not leave the machine enough to live on."""
    if capacity_bytes + MEMORY_LEFT_BYTES_MIN > memory_bytes:
        most = max(0, memory_bytes - MEMORY_LEFT_BYTES_MIN) >> 20
        raise StartRefusedError(
            f"arena_bytes: {capacity_bytes >> 20} MiB is over what this machine has: {memory_bytes >> 20} MiB, of which "
            f"{MEMORY_LEFT_BYTES_MIN >> 20} MiB must stay free; set it to at most {most}MiB"
        )


def check_socket(path: Path) -> None:
    """:raises StartRefusedError: if no socket could be bound at this path, or somebody serves there already."""
    if len(os.fsencode(path) + HOLDER_SUFFIX.encode()) > SOCKET_PATH_BYTES_MAX:
        raise StartRefusedError(
            f"socket_path: {path} is longer than {SOCKET_PATH_BYTES_MAX - len(HOLDER_SUFFIX)} bytes; set a shorter one"
        )
    _check_directory(path.parent, "socket_path")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise StartRefusedError(f"socket_path: {path} exists and is no socket; remove it, or set another one")
    if answers(path):
        raise StartRefusedError(f"socket_path: {path} is in use by a running node; stop that one, or set another")


def check_state_directory(path: Path) -> None:
    """Makes nothing. :raises StartRefusedError: if it could not be made or cannot be written."""
    _check_directory(path, "state_dir")


def make_directories(state_directory: Path, socket_path: Path) -> None:
    """After all checks. :raises StartRefusedError: if a directory cannot be made all the same."""
    for path, setting, mode in ((state_directory, "state_dir", 0o700), (socket_path.parent, "socket_path", 0o755)):
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise StartRefusedError(f"{setting}: {path} cannot be made: {error.strerror}; set another one") from error


def _check_directory(path: Path, setting: str) -> None:
    """The directory itself, or the nearest one above it, in which the missing ones will be made."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise StartRefusedError(f"{setting}: {path} cannot be made: {there} is no directory; set another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StartRefusedError(
            f"{setting}: directory {there} is not writable for user {os.geteuid()}; give it to that user, "
            f"or set another one"
        )


def check_port(host: str, port: int) -> None:
    """:raises StartRefusedError: if the control API could not listen there now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except socket.gaierror as error:
        raise StartRefusedError(
            f"control_host: {host} is no address here: {error.strerror}; set another one"
        ) from error
    except OSError as error:
        raise StartRefusedError(port_refused(host, port, error)) from error


def port_refused(host: str, port: int, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"control_port: {host}:{port} cannot be used: {reason}; set another one, or 0 for any free one"


def check_slabs(slab_bytes: int, arena_bytes: int) -> list[str]:
    """For a size that was asked for: what the log is to say about it.

    :raises StartRefusedError: if the arena cannot have such slabs."""
    if slab_bytes > arena_bytes:
        raise StartRefusedError(
            f"slab_bytes: {format_bytes(slab_bytes)} is over arena_bytes ({format_bytes(arena_bytes)}); "
            f"leave it out, or set it to at most an eighth of the arena"
        )
    if slab_bytes > arena_bytes // SLABS_MIN:
        sizes = f"{format_bytes(slab_bytes)} is over an eighth of arena_bytes ({format_bytes(arena_bytes)})"
        return [f"slab_bytes: {sizes}: slabs are made smaller, so that there are {SLABS_MIN}"]
    return []


def answers(path: Path) -> bool:
    """Whether somebody accepts connections at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            # The holder's socket keeps packets apart: another type than this probe's, and a live one.
            return error.errno == errno.EPROTOTYPE
        return True


def own_secret_file(state_directory: Path) -> Path:
    """Where a node keeps the secret that it made by itself."""
    return state_directory / OWN_SECRET_NAME


def kept_secret(state_directory: Path, given: Path | None) -> bytes | None:
    """The secret that separates namespaces, as the given file or the node's own holds it; None where that is not made yet.

    A file of another length than SECRET_BYTES (a passphrase, a mounted Kubernetes secret) is hashed to that length.

    :raises StartRefusedError: if the file cannot be read, is too short, or is open to others."""
    path = given or own_secret_file(state_directory)
    if given is None and not path.exists():
        return None
    try:
        mode = path.stat().st_mode
        secret = path.read_bytes()
    except OSError as error:
        raise StartRefusedError(f"namespace_secret_file: {path} cannot be read: {error.strerror}") from error
    # A mounted Kubernetes secret is 0440 with the pod's group: the group may read, nobody else.
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise StartRefusedError(f"namespace_secret_file: {path} is open to other users; run: chmod 0600 {path}")
    if len(secret) == SECRET_BYTES:
        return secret
    secret = secret.strip()
    if len(secret) < SECRET_GIVEN_BYTES_MIN:
        raise StartRefusedError(
            f"namespace_secret_file: {path} holds {len(secret)} bytes; put {SECRET_GIVEN_BYTES_MIN} random ones or more"
        )
    return hashlib.sha256(SECRET_DOMAIN + secret).digest()


def make_secret(state_directory: Path) -> bytes:
    """The node's own, made once."""
    path = own_secret_file(state_directory)
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StartRefusedError(f"namespace.secret: {path} cannot be made: {error.strerror}") from error
    return secret


def control_token(path: Path | None) -> str | None:
    """The bearer token of the control API. :raises StartRefusedError: if the file is unreadable or the token too short."""
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartRefusedError(f"control_token_file: {path} cannot be read: {error}") from error
    if len(token) < TOKEN_CHARACTERS_MIN:
        raise StartRefusedError(
            f"control_token_file: {path} holds {len(token)} characters; use {TOKEN_CHARACTERS_MIN} or more"
        )
    return token


def engine_token(path: Path | None) -> str:
    """What engines want to see, empty for nothing. :raises StartRefusedError: if the file is unreadable."""
    try:
        return path.read_text().strip() if path is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StartRefusedError(f"engine_token_file: {path} cannot be read: {error}") from error


def check_engine_urls(urls: Sequence[str]) -> None:
    """:raises StartRefusedError: if one is no HTTP address."""
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StartRefusedError(f"engine_urls: {url!r} is no address; give http://HOST:PORT")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
