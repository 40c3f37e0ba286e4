"""Rivals that benchmarks measure beside us: LMCache's multi-process server, in an environment of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kvcommons_cli.processes import spawn, stop_all
from kvcommons_cli.progress import Progress, wait_ready
from kvcommons_core.redis_server import free_port

SECONDS_MAX = 120.0
ENVIRONMENT = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1", "PYTHONHASHSEED": "0"}


@contextmanager
def lmcache_server(home: Path, progress: Progress, python: Path, memory_bytes: int) -> Iterator[dict[str, Any]]:
    """The server of the environment of `python`; gives what engines pass as --kv-transfer-config."""
    port = free_port()
    words = [str(python.with_name("lmcache")), "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--http-port", str(free_port()), "--l1-size-gb", str(memory_bytes >> 30), "--eviction-policy", "LRU"]
    words += ["--chunk-size", "256", "--supported-transfer-mode", "auto", "--disable-observability"]
    words += ["--max-workers", "2"]
    server = spawn("lmcache", words, home / "logs" / "lmcache.log", ENVIRONMENT)
    extra = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
    try:
        wait_ready(progress, {"lmcache": (server, partial(_accepts, port))}, SECONDS_MAX)
        yield {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    finally:
        stop_all([server])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
